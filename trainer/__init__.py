"""The training engine. Knows torch, peft and diffusers, and nothing of ComfyUI (only `trainer.host` does)."""
