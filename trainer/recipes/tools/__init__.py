"""A module a tool; a tool is a row (`Tool`)."""

from ..tool import Tool
from .ai_toolkit import AI_TOOLKIT
from .diffusers import DIFFUSERS
from .kohya import KOHYA, MUSUBI
from .kohya_gui import GUI
from .metadata import METADATA, OWN
from .onetrainer import ONETRAINER
from .simpletuner import SIMPLETUNER

TOOLS: tuple[Tool, ...] = (OWN, METADATA, ONETRAINER, AI_TOOLKIT, SIMPLETUNER, GUI, MUSUBI, KOHYA, DIFFUSERS)
"""Those whose signs are rarer come first."""
