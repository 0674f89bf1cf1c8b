"""Places on the command line: one that a command will write to is looked at before the work, and held meanwhile."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from swift_edge.errors import HeadFileError, OutputExistsError, PlaceInUseError
from swift_edge.system.files import kind_at
from swift_edge.system.locks import held, lock_beside


class Place(click.Path):
    """A file or a folder; an empty text, as of a variable that is not set, is none, least of all the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Take what `click.Path` takes, but for nothing at all."""
        if value == "":
            self.fail("it is empty; expected the path of a file or folder, such as . for the current one", param, ctx)
        return super().convert(value, param, ctx)


def hold_place(out: Path, force: bool) -> None:
    """Hold the place that a head is to be written to until the command ends, and find out whether it can be.

    A device or a pipe takes a head, too. Raises `OutputExistsError`, `HeadFileError` and `PlaceInUseError`.
    """
    _require(out, force)
    if kind_at(out) != "stream":
        click.get_current_context().with_resource(_held(out))
        _require(out, force)  # whoever held it before may have written it


def require_no_part(path: Path) -> None:
    """Raise `OutputExistsError` for a file that a bundle or a store consists of, which would not open any more.

    Pages and heads beside them may be replaced.
    """
    from swift_edge.bundle.manifest import MANIFEST_NAME
    from swift_edge.training.store.format import STORE_NAME

    place = Path(os.path.realpath(path))
    if place.is_file() and place.suffix not in (".html", ".npz"):
        for name, what in ((MANIFEST_NAME, "bundle"), (STORE_NAME, "store")):
            if place.with_name(name).is_file():
                raise OutputExistsError(
                    f"{path} belongs to the {what} in its folder, not even --force replaces it; name another file"
                )


@contextlib.contextmanager
def _held(out: Path) -> Iterator[None]:
    with contextlib.ExitStack() as holding:
        try:
            holding.enter_context(held(lock_beside(Path(os.path.realpath(out))), out))
        except PlaceInUseError:
            raise
        except OSError as error:
            raise HeadFileError(f"no file can be made beside {out} ({error.strerror}); choose another --out") from error
        yield


def _require(out: Path, force: bool) -> None:
    there = kind_at(out)
    if there == "other" or (there == "file" and not force):
        raise OutputExistsError(f"{out} exists already; choose another --out, or replace a file with --force")
    require_no_part(out)
    folder = Path(os.path.realpath(out)).parent
    if not folder.is_dir():
        raise HeadFileError(f"there is no folder {folder} for {out.name}; make it first, or choose another --out")
