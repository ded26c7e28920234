"""The sections of a `TrainConfig`: frozen, keyword-only, checked once. `config` has them all."""
