"""Rows of a `metadata.parquet`, through pyarrow where it is installed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DatasetError, shortened

_AT_ONCE = 256
"""Rows that are decoded together: a compressed file may hold far more text than it has bytes."""


def parquet_rows(
    path: Path, wanted: Callable[[str], bool], check: Callable[[list[str]], None], limit: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, column → value) of each row; a column whose name is not wanted is not decoded.

    check: raises DatasetError for the columns of a file that says nothing of pictures. limit: bytes of the
    file, and characters of all its texts. Raises DatasetError if the file cannot be used.
    """
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError as e:
        raise DatasetError(
            f"{path.name}: needs the package pyarrow; install it with 'pip install pyarrow' in ComfyUI's"
            " Python, or save the table as metadata.csv"
        ) from e
    try:
        if (size := path.stat().st_size) > limit:
            raise DatasetError(f"{path.name}: has {size} bytes (limit {limit}); divide it")
        with ParquetFile(path) as file:
            check(file.schema_arrow.names)
            columns = [f for f in file.schema_arrow if wanted(f.name)]
            if odd := [f"{f.name} ({f.type})" for f in columns if not _flat(f.type)]:
                raise DatasetError(
                    f"{path.name}: holds more than names, texts and numbers in {shortened(odd)}; rename these"
                    " columns, or save pictures as files and their names in file_name"
                )
            number = read = 0
            for batch in file.iter_batches(_AT_ONCE, columns=[f.name for f in columns]):
                for row in batch.to_pylist():
                    number += 1
                    read += sum(len(v) for v in row.values() if isinstance(v, str))
                    if read > limit:
                        raise DatasetError(f"{path.name}: has over {limit} characters of text; divide it")
                    yield number, {k: None if _missing(v) else v for k, v in row.items()}
    except (pa.ArrowException, OSError, ValueError) as e:
        first = next(iter(str(e).splitlines()), "")
        raise DatasetError(
            f"{path.name}: is no Parquet file that can be read ({first}); write it anew"
        ) from e


def _flat(kind: Any) -> bool:
    """Whether values are texts, numbers, or lists of these: no structures, pictures, or lists of lists."""
    import pyarrow.types as t

    if t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind):
        kind = kind.value_type
    if t.is_dictionary(kind):
        kind = kind.value_type
    text = t.is_string(kind) or t.is_large_string(kind)
    return text or t.is_null(kind) or t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind)


def _missing(value: Any) -> bool:
    """pandas writes NaN where a number is missing."""
    return isinstance(value, float) and math.isnan(value)
