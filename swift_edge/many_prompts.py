"""The picks of one `pick_many`: prompts as they come, a window of picks under way, and answers as they are done."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Final

from swift_edge.engine.engine import DEFAULT_ROWS
from swift_edge.engine.model import Prompt
from swift_edge.errors import SwiftEdgeError
from swift_edge.handle import Handle, begin, require_waiting
from swift_edge.results import FailedPick, Selection
from swift_edge.selection.planning import PlannedPick

WINDOW_ROWS: Final = 2 * DEFAULT_ROWS
"""Candidates under way in one `pick_many`: as many as decode, and as many that are read ahead."""


class ManyPicks:
    """The picks of one `pick_many`: a window of them is under way."""

    def __init__(self, planned: PlannedPick, prompts: Iterable[Prompt], *, raises: bool) -> None:
        """Take prompts from a list or any other iterable; `raises` says what becomes of one that fails."""
        self._planned = planned
        self._raises = raises
        self._key = object()
        self._mail: SimpleQueue[_Arrived | _Ended | _Done] = SimpleQueue()
        self._prompts = _Prompts(prompts, self._mail.put)
        self._handles: dict[int, Handle] = {}
        self._submitted = 0
        self._most = max(2, WINDOW_ROWS // planned.plan.rows)

    def answered(self) -> Iterator[Any]:
        """Selections, and what failed, as they are done."""
        error: BaseException | None = None
        waiting: _Arrived | None = None
        over = False
        self._prompts.ask()
        try:
            while not over or self._handles or waiting is not None:
                if waiting is not None and len(self._handles) < self._most:
                    failed = self._submit(waiting.prompt)
                    waiting = None
                    if failed is None or not self._raises:
                        self._prompts.ask()
                    else:
                        error, over = failed.error, True
                    if failed is not None and not self._raises:
                        yield failed
                    continue
                require_waiting(self._planned.model.engine)
                match self._mail.get():
                    case _Arrived() as arrived:
                        waiting = arrived if error is None else None
                    case _Ended(failure):
                        over, error = True, error or failure
                    case _Done(index):
                        answer = self._answer(index)
                        if self._raises and isinstance(answer, FailedPick):
                            error, over, waiting = error or answer.error, True, None
                        else:
                            yield answer
        finally:
            self._prompts.leave()
            for handle in self._handles.values():
                handle.cancel()
        if error is not None:
            raise error

    def _answer(self, index: int) -> Selection | FailedPick:
        """The result of a pick that is done; the caller's own functions run, and fail, for it alone."""
        try:
            return self._handles.pop(index).result()
        except Exception as error:
            return FailedPick(index, error)

    def _submit(self, prompt: Prompt) -> FailedPick | None:
        """Begin a pick; returns what was wrong with its prompt, if something was."""
        started, planned = time.perf_counter(), self._planned
        index, self._submitted = self._submitted, self._submitted + 1
        try:
            prompt_ids = planned.prompt_ids(prompt)
            handle = begin(planned, prompt_ids, watched=False, started=started, prompt_index=index, key=self._key)
        except SwiftEdgeError as failure:
            return FailedPick(index, failure)
        self._handles[index] = handle
        handle.when_done(lambda: self._mail.put(_Done(index)))
        return None


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A prompt is there."""

    prompt: Prompt


@dataclass(frozen=True, slots=True)
class _Ended:
    """There are no more prompts, for a reason that may be an error."""

    error: BaseException | None


@dataclass(frozen=True, slots=True)
class _Done:
    """A pick is done."""

    index: int


class _Prompts:
    """Prompts, one whenever it is asked for. Rows go on while an iterator is waited for, in a thread of its own."""

    def __init__(self, prompts: Iterable[Prompt], tell: Callable[[_Arrived | _Ended], None]) -> None:
        """Tell of each prompt, and of the end."""
        self._prompts = iter(prompts)
        self._tell = tell
        self._asked = threading.Semaphore(0)
        self._left = False
        self._waits = not isinstance(prompts, (list, tuple))
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        """Ask for the next prompt."""
        if self._waits:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="swift-edge prompts", daemon=True)
                self._thread.start()
            self._asked.release()
        else:
            self._tell(self._next())

    def leave(self) -> None:
        """Want no more."""
        self._left = True
        self._asked.release()

    def _run(self) -> None:
        going_on = True
        while going_on:
            self._asked.acquire()
            if self._left:
                return
            mail = self._next()
            going_on = isinstance(mail, _Arrived)
            self._tell(mail)

    def _next(self) -> _Arrived | _Ended:
        try:
            return _Arrived(next(self._prompts))
        except StopIteration:
            return _Ended(None)
        except BaseException as error:  # it belongs to the caller's thread, which waits
            return _Ended(error)


def in_order_of_prompts(answered: Iterator[Any]) -> Iterator[Any]:
    """Keep back what is done before one of an earlier prompt."""
    kept: dict[int, Any] = {}
    due = 0
    for answer in answered:
        kept[answer.prompt_index] = answer
        while due in kept:
            yield kept.pop(due)
            due += 1
