"""A small drawn world, a base model trained on it from nothing, and a subject that is new to the base."""
