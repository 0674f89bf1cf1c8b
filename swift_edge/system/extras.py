"""Packages that only some uses need: imported when one of those runs, or named in an error that says how to get it."""

import importlib
from typing import Any

from swift_edge.errors import MissingExtraError


def import_extra(module: str, what: str, extra: str) -> Any:
    """Import `module` for `what`; raises `MissingExtraError`, which names the extra, where its package is absent.

    >>> import_extra("scipy.optimize", "fit", "train")  # doctest: +SKIP
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise
        raise MissingExtraError(what, package, extra) from error
