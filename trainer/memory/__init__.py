"""Memory and time: what is kept, recomputed or compiled, block by block. Knows no ComfyUI."""
