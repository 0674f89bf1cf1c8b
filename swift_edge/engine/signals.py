"""Label-free signals: statistics of tokens by the model's logits, and scores of candidates by their tokens.

Works on logits as the model gave them, before temperature and filters. Everything runs on the calling thread (no
BLAS), and the figures of a row do not depend on the rows beside it, bit for bit.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from swift_edge.errors import InvalidOptionError, LogitsError

CHUNK_LOGITS: Final = 2**18
"""Logits handled at once; 1 MiB of float32 stays in the cache between two passes."""


@dataclass(frozen=True, slots=True)
class LogitSummary:
    """Statistics of rows of logits, which `sample` and `token_statistics` share to save a pass."""

    log_normalizer: NDArray[np.float64]  # [m]
    """Log of the sum of exponentials of each row, in nats."""
    maximum: NDArray[np.float32]  # [m]
    """Greatest logit of each row."""
    exponentials: NDArray[np.float32] | None = None  # [m, v]
    """Exponentials of the logits less the row's maximum; None if there are too many to keep."""
    entropy: NDArray[np.float64] | None = None  # [m]
    """Entropy of each row's distribution in nats, where it was asked for."""
    self_certainty: NDArray[np.float64] | None = None  # [m]
    """Self-certainty of each row in nats, where it was asked for; +inf where a logit is -inf."""

    def of(self, rows: NDArray[np.int64]) -> "LogitSummary":
        """The summary of some of the rows."""
        return LogitSummary(
            self.log_normalizer[rows],
            self.maximum[rows],
            None if self.exponentials is None else self.exponentials[rows],
            None if self.entropy is None else self.entropy[rows],
            None if self.self_certainty is None else self.self_certainty[rows],
        )


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """What the model says about chosen tokens, one per row of logits."""

    logprob: NDArray[np.float64]  # [m]
    """Natural log of the token's probability at temperature 1, before any filter."""
    entropy: NDArray[np.float64] | None = None  # [m]
    """Entropy in nats of the distribution that the token was chosen from, where it was asked for."""
    self_certainty: NDArray[np.float64] | None = None  # [m]
    """Self-certainty in nats of that distribution, where it was asked for."""

    def of(self, rows: "NDArray[np.int64] | slice") -> "TokenStatistics":
        """The statistics of some rows, in the order given."""
        return TokenStatistics(
            self.logprob[rows],
            None if self.entropy is None else self.entropy[rows],
            None if self.self_certainty is None else self.self_certainty[rows],
        )

    @classmethod
    def joined(cls, parts: "Sequence[TokenStatistics]") -> "TokenStatistics":
        """All parts one after the other; they hold the same statistics."""
        if len(parts) == 1:
            return parts[0]
        entropies = [part.entropy for part in parts if part.entropy is not None]
        certainties = [part.self_certainty for part in parts if part.self_certainty is not None]
        return cls(
            np.concatenate([part.logprob for part in parts]),
            np.concatenate(entropies) if entropies else None,
            np.concatenate(certainties) if certainties else None,
        )

    def only(self, names: Collection[str]) -> "TokenStatistics":
        """Only the named statistics, and the log-probability."""
        if (self.entropy is None or "entropy" in names) and (self.self_certainty is None or "self_certainty" in names):
            return self
        return TokenStatistics(
            self.logprob,
            self.entropy if "entropy" in names else None,
            self.self_certainty if "self_certainty" in names else None,
        )


