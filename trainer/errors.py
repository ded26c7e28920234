"""Everything the engine raises on purpose.

    TrainerError
    ├── ConfigError     a setting is out of range or contradicts another
    ├── DatasetError    a folder, an image or a caption cannot be used
    ├── ModelError      the model, VAE or CLIP cannot be trained or do not belong together
    ├── LoraFileError   a LoRA file cannot be read
    ├── StorageError    a file or a folder cannot be written
    ├── JobError        a job's file, or a workflow, cannot be used
    ├── RemoteError     another ComfyUI cannot be reached, or cannot do what is asked
    └── TrainingError   the run itself went wrong (NaN loss, out of memory)

A message is one sentence that names the thing, the value and the remedy.
"""

from collections.abc import Iterable


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


class JobError(TrainerError):
    pass


class RemoteError(TrainerError):
    pass


class TrainingError(TrainerError):
    pass


def shortened(items: Iterable[str], limit: int = 3) -> str:
    """The first `limit` items joined by commas, and how many more there are."""
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
