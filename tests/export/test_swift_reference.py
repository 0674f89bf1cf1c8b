"""SWIFT's head and losses written in torch from the paper: the same loss, gradient and fit as the NumPy ones.

The torch side knows padded batches, masks and autograd, and shares no code with the other but the stored features.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from swift_edge.scoring.head import Head
from swift_edge.training.fitting.descent import Limits, Objective, Standard, Weights, descend
from swift_edge.training.fitting.examples import Examples, check_stores, read_candidates, read_examples, survey
from swift_edge.training.fitting.inputs import Inputs
from swift_edge.training.fitting.objectives import LOSSES, Loss, cut
from swift_edge.training.store.format import StoredCandidate, StoreInfo
from swift_edge.training.store.shards import CandidateRows
from swift_edge.training.store.writer import Store, StoreWriter

# The environment of the other exporter comes without it.
minimize = pytest.importorskip("scipy.optimize").minimize

PROBLEMS, TRAIN = 60, range(40)
LAYERS, WIDTH = (1, 2), 12
GRADIENT_TOLERANCE = 1e-5
"""Of the norm of the gradient: our products are float32, torch's are float64."""
FIT_TOLERANCE = 3e-4
"""Of the validation loss after a descent of the same optimiser: rounding leads two line searches apart."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    info = StoreInfo(
        base_model="tiny",
        fingerprint="ab",
        precision="fp32",
        bundle="tiny",
        feature="hidden",
        layers=LAYERS,
        width=WIDTH,
        eos_ids=(1,),
        problems=PROBLEMS,
        n=None,
        seed=None,
        sampling=None,
        max_new_tokens=None,
        raw=False,
        task=None,
        tokens_per_candidate=None,
        data_sha256="cd",
        version="0",
    )
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("reference") / "store"
    with StoreWriter(folder, info, shard_bytes=10_000) as writer:
        for problem in range(PROBLEMS):
            level, rows = random.normal(0, 2, (len(LAYERS), WIDTH)), []
            for index in range(2 + problem % 4):
                tokens = int(random.integers(1, 9))
                correct = bool(random.random() < 0.5)
                states = random.normal(0, 1, (tokens, len(LAYERS), WIDTH)) + level + correct
                states *= np.geomspace(0.2, 20, WIDTH)
                statistics = np.column_stack([-random.exponential(1, tokens), random.exponential(1, tokens)])
                candidate = StoredCandidate(
                    problem=problem,
                    index=index,
                    correct=correct,
                    answer=None,
                    text="",
                    token_ids=(3,) * tokens,
                    tokens=tokens,
                    n_tokens=tokens,
                    finish_reason="given",
                    unscored_tokens=0,
                    logprob=0.0,
                    mean_logprob=0.0,
                    self_certainty=0.0,
                    entropy=0.0,
                )
                statistics = np.column_stack([statistics, statistics[:, 0]])
                rows.append(CandidateRows(candidate, states.astype(np.float16), statistics, np.arange(tokens)))
            writer.add(problem, rows)
    return Store.open(folder)


class SwiftHead(torch.nn.Module):
    """The published head: gate and reward from one linear layer, or the reward alone."""

    def __init__(self, inputs: int, gate: bool) -> None:
        super().__init__()
        self.fused_layer = torch.nn.Linear(inputs, 2 if gate else 1, dtype=torch.float64)
        self.gate = gate

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scores [c] of responses `states` [c, t, f] padded to t tokens; `mask` [c, t] says which are there."""
        outputs = self.fused_layer(states)
        if self.gate:
            gates = torch.sigmoid(outputs[..., 0]) * mask
            return (gates * outputs[..., 1]).sum(dim=1) / gates.sum(dim=1).clamp(min=1e-8)
        return (outputs[..., 0] * mask).sum(dim=1) / mask.sum(dim=1)


