"""Everything that knows peft or the format of a LoRA file."""
