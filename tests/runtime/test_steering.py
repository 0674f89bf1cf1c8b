"""How a pick goes about its candidates: what is pruned, when it ends, and that budgets hold whatever comes."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_edge.answers import answer_task
from swift_edge.errors import InvalidOptionError
from swift_edge.options import PickOptions
from swift_edge.scoring import AnswerCalibration, Calibration, PrefixCalibration
from swift_edge.selection.adaptive.pruning import Pruning
from swift_edge.selection.adaptive.steering import Completed, Plan, Steering
from swift_edge.selection.decision import Decision

CALIBRATION = Calibration(
    1.0,
    0.0,
    0.5,
    0.0,
    100,
    50,
    AnswerCalibration(1.0, 0.0, 0.0, 100),
    {16: PrefixCalibration(0.5, 0.0, 100), 32: PrefixCalibration(1.0, 0.0, 100)},
)
CALIBRATED = Decision("calibrated", answer_task("exact"), None, None, CALIBRATION)
BY_SCORE = Decision("best", None, None, None, None)


def plan(n: object = "auto", decision: Decision = CALIBRATED, **options: object) -> Plan:
    return Plan.of(PickOptions.of(None, {"n": n, **options}), decision)


class Play:
    """Candidates with lengths, scores and answers known beforehand, stepped through as the loop would."""

    def __init__(
        self, steered: Plan, lengths: Sequence[int], scores: Sequence[float], answers: Sequence[str | None]
    ) -> None:
        self.steering = Steering(steered)
        self.lengths, self.scores, self.answers = lengths, scores, answers
        self.live = dict.fromkeys(range(steered.rows), 0)
        self.completed: dict[int, int] = {}
        self.dropped: dict[int, tuple[int, str]] = {}
        self.most_rows = 0

    def run(self, seconds_per_step: float = 0.0) -> "Play":
        elapsed = 0.0
        while self.live:
            self.most_rows = max(self.most_rows, len(self.live))
            elapsed += seconds_per_step
            self.live = {index: tokens + 1 for index, tokens in self.live.items()}
            ended = [index for index, tokens in self.live.items() if tokens == self.lengths[index]]
            self.completed |= {index: self.live.pop(index) for index in ended}
            orders = self.steering.after_step(
                self.live,
                {index: Completed(self.lengths[index], self.scores[index], self.answers[index]) for index in ended},
                self.scores.__getitem__,
                lambda index: [index],
                elapsed,
            )
            self.dropped |= {index: (self.live.pop(index), reason) for index, reason in orders.drop.items()}
            self.live |= dict.fromkeys(range(self.steering.begun - orders.begin, self.steering.begun), 0)
        assert self.steering.stopped_because is not None
        return self

    @property
    def tokens(self) -> int:
        return sum(self.completed.values()) + sum(tokens for tokens, _ in self.dropped.values())


def test_it_ends_when_the_first_four_agree_and_goes_on_while_they_do_not() -> None:
    agreed = Play(plan(), [10] * 16, [3.0] * 16, ["7"] * 16).run()
    assert (agreed.steering.stopped_because, agreed.steering.begun) == ("settled", 4)
    split = Play(plan(), [10] * 16, [-1.0] * 16, [str(index) for index in range(16)]).run()
    assert split.steering.begun > 8


def test_min_confidence_is_what_it_goes_on_for() -> None:
    sure = replace(CALIBRATED, min_confidence=0.999)
    found = Play(plan(decision=sure, max_n=12), [10] * 12, [0.5] * 12, ["7"] * 12).run()
    assert found.steering.begun == 12
    assert Play(plan(max_n=12), [10] * 12, [0.5] * 12, ["7"] * 12).run().steering.begun < 12


def test_without_a_calibration_a_lead_that_will_stay_ends_it() -> None:
    majority = Decision("majority", answer_task("exact"), None, None, None)
    assert Play(plan(decision=majority), [10] * 16, [0.0] * 16, ["7"] * 16).run().steering.begun == 4
    assert Play(plan(decision=majority), [10] * 16, [0.0] * 16, ["7", "8"] * 8).run().steering.begun == 16


def test_for_open_ended_output_one_more_has_to_be_worth_it() -> None:
    assert Play(plan(decision=BY_SCORE), [10] * 16, [0.5] * 16, [None] * 16).run().steering.begun == 4
    rising = Play(plan(decision=BY_SCORE), [10] * 16, [float(index) for index in range(16)], [None] * 16).run()
    assert rising.steering.begun > 4


def test_a_row_that_ends_is_taken_over_at_once_where_those_at_work_cannot_settle_it() -> None:
    # 0 to 3 disagree; 1 to 3 end late. The row of 0 stays free, for the first four are to be known first.
    lengths = [5, 30, 30, 30, *[30] * 12]
    found = Play(plan(), lengths, [-3.0] * 16, [str(index) for index in range(16)])
    found.run()
    assert found.steering.begun > 4
    assert found.most_rows == 4


def test_auto_drops_what_is_far_behind_at_the_same_token_count() -> None:
    found = Play(plan(4, prune="auto"), [20, 40, 40, 40], [0.0, 2.0, 1.5, -3.0], ["1", "2", "2", "3"]).run()
    # At 16 tokens the slope is 0.5: log-odds 0.0, 1.0, 0.75 and -1.5; at 32 it is 1.
    assert found.dropped == {3: (16, "at 16 tokens its log-odds of being right were 2.50 behind the best")}
    assert found.steering.stopped_because == "max_n"


@pytest.mark.parametrize(("free_rows", "dropped"), [(0, {2, 3}), (2, {2, 3}), (3, {3}), (4, set())])
def test_rows_that_cost_nothing_are_not_dropped_but_the_weakest_of_those_that_cost(
    free_rows: int, dropped: set[int]
) -> None:
    lengths, scores = [40] * 4, [2.0, 1.5, -3.0, -4.0]
    paced = replace(plan(4, prune="auto"), free_rows=free_rows)
    assert set(Play(paced, lengths, scores, ["1", "1", "2", "3"]).run().dropped) == dropped


def test_the_weakest_are_dropped_first_whatever_count_they_are_at() -> None:
    """Of rows at 16 and at 32 tokens, those at 16 stayed, however weak they were."""
    steering = Steering(replace(plan(6, prune="auto"), free_rows=5))
    scores = [4.0, 4.0, -8.0, 4.0, 4.0, 2.0]
    # Log-odds at 16 tokens are half of the score; at 32 the whole of it: behind by 6.0 and by 2.0.
    orders = steering.after_step(
        {0: 16, 1: 16, 2: 16, 3: 32, 4: 32, 5: 32}, {}, scores.__getitem__, lambda index: [index], elapsed_s=0.0
    )
    assert set(orders.drop) == {2}


def test_a_row_that_costs_nothing_is_dropped_where_a_candidate_waits_for_it() -> None:
    paced = replace(plan("auto", max_n=5), free_rows=4)
    play = Play(paced, [40] * 5, [2.0, -1.5, -1.0, -3.0, 2.0], ["1", "2", "3", "4", "5"])
    play.run()
    assert 3 in play.dropped


def test_a_schedule_keeps_the_best() -> None:
    found = Play(plan(6, decision=BY_SCORE, prune={3: 4, 5: 2}), [9] * 6, [5.0, 1.0, 4.0, 2.0, 3.0, 0.0], [None] * 6)
    found.run()
    assert {index: tokens for index, (tokens, _) in found.dropped.items()} == {1: 3, 5: 3, 3: 5, 4: 5}
    assert found.dropped[5][1] == "at 3 tokens 5 others had a greater score, 4 stay"


def test_two_different_texts_stay_until_an_answer_can_be_seen() -> None:
    rule = Pruning({8: 1}, None)
    arrived = {0: (1, 2), 1: (1, 2), 2: (1, 3), 3: (1, 4)}
    worth = {0: 4.0, 1: 3.0, 2: 2.0, 3: 1.0}
    assert set(rule.dropped(8, arrived, worth, answered=False)) == {3}
    assert set(rule.dropped(8, arrived, worth, answered=True)) == {1, 2, 3}


def test_a_score_that_is_no_number_is_the_weakest() -> None:
    dropped = Pruning({8: 1}, None).dropped(8, {0: (1,), 1: (2,)}, {0: math.nan, 1: 0.0}, answered=True)
    assert set(dropped) == {0}


def test_auto_without_calibrated_prefixes_drops_nothing() -> None:
    assert plan(8, decision=BY_SCORE, prune="auto").pruning is None
    assert plan(8, decision=replace(CALIBRATED, calibration=replace(CALIBRATION, prefixes={})), prune="auto").is_fixed


def test_auto_prunes_unless_it_is_told_not_to_and_a_number_does_not() -> None:
    assert plan("auto").pruning == plan("auto", prune="auto").pruning is not None
    assert plan("auto", prune="off").pruning is None
    assert plan(8).pruning is None
    assert plan("auto", prune={16: 2}).pruning == Pruning({16: 2}, None)


def test_answers_are_compared_only_when_there_are_new_ones() -> None:
    """They were compared at every step, up to twice."""
    compared = 0

    class Counting(type(CALIBRATED.task)):  # type: ignore[misc]
        def groups(self, answers: Sequence[str | None]) -> list[list[int]]:
            nonlocal compared
            compared += 1
            return super().groups(answers)

    task = Counting(*(getattr(CALIBRATED.task, each.name) for each in fields(CALIBRATED.task)))  # type: ignore[arg-type]
    Play(
        plan(decision=replace(CALIBRATED, task=task)), [30] * 16, [0.0] * 16, [str(index) for index in range(16)]
    ).run()
    assert compared <= 8  # four candidates at a time end together, and what is left may be asked about with them


def test_a_budget_of_tokens_gives_the_last_of_them_to_the_best() -> None:
    found = Play(plan(4, budget_tokens=120), [60] * 4, [0.0, 3.0, 1.0, 2.0], ["1"] * 4).run()
    assert list(found.completed) == [1]
    assert found.tokens <= 120
    assert found.steering.stopped_because == "budget_tokens"


def test_a_budget_that_is_short_is_not_spent_on_new_candidates() -> None:
    """Those were begun in the rows of dropped ones as if they needed one token, and dropped after two or three."""
    found = Play(plan(budget_tokens=100), [36] * 16, [0.0, 3.0, 1.0, 2.0, *[5.0] * 12], ["1"] * 16).run()
    assert found.steering.begun == 4
    assert found.completed == {1: 36}


def test_a_budget_of_time_ends_it_with_the_step_that_is_over() -> None:
    found = Play(plan(4, budget_seconds=1.0), [60] * 4, [0.0] * 4, ["1"] * 4).run(seconds_per_step=0.3)
    assert found.steering.stopped_because == "budget_seconds"
    assert {tokens for tokens, _ in found.dropped.values()} == {4}


@given(
    st.sampled_from(["auto", 1, 3, 8]),
    st.one_of(st.none(), st.integers(1, 300)),
    st.sampled_from([None, "auto", {4: 2, 20: 1}]),
    st.lists(
        st.tuples(
            st.integers(1, 60), st.floats(-5, 5) | st.just(math.nan), st.sampled_from([None, "1", "2", "3", "4"])
        ),
        min_size=16,
        max_size=16,
    ),
    st.booleans(),
)
def test_whatever_comes_it_ends_within_its_budget_with_something_to_pick(
    n: object,
    budget: int | None,
    prune: object,
    candidates: list[tuple[int, float, str | None]],
    calibrated: bool,
) -> None:
    lengths, scores, answers = zip(*candidates, strict=True)
    decision = CALIBRATED if calibrated else BY_SCORE
    found = Play(plan(n, decision=decision, budget_tokens=budget, prune=prune), lengths, scores, answers).run()
    assert budget is None or found.tokens <= budget
    assert found.steering.begun == len(found.completed) + len(found.dropped) <= 16
    if budget is None:
        assert found.completed
    again = Play(plan(n, decision=decision, budget_tokens=budget, prune=prune), lengths, scores, answers).run()
    assert (again.completed, again.dropped) == (found.completed, found.dropped)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n": 0}, "n is 0; expected an integer from 1 to 10000, or auto"),
        ({"n": "some"}, "n is 'some'"),
        ({"n": 8, "max_n": 4}, "max_n is 4 and n is 8"),
        ({"max_n": 0}, "max_n is 0"),
        ({"budget_tokens": 0}, "budget_tokens is 0"),
        ({"budget_seconds": 0.0}, "budget_seconds is 0.0"),
        ({"prune": "hard"}, "prune is 'hard'; expected auto, off, how many candidates stay"),
        ({"prune": {}}, "prune is {}"),
        ({"prune": {16: 0}}, "prune is {16: 0}"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidOptionError) as raised:
        plan(**options)  # type: ignore[arg-type]
    assert str(raised.value).startswith(told)
