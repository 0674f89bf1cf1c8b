"""How long decode steps of a model take on this machine, measured once, and the number of rows that pays there.

The measurement is kept in the user's cache folder, so that the same seed gives the same result the next time. Without a
cache folder nothing is measured, and plans stay as they are. Nothing is measured while the engine has other work.
"""

import contextlib
import math
import os
import platform
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from swift_edge.bundle.manifest import Bundle
from swift_edge.engine.engine import Engine
from swift_edge.engine.providers import onnxruntime_module
from swift_edge.errors import SwiftEdgeError
from swift_edge.options import SamplingOptions
from swift_edge.scoring.scorer import Scorer
from swift_edge.selection.adaptive.steering import Plan
from swift_edge.selection.adaptive.step_times import PROMPT_TOKENS, StepTimes, least_times, timed_steps
from swift_edge.system.cache_folder import CacheRecord
from swift_edge.system.machine import available_memory

RECORD_VERSION: Final = 2
PACE_ROWS: Final = (1, 4, 8, 16)
"""Numbers of rows that are measured: they take a second at half a billion parameters on two cores."""
NEW_TOKENS: Final = 3
ROUNDS: Final = 3
MOST_TRIES: Final = 3
"""Failed measurements after which this process measures no more."""
LONG_PROMPT: Final = 1024
"""Prompt tokens beyond which times measured with short prompts say little: attention then takes longer."""


class Pace:
    """How long the steps of an opened bundle take; shared by threads.

    >>> pace = Pace(bundle, engine)
    >>> plan = pace.applied(plan)
    """

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        """Note what to measure; nothing is measured yet."""
        self._bundle = bundle
        self._engine = engine
        self._lock = threading.Lock()
        self._times: StepTimes | None = None
        self._tries = 0
        self.is_settled = False
        """Whether the times are known, or measuring has been given up."""

    def applied(self, plan: Plan) -> Plan:
        """The plan with as many rows as pay on this machine, and without dropping rows that cost nothing.

        A plan with a fixed number of rows or a budget of tokens is left as it is. Measures if no times are known yet,
        unless the pick has a budget of seconds.
        """
        prunes = plan.pruning is not None and plan.pruning.keep is None
        if not (plan.adaptive or prunes) or plan.budget_tokens is not None:
            return plan
        times = self._step_times(may_measure=plan.budget_s is None)
        if times is None:
            return plan
        rows = times.rows_that_pay(plan.rows, plan.most) if plan.adaptive else plan.rows
        return replace(plan, rows=rows, free_rows=times.free_rows if prunes else 0, long_prompt_rows=plan.rows)

    def _step_times(self, *, may_measure: bool) -> StepTimes | None:
        """The times, measured now or earlier; None if there are none, or no place to keep them."""
        # A pick with a budget of seconds does not wait for another thread's measurement either.
        if not self._lock.acquire(blocking=may_measure):
            return None
        try:
            if not self.is_settled:
                record, key = self._record()
                self._times = _read(record.read(), key)
                measures = self._times is None and record.is_kept and may_measure
                if measures and self._tries < MOST_TRIES and self._engine.is_idle:
                    self._tries += 1
                    self._measure(record, key)
                gives_up = not record.is_kept or self._tries >= MOST_TRIES
                self.is_settled = self._times is not None or (may_measure and gives_up)
            return self._times
        finally:
            self._lock.release()

    def _record(self) -> tuple[CacheRecord, dict[str, Any]]:
        """The record that holds the times, and the conditions under which they are valid."""
        session, files = self._engine.session, self._bundle.manifest.files
        key = {
            "version": RECORD_VERSION,
            "files": {name: files[name].sha256 for name in self._bundle.manifest.fixed_files},
            "onnxruntime": onnxruntime_module().__version__,
            "cores": os.cpu_count(),
        }
        # A home folder may be shared by machines.
        subject = (platform.node(), str(self._bundle.path.resolve()), str(session.threads), *session.providers)
        return CacheRecord("pace", "\n".join(subject)), key

    def _measure(self, record: CacheRecord, key: Mapping[str, Any]) -> None:
        """Time a few steps and keep the times, unless memory does not hold so many rows or the machine is busy.

        A later pick tries again; until then plans stay as they are.
        """
        engine = self._engine
        # A failed measurement must neither change this pick nor stop it.
        with contextlib.suppress(SwiftEdgeError, OSError):
            available = available_memory()
            if engine.session.fitting_rows(PACE_ROWS[-1], PROMPT_TOKENS, NEW_TOKENS, available) < PACE_ROWS[-1]:
                return
            # Without head and filters: they add little to a step, and the first pick's would count for all later ones.
            scorer = Scorer(None, "mean_logprob")
            timed = timed_steps(engine, scorer, SamplingOptions(), PACE_ROWS, new_tokens=NEW_TOKENS, rounds=ROUNDS)
            # The shortest of each round: other work makes steps longer, those of many rows most.
            least = least_times({rows: list(map(min, rounds)) for rows, rounds in timed.items()})
            if least is None:
                return
            record.write({**key, "seconds": {str(rows): step_s for rows, step_s in least.seconds.items()}})
            # Read back: another process may have written it meanwhile.
            self._times = _read(record.read(), key)


def _read(document: Any, key: Mapping[str, Any]) -> StepTimes | None:
    """The times of a record that was made under the same conditions; None for any other."""
    if not isinstance(document, dict) or {name: document.get(name) for name in key} != key:
        return None
    seconds = document.get("seconds")
    if not isinstance(seconds, dict) or list(seconds) != [str(rows) for rows in PACE_ROWS]:
        return None
    if not all(isinstance(step_s, float) and 0 < step_s < math.inf for step_s in seconds.values()):
        return None
    return StepTimes({int(rows): step_s for rows, step_s in seconds.items()})
