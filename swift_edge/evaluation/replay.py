"""What adaptive and pruned picks would have been, and cost, on candidates that were written to their ends.

A candidate does not depend on the others, and `Steering` decides from token counts, scores and answers alone: what a
pick would do with these candidates is what it does when it writes them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swift_edge.results import Candidate
from swift_edge.scoring.calibration import PREFIX_TOKENS
from swift_edge.selection.adaptive.steering import Completed, Plan, Steering
from swift_edge.training.store.format import StoredCandidate


@dataclass(frozen=True, slots=True)
class Replayed:
    """A pick that was replayed."""

    picked: int
    """The candidate that is picked, by its place among those given."""
    p_correct: float | None
    """Probability that it is right, as the decision has it."""
    tokens: int
    """Response tokens of all candidates, those that were dropped included."""
    steps: Mapping[int, int]
    """Decode steps by the number of their rows."""
    candidates: tuple[Candidate, ...]
    """Those that were begun, as far as they were written; one that was dropped has no text, and its whole's score."""


def replay(plan: Plan, candidates: Sequence[StoredCandidate], head: str) -> Replayed:
    """Pick as `plan` says from the candidates of one problem, in this order, by the scores of the head named `head`.

    `plan` has no budget; at least `plan.most` candidates are given, with running scores at `PREFIX_TOKENS`.
    """
    steering = Steering(plan)
    live = dict.fromkeys(range(min(plan.rows, len(candidates))), 0)  # tokens so far
    written: dict[int, Candidate] = {}
    steps: Counter[int] = Counter()
    counts = sorted(plan.pruning.token_counts) if plan.pruning is not None else []

    def score_of(index: int) -> float:
        return candidates[index].running[head][PREFIX_TOKENS.index(live[index])]

    def token_ids_of(index: int) -> Sequence[int]:
        return candidates[index].token_ids[: live[index]]

    while live:
        # On to the next step in which a candidate ends, or is compared.
        ahead = min(
            min([candidates[index].n_tokens, *(count for count in counts if count > tokens)]) - tokens
            for index, tokens in live.items()
        )
        steps[len(live)] += ahead
        live = {index: tokens + ahead for index, tokens in live.items()}
        ended = [index for index, tokens in live.items() if tokens == candidates[index].n_tokens]
        for index in ended:
            del live[index]
            written[index] = _candidate(candidates[index], index, head)
        orders = steering.after_step(
            live,
            {
                index: Completed(each.n_tokens, each.scores[head], each.answer, each.cut_off, each.is_foreign(head))
                for index, each in ((index, candidates[index]) for index in ended)
            },
            score_of,
            token_ids_of,
            0.0,
        )
        for index, reason in orders.drop.items():
            written[index] = _candidate(candidates[index], index, head, live.pop(index), reason)
        live |= dict.fromkeys(range(steering.begun - orders.begin, steering.begun), 0)
    in_order = tuple(written[index] for index in sorted(written))
    decided = plan.decision.apply(in_order)
    return Replayed(
        decided.ranked[0], decided.p_correct, sum(candidate.n_tokens for candidate in in_order), steps, in_order
    )


def _candidate(
    stored: StoredCandidate, index: int, head: str, tokens: int | None = None, dropped_because: str | None = None
) -> Candidate:
    """A candidate as far as it was written."""
    return Candidate(
        index=index,
        text=stored.text if tokens is None else "",
        token_ids=stored.token_ids[:tokens],
        score=stored.scores[head],
        logprob=stored.logprob,
        finish_reason="dropped" if tokens is not None else "length" if stored.cut_off else "stop",
        dropped_because=dropped_because,
        cut_off=stored.cut_off and tokens is None,
        distance=stored.distances.get(head),
    )
