"""Rows that the package `datasets` reads: data sets of the Hugging Face hub by their names, and Parquet files.

A name is `owner/name:split`, where a data set has several configurations `owner/name/configuration:split`.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from swift_edge.errors import DataError, one_line
from swift_edge.system.extras import import_extra

CONFIGURATIONS: Final = {"openai/gsm8k": "main", "deepmind/aqua_rat": "raw"}
"""Of data sets with several, the one that has the official rows."""
PARQUET: Final = ".parquet"
_NAME: Final = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:/(\w[\w.-]*))?(?::(\w[\w.-]*))?")
_FILES: Final = re.compile(r"\.(?:jsonl?|csv|tsv|txt|gz|zip|parquet)$", re.IGNORECASE)
"""Ends of names that are files, even where there is none."""


def is_for_datasets(path: Path) -> bool:
    """Whether a path is a Parquet file, or none at all and may be a name of the hub."""
    if path.suffix.lower() == PARQUET:
        return True
    name = _NAME.fullmatch(path.as_posix())
    return name is not None and not (path.exists() or Path(path.parts[0]).exists() or _FILES.search(path.as_posix()))


def hub_rows(path: Path) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """The SHA-256 of all rows as JSON, and each row with its place as text for messages.

    Raises `MissingExtraError` without the package `datasets`; `DataError` for a name that the hub does not know or that
    cannot be reached, for a split that is not there, and for a file that does not read.
    """
    parquet = path.suffix.lower() == PARQUET
    what = f"reading {path}" if parquet else f"{path} is no file here, and reading it as a data set of the hub"
    datasets = import_extra("datasets", what, "data")
    try:
        loaded = _loaded(datasets, path)
        rows = [(f"{path} row {number}", dict(row)) for number, row in enumerate(loaded, 1)]
    except DataError:
        raise
    except Exception as error:  # the package has no errors of its own for most that can go wrong
        raise DataError(
            f"{path} cannot be read by datasets ({type(error).__name__}: {one_line(error)}); expected a file, or a "
            "data set of the hub with its split, such as openai/gsm8k:test"
        ) from error
    if not rows:
        raise DataError(f"{path} has no rows; expected at least one")
    digest = hashlib.sha256()
    for _, row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest(), rows


def _loaded(datasets: Any, path: Path) -> Iterable[Any]:
    """All rows of one split."""
    if path.suffix.lower() == PARQUET:
        found: Iterable[Any] = datasets.load_dataset("parquet", data_files=str(path), split="train")
        return found
    match = _NAME.fullmatch(path.as_posix())
    assert match is not None
    name, configuration, split = match.groups()
    found = datasets.load_dataset(name, configuration or CONFIGURATIONS.get(name), split=split)
    if split is None:
        splits = dict(found)
        if len(splits) > 1:
            listed = ", ".join(splits)
            raise DataError(f"{path} has the splits {listed}; expected one of them, as {path}:{next(iter(splits))}")
        (found,) = splits.values()
    return found