def summarize(
    logits: NDArray[Any], *, entropy: bool = False, self_certainty: bool = False, first_row: int = 0
) -> LogitSummary:
    """Sum up rows of logits; entropy and self-certainty cost a pass each. The exponentials are kept if they are few.

    `logits` is float32 or float16 [m, v] and stays as it is; -inf is a token that cannot come. Self-certainty is the
    Kullback-Leibler divergence of the distribution from the uniform one, LSE(z) - mean(z) - log v (arXiv 2502.18581).
    Raises `LogitsError` where a row holds NaN or +inf or nothing but -inf; `first_row` is the number of the first.

    >>> summarize(np.zeros((1, 4), np.float32), entropy=True).entropy
    array([1.38629436])
    """
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise InvalidOptionError(f"the logits have shape {list(logits.shape)}; expected [m, v] with v of at least 1")
    rows, vocab_size = logits.shape
    log_normalizers = np.empty(rows, np.float64)  # [m]
    maxima = np.empty(rows, np.float32)  # [m]
    small_exponentials = None
    entropies = np.empty(rows if entropy else 0, np.float64)  # [m]
    certainties = np.empty(rows if self_certainty else 0, np.float64)  # [m]
    step = max(1, CHUNK_LOGITS // vocab_size)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        maximum = logits[part].max(axis=1, keepdims=True).astype(np.float32, copy=False)  # [m, 1]
        maxima[part] = maximum[:, 0]
        require_distribution(maxima[part], first_row=first_row + start)
        shifted = np.subtract(logits[part], maximum, dtype=np.float32)  # [m, v]
        if self_certainty:
            mean = shifted.sum(axis=1).astype(np.float64) / vocab_size  # [m]
        exponentials = np.exp(shifted, out=None if entropy else shifted)  # [m, v]
        total = exponentials.sum(axis=1).astype(np.float64)  # [m]
        log_total = np.log(total)  # [m]
        log_normalizers[part] = maximum[:, 0] + log_total
        if self_certainty:
            certainties[part] = log_total - mean - math.log(vocab_size)
        if entropy:
            weighted = _weighted_sums(shifted, exponentials)  # [m]
            # The exact value is never negative; rounding may be.
            entropies[part] = np.maximum(log_total - weighted / total, 0.0)
        if step >= rows:
            small_exponentials = exponentials
    return LogitSummary(
        log_normalizers,
        maxima,
        small_exponentials,
        entropies if entropy else None,
        certainties if self_certainty else None,
    )


def token_statistics(
    logits: NDArray[Any],
    token_ids: NDArray[np.int64],
    *,
    entropy: bool = False,
    self_certainty: bool = False,
    summary: LogitSummary | None = None,
) -> TokenStatistics:
    """Statistics of the token chosen from each row: `logits` float32 or float16 [m, v], `token_ids` int64 [m].

    `summary` is what `summarize` made of the same logits; without it the pass is made here. The log-probability is
    always computed, the others on request. Raises `LogitsError` as `summarize` does, `InvalidOptionError`
    for ids outside the vocabulary and for a summary without what is asked for.
    """
    if summary is None:
        summary = summarize(logits, entropy=entropy, self_certainty=self_certainty)
    for name, needed, column in (
        ("entropy", entropy, summary.entropy),
        ("self_certainty", self_certainty, summary.self_certainty),
    ):
        if needed and column is None:
            raise InvalidOptionError(f"the summary has no {name}; make it with summarize(logits, {name}=True)")
    rows, vocab_size = logits.shape
    if token_ids.shape != (rows,) or summary.log_normalizer.shape != (rows,):
        raise InvalidOptionError(
            f"{rows} rows of logits came with token ids of shape {list(token_ids.shape)} and a summary of "
            f"{summary.log_normalizer.size} rows; expected one token id and one summary per row"
        )
    if rows and not (token_ids.min() >= 0 and token_ids.max() < vocab_size):
        raise InvalidOptionError(f"a token id lies outside the vocabulary; expected ids from 0 to {vocab_size - 1}")
    logprob = logits[np.arange(rows), token_ids].astype(np.float64) - summary.log_normalizer  # [m]
    return TokenStatistics(
        logprob,
        summary.entropy if entropy else None,
        summary.self_certainty if self_certainty else None,
    )


def added(total: float, values: NDArray[np.float64]) -> float:
    """The total with values `[t]` added one by one: the same bits whether they come alone or together."""
    # Not `sum`, which compensates its roundings from Python 3.12 on.
    for value in values.tolist():
        total += value
    return total


def _weighted_sums(shifted: NDArray[np.float32], exponentials: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum of each row `[m, v]` with its exponentials as weights, `[m]`; `shifted` is used up."""
    with np.errstate(invalid="ignore"):
        products = np.multiply(shifted, exponentials, out=shifted)
    sums: NDArray[np.float32] = products.sum(axis=1)
    if np.isnan(sums).any():  # 0 * -inf, where a token cannot come
        products[exponentials == 0] = 0
        sums = products.sum(axis=1)
    return sums


def require_distribution(maximum: NDArray[Any], first_row: int = 0) -> None:
    """Raise `LogitsError` if the greatest logit of any row, `maximum` [m], is not finite; NaN counts as greatest."""
    if np.isfinite(maximum).all():
        return
    row = int(np.flatnonzero(~np.isfinite(maximum))[0])
    value = maximum[row]
    shown = "NaN" if np.isnan(value) else "+inf" if value > 0 else "nothing but -inf"
    raise LogitsError(
        f"row {first_row + row} of the logits holds {shown}; expected numbers with at least one finite: the model's "
        "arithmetic overflowed or its weights are damaged: use a bundle of higher precision (fp32) or export it again"
    )
