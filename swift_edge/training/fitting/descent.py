"""Weights to a loss and its gradient over examples, and the descent to better ones: L-BFGS, stopped early.

The inputs x of a token are standardised, (raw - mean) / scale, and the weights w are for these; but x is never made:
w·x + b = (w / scale)·raw + (b - Σ w·mean / scale), and the gradient is carried back the same way. Products are
float32, sums over blocks float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from swift_edge.arrays import Doubles
from swift_edge.scoring.calibration import sigmoid
from swift_edge.scoring.quality import within_problem_auroc
from swift_edge.system.extras import import_extra
from swift_edge.training.fitting.examples import Examples
from swift_edge.training.fitting.objectives import (
    PER_CANDIDATE,
    Counts,
    Loss,
    contrasts,
    loss_sums,
    prefix_gradients,
    prefix_scores,
)

REPORTED_ITERATIONS: Final = 10
"""Iterations from one line of progress to the next."""


@dataclass(frozen=True, slots=True, eq=False)
class Standard:
    """How inputs are standardised."""

    mean: Doubles  # [f]
    """Taken off each input."""
    scale: Doubles  # [f]
    """Divides what is left."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights for standardised inputs."""

    weight: Doubles  # [2, f], or [1, f] without a gate
    """Gate row, if there is a gate, and reward row."""
    bias: Doubles  # [2], or [1]
    """Added to the products."""

    def flat(self) -> Doubles:
        """As one vector, a copy."""
        return np.concatenate([self.weight.ravel(), self.bias])

    @classmethod
    def of(cls, vector: Doubles, inputs: int) -> "Weights":
        """Read what `flat` made; views of `vector`."""
        rows = len(vector) // (inputs + 1)
        return cls(vector[: rows * inputs].reshape(rows, inputs), vector[rows * inputs :])

    def gated(self) -> "Weights":
        """The same scores with a gate, which weighs all tokens alike as yet."""
        return Weights(np.stack([np.zeros_like(self.weight[0]), self.weight[0]]), np.array([0.0, self.bias[0]]))

    def folded(self, standard: Standard, dtype: Any = np.float32) -> tuple[NDArray[Any], Doubles]:
        """Weight, as `dtype`, and bias for raw inputs: the same scores."""
        weight = (self.weight / standard.scale).astype(dtype)
        # From the rounded weights: then the rounding moves with the input and not with its mean.
        return weight, self.bias - weight.astype(np.float64) @ standard.mean


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What weights come to on some problems."""

    loss: float
    """The loss, without the penalty on the weights."""
    prefixes: Doubles  # [c, s]
    """Score of every prefix; the last one is the whole response."""
    gradient: Doubles
    """How the loss moves with the flat weights; empty if not asked for."""

    @property
    def scores(self) -> Doubles:
        """Score of every whole response, `[c]`."""
        return self.prefixes[:, -1]


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """A loss over the problems of a range, as a function of the weights."""

    examples: Examples
    """Candidates and their tokens."""
    problems: range
    """The problems that count."""
    standard: Standard
    """How inputs are standardised."""
    gate: bool
    """Whether tokens are weighted."""
    loss: Loss = "bce"
    """The loss of scores."""
    pairwise_weight: float = 0.0
    """Weight of the pairwise loss that is added to it."""
    pieces: Counts | None = None  # [c, s] of all candidates of `examples`
    """Tokens of each piece, so that prefixes count, too; None where only whole responses do."""
    prefix_weight: float = 1.0
    """Weight of a prefix, where the whole response has 1; the weights are then made to sum to 1."""
    dtype: Any = np.float32
    """Type of the products."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Labels of the candidates that count."""
        return self.examples.candidates.correct[self.examples.members(self.problems)]

    @property
    def numbers(self) -> Counts:
        """Problem of each candidate that counts."""
        return self.examples.candidates.problems[self.examples.members(self.problems)]

    def measure(self, vector: Doubles, *, gradient: bool) -> Measured:
        """The loss at these flat weights, the scores, and if asked for the gradient: one pass over the tokens."""
        examples, rows = self.examples, self.examples.rows
        inputs = rows.inputs
        weight, bias = Weights.of(vector, inputs).folded(self.standard, self.dtype)
        members = examples.members(self.problems)
        terms = self._terms()
        every = np.empty((members.stop - members.start, 1 if self.pieces is None else self.pieces.shape[1]))  # [c, s]
        loss = 0.0
        weight_slopes, bias_slopes = np.zeros(weight.shape), np.zeros(len(bias))
        for group in examples.groups(self.problems):
            blocks = list(examples.blocks(group))
            begin = blocks[0].start
            outputs = np.empty((blocks[-1].stop - begin, len(bias)))  # [m, 1 or 2]
            for block in blocks:
                read = rows.read(block.start, block.stop)
                np.add(read @ weight.T, bias, out=outputs[block.start - begin : block.stop - begin])
            within = examples.members(group)
            pieces = self._pieces(within)
            gates = sigmoid(outputs[:, 0]) if self.gate else np.ones(len(outputs))
            rewards = outputs[:, -1]
            prefixes, gate_sums = prefix_scores(gates, rewards, pieces)  # [c, s] each
            shares = self._shares(pieces.shape[1])
            slopes = np.zeros_like(prefixes)
            starts = examples.problem_starts[group.start : group.stop + 1] - within.start
            for name, factor in terms:
                sums, moved = loss_sums(name, prefixes, examples.candidates.correct[within], starts)
                loss += factor * float(sums @ shares)
                slopes += factor * shares * moved
            every[within.start - members.start : within.stop - members.start] = prefixes
            if not gradient:
                continue
            by_gate, by_reward = prefix_gradients(gates, rewards, pieces, prefixes, gate_sums, slopes)
            by_output = by_reward[:, np.newaxis]
            if self.gate:
                by_output = np.column_stack([by_gate * gates * (1 - gates), by_reward])
            by_output = by_output.astype(self.dtype)
            for block in blocks:
                if len(blocks) > 1:
                    read = rows.read(block.start, block.stop)
                weight_slopes += by_output[block.start - begin : block.stop - begin].T @ read
            bias_slopes += by_output.sum(axis=0, dtype=np.float64)
        if not gradient:
            return Measured(loss, every, np.zeros(0))
        # Back through the folding: raw inputs were multiplied, standardised ones are meant.
        weight_slopes -= np.outer(bias_slopes, self.standard.mean)
        weight_slopes /= self.standard.scale
        return Measured(loss, every, Weights(weight_slopes, bias_slopes).flat())

    def auroc(self, scores: Doubles) -> float:
        """Within-problem AUROC of the candidates that count and were not cut off: the others are never picked first."""
        whole = ~self.examples.candidates.cut_off[self.examples.members(self.problems)]
        return within_problem_auroc(scores[whole], self.correct[whole], self.numbers[whole])

    def _terms(self) -> list[tuple[Loss, float]]:
        """Each loss that is added up, and the factor of its sum."""
        members = self.examples.members(self.problems)
        starts = self.examples.problem_starts[self.problems.start : self.problems.stop + 1] - members.start
        ranked = max(1, int(contrasts(self.correct, starts).sum()))
        factor = 1.0 / (max(1, len(self.correct)) if self.loss in PER_CANDIDATE else ranked)
        extra: list[tuple[Loss, float]] = [("pairwise", self.pairwise_weight / ranked)]
        return [(self.loss, factor), *(extra if self.pairwise_weight else [])]

    def _pieces(self, members: slice) -> Counts:
        return self.examples.candidates.tokens[members, np.newaxis] if self.pieces is None else self.pieces[members]

    def _shares(self, prefixes: int) -> Doubles:
        shares = np.array([self.prefix_weight] * (prefixes - 1) + [1.0])
        return cast(Doubles, shares / shares.sum())


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds a descent back."""

    weight_decay: float
    """The loss grows by half of this times the sum of squared weights; biases are free."""
    max_iterations: int
    """Most iterations."""
    patience: int
    """Iterations without better weights after which it ends."""


@dataclass(frozen=True, slots=True, eq=False)
class Descent:
    """Where a descent came to."""

    vector: Doubles
    """The best flat weights: those with the greatest AUROC on the validation problems."""
    iterations: int
    """Iterations that were made."""
    best_iteration: int
    """The iteration that gave the best weights; 0 is the start."""
    auroc: float
    """Within-problem AUROC of the best weights on the validation problems; NaN without such."""


def descend(
    train: Objective,
    validation: Objective | None,
    start: Doubles,
    limits: Limits,
    *,
    report: Callable[[str], None] | None = None,
    keep: Callable[[Descent], None] | None = None,
) -> Descent:
    """Lower the loss of `train`, plus half of the weight decay times the sum of squared weights, from `start`.

    After every iteration the weights are judged by the within-problem AUROC of `validation`, of equal ones by its loss;
    where no validation problem has both labels, by the loss alone. The best are kept, and the descent ends when they
    have not become better for a while. Without validation problems the last weights are the best. `keep` is handed
    where the descent is, at the start and after every iteration, before that is reported: it is what is left where an
    exception such as a `KeyboardInterrupt` ends the descent.
    Raises `MissingExtraError` without SciPy.
    """
    optimize = import_extra("scipy.optimize", "fit", "train")
    biases = len(start) // (train.examples.rows.inputs + 1)
    decayed = np.concatenate([np.full(len(start) - biases, limits.weight_decay), np.zeros(biases)])
    watch = _Watch(validation, limits.patience, report, keep)
    watch.see(start)
    latest = [math.nan]

    def cost(vector: Doubles) -> tuple[float, Doubles]:
        measured = train.measure(vector, gradient=True)
        latest[0] = measured.loss
        return measured.loss + 0.5 * float(decayed @ vector**2), measured.gradient + decayed * vector

    def after_iteration(vector: Doubles) -> None:
        watch.iterations += 1
        if watch.see(vector, latest[0]):
            raise StopIteration  # SciPy ends the descent there

    optimize.minimize(
        cost,
        start.copy(),
        method="L-BFGS-B",
        jac=True,
        callback=after_iteration,
        # The value is rounded in float32; to ask for more than that ends in searches that find nothing.
        options={"maxiter": limits.max_iterations, "maxfun": 20 * limits.max_iterations, "ftol": 1e-9, "gtol": 1e-7},
    )
    return watch.reached()


class _Watch:
    """Judges the weights of each iteration and keeps a copy of the best."""

    def __init__(
        self,
        validation: Objective | None,
        patience: int,
        report: Callable[[str], None] | None,
        keep: Callable[[Descent], None] | None,
    ) -> None:
        self.iterations = 0
        self.best = np.zeros(0)
        self.best_iteration = 0
        self.best_auroc = math.nan
        self._validation = validation
        self._patience = patience
        self._report = report
        self._keep = keep
        self._best_key = (-math.inf, -math.inf)

    def see(self, vector: Doubles, loss: float = math.nan) -> bool:
        """Judge these weights; returns whether it is time to stop."""
        if self._validation is None:
            self.best, self.best_iteration = vector.copy(), self.iterations
            self._hand_over()
            self._tell(f"loss {loss:.4f}")
            return False
        measured = self._validation.measure(vector, gradient=False)
        auroc = self._validation.auroc(measured.scores)
        key = (0.0 if math.isnan(auroc) else auroc, -measured.loss)
        if key > self._best_key:
            # A copy: the optimiser goes on in the same memory.
            self.best, self.best_iteration = vector.copy(), self.iterations
            self._best_key, self.best_auroc = key, auroc
        self._hand_over()
        self._tell(f"loss {loss:.4f}, validation loss {measured.loss:.4f}, within-problem AUROC {auroc:.4f}")
        return self.iterations - self.best_iteration >= self._patience

    def reached(self) -> Descent:
        """Where the descent is."""
        return Descent(self.best, self.iterations, self.best_iteration, self.best_auroc)

    def _hand_over(self) -> None:
        if self._keep is not None:
            self._keep(self.reached())

    def _tell(self, figures: str) -> None:
        if self._report is not None and self.iterations and self.iterations % REPORTED_ITERATIONS == 0:
            self._report(f"iteration {self.iterations}: {figures}")
