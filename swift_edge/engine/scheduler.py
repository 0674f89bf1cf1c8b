"""Who is next: which prompt is read, and which candidates are given rows.

The greater priority goes first. Within a priority keys take turns: whoever has been given the fewest rows is next, so
that a request for many candidates does not hold up one for a single candidate. Requests of one key are served in the
order of their arrival. The turns are those of fair queueing: a key moves back by what it is given, and the clock that
newcomers begin at moves on by their share of it, so that no stream of small requests holds up a large one for good.
"""

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from swift_edge.engine.request import Ticket


@dataclass(slots=True, eq=False)
class _Line:
    """The requests of one key and priority that wait."""

    priority: int
    served: float
    """Rows that were given to it, and chunks that were read for it: the line with the fewest is next."""
    tickets: list[Ticket] = field(default_factory=list)
    """In the order of their arrival."""
    version: int = 0
    """Changes with its place: what the heap holds of an earlier one is out of date."""


class Scheduler:
    """The requests that wait, in the order in which they are to be served."""

    def __init__(self) -> None:
        """Start without requests."""
        self._lines: dict[tuple[object, int], _Line] = {}
        self._heap: list[tuple[int, float, int, int, _Line]] = []
        self._clock = 0.0

    def __len__(self) -> int:
        """Keys and priorities of which requests wait."""
        return len(self._lines)

    def add(self, ticket: Ticket) -> None:
        """Put a request at the end of its key's line."""
        name = ticket.key, ticket.request.priority
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = _Line(ticket.request.priority, self._clock)
        insort(line.tickets, ticket, key=lambda each: each.number)
        self._place(line)

    def remove(self, ticket: Ticket) -> None:
        """Take a request out, if it waits."""
        name = ticket.key, ticket.request.priority
        line = self._lines.get(name)
        if line is None or ticket not in line.tickets:
            return
        line.tickets.remove(ticket)
        line.version += 1
        if line.tickets:
            self._place(line)
        else:
            del self._lines[name]

    def lines(self) -> Iterator[Sequence[Ticket]]:
        """The requests of each key, the next key first; what is charged meanwhile counts from the next call on."""
        entries = []
        try:
            while self._heap:
                entry = heappop(self._heap)
                *_, version, line = entry
                if version == line.version:
                    entries.append(entry)
                    yield line.tickets
        finally:
            for entry in entries:
                *_, version, line = entry
                if version == line.version:
                    heappush(self._heap, entry)

    def charge(self, ticket: Ticket, served: int) -> None:
        """Note that a request was served: rows were given to its candidates, or chunks of its prompt read."""
        line = self._lines.get((ticket.key, ticket.request.priority))
        if line is not None:
            self._clock += served / len(self._lines)
            line.served += served
            self._place(line)

    def _place(self, line: _Line) -> None:
        """Put a line where it belongs now."""
        line.version += 1
        heappush(self._heap, (-line.priority, line.served, line.tickets[0].number, line.version, line))
