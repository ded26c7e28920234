"""What to train with: recipes of the pack, and the configs of other trainers read as ours."""
