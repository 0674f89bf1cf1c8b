"""What adaptive and pruned picks take on a larger model: lengths and drops of one model's picks, steps of another.

    python tests/bench/replay_plans.py BUNDLE --candidates RESULTS/candidates --head FILE --task NAME
        [--problems 8] [--rounds 3] [-n 16] [--prompt-tokens 128] [--temperature 0.1] [--top-p 0.9]

RESULTS is what `swift-edge eval` wrote with a bundle whose head is FILE. Its candidates say when a candidate ends, what
it answers and what it scores; BUNDLE, which may have random weights, decodes as many rows at every step as a pick of
those candidates has, reads all its hidden states and scores them. All plans take the same problems in turn, in another
order in every round; a time is that of a whole pick, from the prompt on.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import threading
import time
from collections.abc import Sequence

import numpy as np

from swift_edge import __version__
from swift_edge.arrays import Ids
from swift_edge.engine.engine import Engine
from swift_edge.engine.request import Consumer, Generation, Orders, Step
from swift_edge.evaluation.benchmark import Shape, median_with_interval, planned_shape, random_head
from swift_edge.evaluation.economy import PLANS, plan_of
from swift_edge.options import PickOptions, SamplingOptions
from swift_edge.scoring.calibration import PREFIX_TOKENS
from swift_edge.scoring.head import load_head
from swift_edge.scoring.scorer import Scorer
from swift_edge.selection.adaptive.steering import Completed, Plan, Steering
from swift_edge.selection.decision import Decision
from swift_edge.selection.planning import Planner
from swift_edge.training.store.format import StoredCandidate
from swift_edge.training.store.writer import Store

HEAD = "default"
"""What `eval` calls the head of the bundle itself."""


class Replayed(Consumer):
    """The candidates of a pick, ended and dropped as those that are shown, whatever tokens are drawn for them."""

    def __init__(self, plan: Plan, scorer: Scorer, shown: Sequence[StoredCandidate]) -> None:
        """Begin with no tokens."""
        self.tokens = 0
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self._scorer, self._shown, self._steering = scorer, shown, Steering(plan)
        self._live = dict.fromkeys(range(plan.rows), 0)  # tokens so far

    def step(self, step: Step) -> Orders:
        """Score the tokens, and do what is decided about the candidates that are shown."""
        shown, steering = self._shown, self._steering
        self.tokens += len(step.candidates)
        self._scorer.evaluate_step(step)
        live = {index: count + (index in step.candidates) for index, count in self._live.items()}
        ended = [index for index, count in live.items() if count == shown[index].n_tokens]
        for index in ended:
            del live[index]
        self._live = live
        decided = steering.after_step(
            live,
            {
                index: Completed(each.n_tokens, each.scores[HEAD], each.answer, each.cut_off)
                for index, each in ((index, shown[index]) for index in ended)
            },
            lambda index: shown[index].running[HEAD][PREFIX_TOKENS.index(live[index])],
            lambda index: shown[index].token_ids[: live[index]],
            0.0,
        )
        for index in decided.drop:
            live.pop(index, None)
        live |= dict.fromkeys(range(steering.begun - decided.begin, steering.begun), 0)
        return Orders({**dict.fromkeys(ended, "ended"), **decided.drop}, decided.begin)

    def closed(self, error: BaseException | None) -> None:
        """All have ended."""
        self.error = error
        self.ended.set()


def replayed(
    engine: Engine,
    scorer: Scorer,
    plan: Plan,
    shown: Sequence[StoredCandidate],
    prompt: Ids,
    sampling: SamplingOptions,
) -> tuple[float, int]:
    """Seconds and tokens of a pick of these candidates, decoded by `engine` and scored by `scorer`."""
    begun = time.perf_counter()
    longest = max(each.n_tokens for each in shown)
    replay = Replayed(plan, scorer, shown)
    engine.submit(
        Generation(prompt, sampling, plan.rows, 0, longest + 1, frozenset(), scorer.reads, kept_rows=plan.rows), replay
    )
    replay.ended.wait()
    if replay.error is not None:
        raise replay.error
    return time.perf_counter() - begun, replay.tokens


def main() -> None:
    """Run the rounds and print the median time of every plan and its ratio to that of all candidates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--candidates", required=True)
    parser.add_argument("--head", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--problems", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-n", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--top-p", type=float, default=0.9)
    arguments = parser.parse_args()
    store = Store.open(arguments.candidates)
    per_problem = len(store.candidates) // store.problems
    if per_problem < arguments.n:
        parser.error(f"{arguments.candidates} holds {per_problem} candidates per problem; expected {arguments.n}")
    decision = Decision.of(load_head(arguments.head), PickOptions(strategy="calibrated", task=arguments.task))
    planner = Planner.open(arguments.bundle)
    engine, session = planner.model.engine, planner.model.session
    scorer = Scorer.by_head(random_head(planner.model.bundle.manifest), ())
    paced = planner.pace.applied
    plans = {name: paced(plan_of(decision, arguments.n, asked)) for name, asked in ({"all": {}} | PLANS).items()}
    shape = Shape(arguments.n, arguments.prompt_tokens, 1)
    sampling = planned_shape(planner, shape, temperature=arguments.temperature, top_p=arguments.top_p).sampling
    vocabulary = session.vocab_size
    prompt = np.random.default_rng(0).integers(0, vocabulary, arguments.prompt_tokens)  # [p]
    order = random.Random(0)
    chosen = sorted(order.sample(range(store.problems), arguments.problems))
    times: dict[str, list[list[float]]] = {plan: [] for plan in plans}  # by round, of every problem
    written = dict.fromkeys(plans, 0)
    for _ in range(arguments.rounds):
        found: dict[str, list[float]] = {plan: [] for plan in plans}
        for problem in chosen:
            shown = store.candidates[per_problem * problem :][: arguments.n]
            for plan in order.sample(list(plans), len(plans)):
                seconds, tokens = replayed(engine, scorer, plans[plan], shown, prompt, sampling)
                found[plan].append(seconds)
                written[plan] += tokens
        for plan, seconds in found.items():
            times[plan].append(seconds)
    print(f"swift-edge {__version__}, {platform.machine()}, {session.threads} threads, {arguments}")
    print(f"{'plan':18}{'rows':>6}{'s per pick':>12}{'of all':>9}{'':18}{'tokens of all':>15}")
    whole = np.array(times["all"]).T  # [problems, rounds]
    for plan, seconds in times.items():
        mine = np.array(seconds).T
        ratio = median_with_interval(list(mine.sum(axis=0) / whole.sum(axis=0)))
        whole_s = statistics.median(mean.mean() for mean in mine.T)
        print(
            f"{plan:18}{plans[plan].rows:6}{whole_s:12.2f}{ratio['median']:9.3f}"
            f"  {ratio['low']:.3f} to {ratio['high']:.3f}{written[plan] / written['all']:14.1%}"
        )


if __name__ == "__main__":
    main()
