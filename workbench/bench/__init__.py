"""Time and memory of a training step, beside other trainers: `python dev.py bench`."""
