"""What dev.py does: an environment, a ComfyUI, a private base directory, a server. Standard library only."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder of the pack."""
