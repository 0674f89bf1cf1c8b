"""A test that is set up: the bundle, the problems, how candidates are written, and the folder that they are kept in.

Writes candidates with the loop that collects them for training, so that both see the same. Does not judge any rule.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from swift_edge.engine.model import OpenedModel
from swift_edge.evaluation.measure import main_size
from swift_edge.options import CollectOptions
from swift_edge.scoring.head import Head
from swift_edge.training.collecting.collect import collect
from swift_edge.training.collecting.collected import CollectProgress
from swift_edge.training.collecting.problems import Problems
from swift_edge.training.store.writer import Store


@dataclass(frozen=True, slots=True)
class Trial:
    """A test that is set up: everything that its parts share."""

    opened: OpenedModel
    """The bundle."""
    problems: Problems
    """The problems."""
    task: str
    """The task that grades."""
    sizes: tuple[int, ...]
    """Numbers of candidates to judge rules at, ascending."""
    out: Path
    """The folder of the test."""
    writing: CollectOptions
    """How candidates are written."""
    force: bool
    """Whether stores in the folder are started over."""
    resamples: int
    """Resamples of the bootstrap."""
    report: Callable[[str], None]
    """Called with each line of the report."""
    progress: Callable[[CollectProgress], None]
    """Called after each step of the decode loop."""

    @property
    def main_size(self) -> int:
        """The number of candidates at which rules are compared in one figure."""
        return main_size(self.sizes)

    def candidates(
        self,
        name: str,
        n: int,
        heads: Mapping[str, Head],
        *,
        opened: OpenedModel | None = None,
        problems: Problems | None = None,
        store_features: bool = False,
    ) -> Store:
        """The candidates in the folder `name` of the test, written where they are not there yet."""
        collected = collect(
            opened or self.opened,
            problems or self.problems,
            self.out / name,
            n=n,
            task=self.task,
            heads=heads,
            store_features=store_features,
            force=self.force,
            report=self.report,
            progress=self.progress,
            **asdict(self.writing),
        )
        return Store.open(collected.path)
