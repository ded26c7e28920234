"""What we work with and users do not install: tools behind dev.py, demo, benchmark, miniature world."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder of the pack."""
