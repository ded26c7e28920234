"""Everything the engine raises on purpose.

    TrainerError
    ├── ConfigError     a setting is out of range or contradicts another
    ├── DatasetError    a folder, an image or a caption cannot be used
    ├── ModelError      the model, VAE or CLIP cannot be trained or do not belong together
    ├── LoraFileError   a LoRA file cannot be read
    ├── StorageError    a file or a folder cannot be written
    └── TrainingError   the run itself went wrong (NaN loss, out of memory)

A message is one sentence that names the thing, the value and the remedy.
"""


class TrainerError(Exception):
    """Base of all errors that are meant for the user's eyes."""


class ConfigError(TrainerError, ValueError):
    pass


class DatasetError(TrainerError):
    pass


class ModelError(TrainerError):
    pass


class LoraFileError(TrainerError):
    pass


class StorageError(TrainerError):
    pass


class TrainingError(TrainerError):
    pass