def torch_loss(loss: Loss, scores: torch.Tensor, correct: torch.Tensor, problems: torch.Tensor) -> torch.Tensor:
    """Mean over candidates (bce, hinge), or over the problems with correct and wrong candidates."""
    labels = correct.double()
    if loss == "bce":
        return functional.binary_cross_entropy_with_logits(scores, labels)
    if loss == "hinge":
        return torch.relu(1 - (2 * labels - 1) * scores).mean()
    losses = []
    for problem in problems.unique():
        inside = problems == problem
        ours, theirs = scores[inside], labels[inside]
        if theirs.min() == theirs.max():
            continue
        if loss == "pairwise":
            margins = ours[theirs == 1][:, None] - ours[theirs == 0][None, :]
            losses.append(-functional.logsigmoid(margins).mean())
            continue
        targets = torch.softmax(theirs / 0.01, dim=0)
        if loss == "infonca":
            losses.append(-(targets * functional.log_softmax(ours, dim=0)).sum())
        else:
            ups, downs = functional.logsigmoid(ours), functional.logsigmoid(-ours)
            losses.append(-(targets * ups + downs / len(ours)).sum())
    return torch.stack(losses).mean()


class Reference:
    """The stored features as padded, standardised batches in torch, and a loss over some of the problems."""

    def __init__(self, store: Store, standard: Standard, problems: range, prefix_ends: NDArray[np.int64]) -> None:
        self.batches = []
        shards = [(shard, place) for shard in store.shards for place in range(len(shard.candidates))]
        self.correct = torch.tensor([s.candidates[p].correct for s, p in shards if s.candidates[p].problem in problems])
        self.problems = torch.tensor(
            [s.candidates[p].problem for s, p in shards if s.candidates[p].problem in problems]
        )
        inputs = []
        for shard, place in shards:
            if shard.candidates[place].problem in problems:
                rows = slice(shard.starts[place], shard.starts[place + 1])
                states = np.array(shard.states[rows], np.float64).reshape(-1, len(LAYERS) * WIDTH)
                raw = np.column_stack([states, np.array(shard.statistics[rows, :2], np.float64)])
                inputs.append(torch.from_numpy((raw - standard.mean) / standard.scale))
        self.states = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True)  # [c, t, f]
        # Prefix j of each candidate is the whole with the rest masked.
        times = torch.arange(self.states.shape[1])
        self.masks = [(times < torch.from_numpy(ends)[:, None]).double() for ends in prefix_ends.T]

    def measure(
        self, vector: NDArray[np.float64], gate: bool, loss: Loss, pairwise_weight: float
    ) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        """Loss, gradient over the flat weights, and scores of the whole responses."""
        inputs = self.states.shape[2]
        weights = Weights.of(vector, inputs)
        head = SwiftHead(inputs, gate)
        with torch.no_grad():
            head.fused_layer.weight.copy_(torch.from_numpy(weights.weight.copy()))
            head.fused_layer.bias.copy_(torch.from_numpy(weights.bias.copy()))
        scores = [head(self.states, mask) for mask in self.masks]
        parts = [
            torch_loss(loss, each, self.correct, self.problems)
            + pairwise_weight * torch_loss("pairwise", each, self.correct, self.problems)
            for each in scores
        ]
        value = torch.stack(parts).mean()
        value.backward()
        layer = head.fused_layer
        assert layer.weight.grad is not None
        assert layer.bias.grad is not None
        gradient = np.concatenate([layer.weight.grad.numpy().ravel(), layer.bias.grad.numpy()])
        return float(value.detach()), gradient, scores[-1].detach().numpy()


Setting = Callable[[bool, Loss, float, int], tuple[Objective, Reference, Reference]]


@pytest.fixture(scope="module")
def setting(store: Store) -> Setting:
    """Ours, and torch's on the training problems and on the others."""
    inputs = Inputs(LAYERS, ("logprob", "entropy"))
    candidates = read_candidates([store], True)
    examples: Examples = read_examples([store], candidates, inputs, check_stores([store], inputs), 2**20)
    found = survey(examples, TRAIN, [store], pool=False)
    standard = Standard(found.mean, found.scale)

    def make(gate: bool, loss: Loss, pairwise_weight: float, prefixes: int) -> tuple[Objective, Reference, Reference]:
        fractions = np.random.default_rng(1).uniform(0.1, 1, (len(candidates.tokens), prefixes))
        pieces = cut(candidates.tokens, fractions)
        ours = Objective(examples, TRAIN, standard, gate, loss, pairwise_weight, pieces)
        train = examples.members(TRAIN)
        ends = np.cumsum(pieces, axis=1)
        theirs = Reference(store, standard, TRAIN, ends[train])
        return ours, theirs, Reference(store, standard, range(TRAIN.stop, PROBLEMS), ends[train.stop :, -1:])

    return make


