"""What dev.py does: an environment, a ComfyUI, a private base directory, a server. Standard library only."""
