"""The order in which requests are served: whose prompt is read next, and who gets rows.

Greater priorities go first. Within a priority, keys take turns by weighted fair queueing; the weight of a key is the
number of its waiting candidates. Requests of one key are served in order of arrival. A key that is served moves back by
what it got divided by its weight, and the clock at which new keys start advances by the same divided by the weight of
all. So neither a large request nor a stream of small ones keeps the others waiting for good.
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
    """What it has been given, divided by its weight: the line with the least is next."""
    weight: int = 0
    """Waiting candidates, counting at least one per request."""
    tickets: list[Ticket] = field(default_factory=list)
    """In the order of their arrival."""
    version: int = 0
    """Changes with its place: heap entries of earlier versions are out of date."""


class Scheduler:
    """The requests that wait, in the order in which they are to be served."""

    def __init__(self) -> None:
        """Start without requests."""
        self._lines: dict[tuple[object, int], _Line] = {}
        self._heap: list[tuple[int, float, int, int, _Line]] = []
        self._weights: dict[Ticket, int] = {}
        self._weight = 0  # of all
        self._clock = 0.0

    def __len__(self) -> int:
        """Number of pairs of key and priority with waiting requests."""
        return len(self._lines)

    def add(self, ticket: Ticket) -> None:
        """Put a request at the end of its key's line."""
        name = ticket.key, ticket.request.priority
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = _Line(ticket.request.priority, self._clock)
        insort(line.tickets, ticket, key=lambda each: each.number)
        self._weigh(line, ticket, max(1, len(ticket.waiting)))
        self._place(line)

    def remove(self, ticket: Ticket) -> None:
        """Take a request out, if it waits."""
        if ticket not in self._weights:
            return
        name = ticket.key, ticket.request.priority
        line = self._lines[name]
        line.tickets.remove(ticket)
        self._weigh(line, ticket, 0)
        line.version += 1
        if line.tickets:
            self._place(line)
        else:
            del self._lines[name]

    def lines(self) -> Iterator[Sequence[Ticket]]:
        """The requests of each key, the next key first; charges made meanwhile count from the next call on."""
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

    def charge(self, ticket: Ticket, *, chunks: int = 0, rows: int = 0) -> None:
        """Note that a request was served: chunks of its prompt were read, or rows given to its candidates."""
        if ticket not in self._weights:
            return
        line = self._lines[ticket.key, ticket.request.priority]
        self._clock += (chunks + rows) / self._weight
        line.served += (chunks + rows) / line.weight
        if rows:
            self._weigh(line, ticket, max(1, self._weights[ticket] - rows))
        self._place(line)

    def _weigh(self, line: _Line, ticket: Ticket, weight: int) -> None:
        """Set the weight of a request; 0 takes it out."""
        change = weight - self._weights.pop(ticket, 0)
        line.weight += change
        self._weight += change
        if weight:
            self._weights[ticket] = weight

    def _place(self, line: _Line) -> None:
        """Put a line where it belongs now."""
        line.version += 1
        heappush(self._heap, (-line.priority, line.served, line.tickets[0].number, line.version, line))
