"""The pace of a model on this machine: how its steps grow with their rows, measured once, and what picks make of it.

The measurement is kept in the user's cache folder, so that a seed fixes the outcome the next time, too. Where none may
be kept nothing is measured, and picks go by nothing but what was asked for. Knows bundles, plans and step times.
Does not know how a step is timed.
"""

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from swift_edge.bundle import Bundle
from swift_edge.cache_folder import CacheRecord
from swift_edge.machine import available_memory
from swift_edge.providers import onnxruntime_module
from swift_edge.sampling import SamplingOptions
from swift_edge.scoring import Ranking
from swift_edge.session import ModelSession
from swift_edge.steering import Plan
from swift_edge.step_times import PROMPT_TOKENS, StepTimes, measure_steps

RECORD_VERSION: Final = 1
ROWS: Final = (1, 4, 8, 16)
"""Numbers of rows that are measured: they take a second at half a billion parameters on two cores."""
NEW_TOKENS: Final = 4
ROUNDS: Final = 2


class Pace:
    """How long the steps of an opened bundle take; shared by threads.

    >>> pace = Pace(bundle, session)
    >>> plan = pace.applied(plan, ranking, sampling)
    """

    def __init__(self, bundle: Bundle, session: ModelSession) -> None:
        """Remember what to measure."""
        self._bundle = bundle
        self._session = session
        self._lock = threading.Lock()
        self._looked = False
        self._times: StepTimes | None = None
        self.measured_s = 0.0
        """Seconds spent on measuring so far."""

    def applied(self, plan: Plan, ranking: Ranking, sampling: SamplingOptions) -> Plan:
        """The plan with as many rows beside each other as pay here, and without dropping rows that cost nothing.

        Plans whose rows are all told are left as they are. Measures if nothing is known yet, with `ranking` and
        `sampling`, unless the pick has a time to keep.
        """
        prunes = plan.pruning is not None and plan.pruning.keep is None
        if not (plan.adaptive or prunes):
            return plan
        times = self._known(ranking, sampling, may_measure=plan.budget_s is None)
        if times is None:
            return plan
        rows = times.rows_that_pay(plan.rows, plan.most) if plan.adaptive else plan.rows
        if plan.budget_tokens is not None:
            rows = min(rows, plan.budget_tokens)
        return replace(plan, rows=rows, free_rows=times.free_rows if prunes else 0)

    def _known(self, ranking: Ranking, sampling: SamplingOptions, *, may_measure: bool) -> StepTimes | None:
        """What was measured, now or earlier; None where nothing was, or where it cannot be kept."""
        with self._lock:
            if self._looked:
                return self._times
            record, key = self._record()
            if not record.is_kept:
                self._looked = True
                return None
            self._times = _read(record.read(), key)
            if self._times is None and may_measure:
                times = self._measured(ranking, sampling)
                # What the next start would not know must not decide what this one picks.
                with contextlib.suppress(OSError):
                    record.write({**key, "seconds": {str(rows): seconds for rows, seconds in times.seconds.items()}})
                    self._times = times
            self._looked = may_measure or self._times is not None
            return self._times

    def _record(self) -> tuple[CacheRecord, dict[str, Any]]:
        """Where the times are kept, and under which conditions they hold."""
        session, files = self._session, self._bundle.manifest.files
        folder = str(self._bundle.path.resolve())
        key = {
            "version": RECORD_VERSION,
            "files": {name: files[name].sha256 for name in self._bundle.manifest.fixed_files},
            "onnxruntime": onnxruntime_module().__version__,
            "cores": os.cpu_count(),
        }
        return CacheRecord("pace", f"{folder}\n{session.threads}\n{','.join(session.providers)}"), key

    def _measured(self, ranking: Ranking, sampling: SamplingOptions) -> StepTimes:
        """Time a few steps of as many rows as memory holds."""
        begun = time.perf_counter()
        session = self._session
        fitting = session.fitting_rows(
            ROWS[-1], PROMPT_TOKENS, NEW_TOKENS, available_memory(), layers=len(ranking.layers)
        )
        sizes = [rows for rows in ROWS if rows <= fitting]
        times = measure_steps(session, ranking, sampling, sizes, new_tokens=NEW_TOKENS, rounds=ROUNDS)
        self.measured_s += time.perf_counter() - begun
        return times


def _read(document: Any, key: Mapping[str, Any]) -> StepTimes | None:
    """The times of a record that was made under the same conditions; None for any other."""
    if not isinstance(document, dict) or {name: document.get(name) for name in key} != key:
        return None
    seconds = document.get("seconds")
    if not isinstance(seconds, dict) or not seconds:
        return None
    try:
        times = {int(rows): float(taken) for rows, taken in seconds.items()}
    except (TypeError, ValueError):
        return None
    return StepTimes(dict(sorted(times.items()))) if all(taken > 0 for taken in times.values()) else None