@pytest.mark.parametrize("prefixes", [0, 2])
@pytest.mark.parametrize("pairwise_weight", [0.0, 0.5])
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_agree(
    setting: Setting, loss: Loss, gate: bool, pairwise_weight: float, prefixes: int
) -> None:
    ours, theirs, _ = setting(gate, loss, pairwise_weight, prefixes)
    inputs = ours.examples.rows.inputs
    for seed in range(3):
        vector = np.random.default_rng(seed).normal(0, 0.3, (1 + gate) * (inputs + 1))
        value, gradient, scores = theirs.measure(vector, gate, loss, pairwise_weight)
        measured = ours.measure(vector, gradient=True)
        assert measured.loss == pytest.approx(value, rel=GRADIENT_TOLERANCE)
        assert np.linalg.norm(measured.gradient - gradient) < GRADIENT_TOLERANCE * np.linalg.norm(gradient)
        np.testing.assert_allclose(measured.scores, scores, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_optimiser_comes_to_the_same_validation_loss(setting: Setting, loss: Loss, gate: bool) -> None:
    ours, theirs, others = setting(gate, loss, 0.0, 0)
    inputs, decay, iterations = ours.examples.rows.inputs, 0.05, 300
    start = np.random.default_rng(0).normal(0, 0.05, (1 + gate) * (inputs + 1))
    decayed = np.where(np.arange(len(start)) < (1 + gate) * inputs, decay, 0.0)

    def cost(vector: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, gradient, _ = theirs.measure(vector, gate, loss, 0.0)
        return value + 0.5 * float(decayed @ vector**2), gradient + decayed * vector

    settings = {"maxiter": iterations, "maxfun": 20 * iterations, "ftol": 1e-9, "gtol": 1e-7}
    reference = minimize(cost, start.copy(), method="L-BFGS-B", jac=True, options=settings)
    found = descend(ours, None, start, Limits(decay, iterations, iterations))
    (expected, _, _), (value, _, _) = (others.measure(each, gate, loss, 0.0) for each in (reference.x, found.vector))
    # The hinge has kinks, at which the two descents may stop a little apart.
    tolerance = FIT_TOLERANCE if loss != "hinge" else 10 * FIT_TOLERANCE
    assert value == pytest.approx(expected, rel=tolerance)
    before, _, _ = others.measure(start, gate, loss, 0.0)
    assert expected < 0.97 * before


@pytest.mark.parametrize("gate", [True, False])
def test_the_numpy_head_scores_as_the_published_one(setting: Setting, store: Store, gate: bool) -> None:
    ours, theirs, _ = setting(gate, "bce", 0.0, 0)
    inputs = ours.examples.rows.inputs
    vector = np.random.default_rng(4).normal(0, 0.3, (1 + gate) * (inputs + 1))
    _, _, expected = theirs.measure(vector, gate, "bce", 0.0)
    weight, bias = Weights.of(vector, inputs).folded(ours.standard)
    head = Head(weight, bias, LAYERS, ("logprob", "entropy"), gate)
    scores = []
    for shard in store.shards:
        for place, candidate in enumerate(shard.candidates):
            if candidate.problem in TRAIN:
                rows = slice(shard.starts[place], shard.starts[place + 1])
                logprob, entropy, _ = np.array(shard.statistics[rows], np.float64).T
                states = np.array(shard.states[rows]).transpose(1, 0, 2)
                gates, rewards = head.evaluate(states, _statistics(logprob, entropy))
                scores.append(np.average(rewards, weights=gates))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def _statistics(logprob: NDArray[np.float64], entropy: NDArray[np.float64]) -> object:
    from swift_edge.engine.signals import TokenStatistics

    return TokenStatistics(logprob, entropy)
