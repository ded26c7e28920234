"""A module a tool; a tool is a row (`Tool`)."""

from ..tool import Tool
from .ai_toolkit import AI_TOOLKIT
from .custom_diffusion import CUSTOM_DIFFUSION
from .diffusers import DIFFUSERS
from .kohya import KOHYA, MUSUBI
from .kohya_gui import GUI
from .metadata import METADATA, OWN
from .onetrainer import ONETRAINER
from .simpletuner import SIMPLETUNER

TOOLS: tuple[Tool, ...] = (
    OWN, METADATA, ONETRAINER, AI_TOOLKIT, SIMPLETUNER, GUI, MUSUBI, KOHYA, CUSTOM_DIFFUSION, DIFFUSERS,
)  # fmt: skip
"""Those whose signs are rarer come first."""
