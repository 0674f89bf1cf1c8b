"""What head is fitted, to what, and how: every choice of a fit, checked once."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from swift_edge.checks import expect, is_number, is_whole
from swift_edge.errors import InvalidOptionError
from swift_edge.scoring.head import Norm, TokenStatistic
from swift_edge.training.fitting.descent import Limits
from swift_edge.training.fitting.inputs import Inputs
from swift_edge.training.fitting.objectives import LOSSES, Loss
from swift_edge.training.store.format import StoreInfo

WEIGHT_DECAYS: Final = (1e-4, 1e-3, 1e-2, 1e-1)
"""Weight decays that are tried where none is given, the weakest first."""
LEAST_MEMORY: Final = 2**20
"""Fewest bytes that a fit can be held to."""
MOST_PREFIXES: Final = 1000
"""Most truncations of a response: there are few responses with more tokens than that."""


@dataclass(frozen=True, slots=True)
class FitOptions:
    """What head is fitted, to what, and how."""

    loss: Loss = "bce"
    """Loss of the scores: bce, hinge, pairwise, infonca or nca."""
    pairwise_weight: float = 0.0
    """Weight of the pairwise loss within problems that is added to it."""
    gate: bool = True
    """Whether tokens are weighted; without, the score is the mean reward."""
    layers: tuple[int, ...] | Literal["best"] | None = None
    """Hidden states to read; None reads all of the store, `best` those that say most, see `layers.try_layers`."""
    token_statistics: tuple[TokenStatistic, ...] = ("logprob", "entropy")
    """Token statistics to read after the states."""
    norm: Norm = "none"
    """What is done to each state first: nothing, or division by its root mean square."""
    includes_eos: bool = True
    """Whether the token that ends a response counts."""
    prefixes: int = 2
    """Truncations of each response that count as examples, too. They are drawn once, by the seed: at the same shares of
    their length, uniform from 10 to 100 %, for all candidates of a problem, so that ranking compares like with like."""
    prefix_weight: float = 0.25
    """Weight of a truncation, where the whole response has 1."""
    weight_decay: float | None = None
    """L2 penalty: the loss grows by half of this times the sum of squared weights of standardised inputs. None takes
    the best of `weight_decays` by the within-problem AUROC on the validation problems."""
    weight_decays: tuple[float, ...] = WEIGHT_DECAYS
    """What None tries."""
    search: Literal["full", "start"] = "full"
    """Whether each is judged by the whole fit, or by its convex start, which costs little but favours weak ones."""
    max_iterations: int = 200
    """Most iterations of each descent."""
    patience: int = 60
    """Iterations without better weights after which a descent ends."""
    problems: int | None = None
    """Most problems to use, drawn by the seed; None uses all."""
    validation_share: float = 0.15
    """Share of the problems that choose among weights."""
    calibration_share: float = 0.15
    """Share of the problems that the calibration is fitted to."""
    seed: int = 0
    """Seed of the split, the truncations and the calibration's folds."""
    memory_bytes: int = 2**30
    """Bytes for inputs: what does not fit is read anew in every pass. Does not change the head but for rounding."""

    def __post_init__(self) -> None:
        """Check each option and each combination; raises `InvalidOptionError`."""
        expect(self.loss in LOSSES, "loss", self.loss, f"one of {', '.join(LOSSES)}")
        expect(_number(self.pairwise_weight, 0), "pairwise_weight", self.pairwise_weight, "a number of at least 0")
        choices, names = get_args(TokenStatistic), self.token_statistics
        distinct = isinstance(names, tuple) and set(names) <= set(choices) and len(set(names)) == len(names)
        expect(distinct, "token_statistics", names, f"distinct names out of {', '.join(choices)}")
        expect(self.norm in get_args(Norm), "norm", self.norm, " or ".join(get_args(Norm)))
        few = is_whole(self.prefixes, 0) and self.prefixes <= MOST_PREFIXES
        expect(few, "prefixes", self.prefixes, f"an integer from 0 to {MOST_PREFIXES}")
        for name, least in (("max_iterations", 1), ("patience", 1), ("seed", 0)):
            expect(is_whole(getattr(self, name), least), name, getattr(self, name), f"an integer of at least {least}")
        expect(self.problems is None or is_whole(self.problems, 2), "problems", self.problems, "2 or more, or None")
        expect(_number(self.prefix_weight, 0), "prefix_weight", self.prefix_weight, "a number of at least 0")
        decays = self.weight_decays if self.weight_decay is None else (self.weight_decay,)
        positive = bool(decays) and all(_number(decay, 0) for decay in decays)
        name = "weight_decays" if self.weight_decay is None else "weight_decay"
        expect(positive, name, getattr(self, name), "numbers of at least 0, at least one")
        expect(self.search in ("full", "start"), "search", self.search, "full or start")
        for name in ("validation_share", "calibration_share"):
            share = getattr(self, name)
            expect(_number(share, 0) and share < 1, name, share, "a share from 0 up to 1")
        expect(self.validation_share + self.calibration_share < 1, "shares", "1 or more together", "some to train on")
        expect(
            is_whole(self.memory_bytes, LEAST_MEMORY),
            "memory_bytes",
            self.memory_bytes,
            f"at least {LEAST_MEMORY} bytes",
        )
        if self.layers is not None and self.layers != "best":
            ascending = bool(self.layers) and list(self.layers) == sorted(set(self.layers))
            expect(ascending, "layers", self.layers, "ascending numbers, at least one, best, or None for all")

    def limits(self, weight_decay: float) -> Limits:
        """What holds a descent with this weight decay back."""
        return Limits(weight_decay, self.max_iterations, self.patience)

    def inputs(self, info: StoreInfo) -> Inputs:
        """What of the tokens of such a store is read."""
        if info.feature == "logits" and self.norm != "none":
            raise InvalidOptionError("the norm rms is for hidden states, and the store holds logits; leave it out")
        layers = info.layers if self.layers is None or self.layers == "best" else self.layers
        return Inputs(layers, self.token_statistics, self.norm, self.includes_eos)


def _number(value: object, least: float) -> bool:
    return is_number(value) and value >= least
