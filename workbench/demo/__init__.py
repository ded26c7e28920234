"""A whole training run in a real ComfyUI, on generated weights. Started by `python dev.py demo`."""
