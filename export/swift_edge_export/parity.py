"""Parity: does the exported graph compute what the torch model computes, in every way the runtime will use it?

The torch side is recorded first, so that the model's memory can go before the graph is opened. The other side runs
through the runtime's own session: a long row in chunks, token by token in place, and rows of different lengths in one
batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, PreTrainedModel

from swift_edge.bundle.manifest import Bundle
from swift_edge.engine.session import ModelSession
from swift_edge.errors import ExportError, ParityError, one_line
from swift_edge.options import SamplingOptions
from swift_edge_export.packing.own_text import Turns

FP32_TOLERANCE = 1e-4
# Half precision keeps 11 bits; dozens of layers add up. Beyond this something other than rounding is at work.
FP16_TOLERANCE = 5e-2
LONGEST_ROW = 40
# Of text that the model writes as it will be used: so many conversations, with questions and answers of at most so many
# tokens. Torch writes them token by token.
CONVERSATIONS = 2
QUESTION_TOKENS = 40
ANSWER_TOKENS = 64
# So many equal most likely tokens are good whatever chance is, as some models nearly always say the same; fewer are
# published with a warning.
CLEAR_AGREEMENT = 0.9
# More than this on text of its own, in nats a token, is published with a warning. A real model of 0.1 B parameters was
# seen to lose 0.003 there at int8. On worked answers that others wrote int4 lost 0.06 of a model of 0.5 B, and 0.23 of
# that of 0.1 B, which shows in its words.
CLEAR_DIVERGENCE = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class ReferenceRow:
    """One sequence and what the torch model computes for it in one full forward pass."""

    token_ids: NDArray[np.int64]
    """[s]"""
    logits: NDArray[np.float32]
    """[s, v]"""
    hidden_states: NDArray[np.float32]
    """[L + 1, s, d]"""
    written: NDArray[np.bool_] | None = None
    """[s], which tokens the model wrote as it does when it is used; None where only errors count"""


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """How a model is talked to: what stands around a user's words, and how it is sampled."""

    turns: Turns
    """token ids that the chat template writes; none of them without one"""
    eos_ids: tuple[int, ...]
    """ids that end a turn"""
    sampling: SamplingOptions
    """as its makers recommend"""


@dataclasses.dataclass(frozen=True, slots=True)
class Parity:
    """How far the graph is from the torch model, and how often its most likely token is the same."""

    figures: dict[str, dict[str, float]]
    """for each check (prefill, decode, rows) the largest relative error of `logits` and `hidden_states`"""
    greedy_agreement: float
    """share of positions where both have the same most likely token"""
    chance_agreement: float
    """what that share would be if the two were unrelated"""
    finite: bool
    """no infinity and no NaN anywhere"""
    positions: int
    """positions compared"""
    written: int = 0
    """tokens that the model wrote as it does when it is used, at which the following is measured"""
    loss: float = 0.0
    """mean negative log-likelihood of these tokens in the graph, in nats"""
    reference_loss: float = 0.0
    """the same in torch"""
    divergence: float = 0.0
    """mean Kullback-Leibler divergence of the graph's next token from torch's, in nats"""
    written_agreement: float = 1.0
    """share of these tokens before which both have the same most likely token"""

    @property
    def worst(self) -> float:
        """The largest relative error of all."""
        return max(value for figures in self.figures.values() for value in figures.values())

    @property
    def clear_loss(self) -> str | None:
        """What is worth a warning, in words; None where nothing is."""
        if self.written and self.divergence > CLEAR_DIVERGENCE:
            return f"on text of its own the next token's distribution is {self.divergence:.2f} nats from the model's"
        if not self.written and self.greedy_agreement < CLEAR_AGREEMENT:
            return f"the most likely token changed at {1 - self.greedy_agreement:.0%} of the positions"
        return None

    def to_dict(self) -> dict[str, Any]:
        """The figures for the manifest."""
        document: dict[str, Any] = {
            "relative_error": self.figures,
            "greedy_agreement": self.greedy_agreement,
            "chance_agreement": self.chance_agreement,
            "positions": self.positions,
        }
        if self.written:
            document["written"] = {
                "tokens": self.written,
                "loss": self.loss,
                "torch_loss": self.reference_loss,
                "kl_divergence": self.divergence,
                "greedy_agreement": self.written_agreement,
            }
        return document

    def table(self) -> list[str]:
        """The figures as lines of a table."""
        lines = [f"{'largest relative error':24}{'logits':>12}{'hidden states':>16}"]
        for check, figures in self.figures.items():
            lines.append(f"{check:24}{figures['logits']:12.2e}{figures.get('hidden_states', 0.0):16.2e}")
        lines.append(
            f"greedy tokens agree at {self.greedy_agreement:.1%} of {self.positions} positions "
            f"(chance {self.chance_agreement:.1%})"
        )
        if self.written:
            lines.append(
                f"on {self.written} tokens of its own: loss {self.loss:.3f} nats a token, in torch "
                f"{self.reference_loss:.3f}; KL divergence {self.divergence:.4f}; greedy tokens agree at "
                f"{self.written_agreement:.1%}"
            )
        return lines

    def require(self, precision: str, way_out: str = "use a higher --precision") -> None:
        """Raise `ParityError` unless the figures are good enough for the label of a precision.

        Only fp32 and fp16 have a limit; every other label is of something that is rounded coarsely, and by design.
        """
        if not self.finite:
            hint = "; its values leave the range of float16: use fp32, int8 or int4" if precision == "fp16" else ""
            raise ParityError(f"the {precision} graph computes NaN or infinity, the torch model does not{hint}")
        limit = {"fp32": FP32_TOLERANCE, "fp16": FP16_TOLERANCE}.get(precision)
        if limit is not None and self.worst > limit:
            worst = max(
                (value, f"{name} in {check}") for check, row in self.figures.items() for name, value in row.items()
            )
            raise ParityError(
                f"the {precision} graph differs from the torch model: relative error {worst[0]:.2e} of {worst[1]}, "
                f"expected at most {limit:.0e}; no bundle was written"
            )
        # Unrelated predictions exceed their expectation half of the time, hence four standard errors. Where nearly
        # every token is the same, chance agrees too; and what is exact needs no second opinion.
        spread = (self.chance_agreement * (1 - self.chance_agreement) / self.positions) ** 0.5
        by_chance = self.greedy_agreement <= self.chance_agreement + 4 * spread
        if precision != "fp32" and by_chance and self.greedy_agreement < CLEAR_AGREEMENT:
            raise ParityError(
                f"the {precision} graph agrees with the torch model on {self.greedy_agreement:.1%} of the most likely "
                f"tokens, which chance could give as well ({self.chance_agreement:.1%}); {way_out}"
            )


def record_reference(
    model: PreTrainedModel,
    context_length: int,
    seed: int = 0,
    *,
    own_samples: bool = True,
    conversation: Conversation | None = None,
) -> list[ReferenceRow]:
    """Run the torch model over three rows of different lengths, random tokens first and then its own samples.

    Without `own_samples` all tokens are random, and one pass over the model does.

    A row is as long as the context allows, up to 40 tokens; its own samples matter because quantisation is judged by
    how often the most likely token stays the same, which on random tokens alone says little.

    With a `conversation` further rows come first: questions that the model asks itself in the words of its template,
    and answers, sampled as its makers recommend.

    Raises:
        ExportError: torch itself does not run the model, or computes NaN or infinity.
    """
    # What the checkpoint recommends (beams, stop strings, penalties) is no part of the model's arithmetic.
    neutral: Any = GenerationConfig
    recommended, model.generation_config = model.generation_config, neutral()
    try:
        rows = (_record_rows if own_samples else _record_random_rows)(model, context_length, seed)
        if conversation is not None and context_length > LONGEST_ROW:
            rows = [*_record_conversations(model, context_length, seed, conversation), *rows]
        return rows
    except Exception as error:
        raise ExportError(
            f"{type(model).__name__} does not run in torch ({type(error).__name__}: {one_line(error)}); expected a "
            "checkpoint that transformers can generate with: check its weights and config"
        ) from error
    finally:
        model.generation_config = recommended


def _record_rows(model: Any, context_length: int, seed: int) -> list[ReferenceRow]:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in _row_lengths(context_length):
        prompt = _random_tokens(model, max(1, length // 3), generator)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + length)
            ids = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=length - prompt.shape[1],
            )
            outputs = model(ids, output_hidden_states=True)
        rows.append(_reference_row(outputs, 0, ids[0]))
    return rows


def _record_conversations(model: Any, context_length: int, seed: int, conversation: Conversation) -> list[ReferenceRow]:
    """Rows of a question and an answer, the longest first."""
    sampling = conversation.sampling
    ends = sorted({*conversation.eos_ids, *conversation.turns.before_answer[:1]})
    options: dict[str, Any] = {
        "do_sample": True,
        "temperature": sampling.temperature or 1.0,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "eos_token_id": ends or None,
    }
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(CONVERSATIONS):
        ids = torch.tensor([conversation.turns.before_question], dtype=torch.long)
        if not ids.shape[1]:
            ids = _random_tokens(model, 1, generator)
        written = [False] * ids.shape[1]
        for turn, most in ((conversation.turns.before_answer, QUESTION_TOKENS), ((), ANSWER_TOKENS)):
            new = min(most, context_length - ids.shape[1] - len(turn))
            if new <= 0:
                continue
            own = _continued(model, ids, new, seed + number, options)
            if turn and int(own[0, -1]) in ends:  # the template ends the question itself
                own = own[:, :-1]
            written += [True] * own.shape[1] + [False] * len(turn)
            ids = torch.cat([ids, own, torch.tensor([turn], dtype=torch.long)], 1)
        if not any(written):  # the template's words fill the context
            continue
        with torch.no_grad():
            outputs = model(ids, output_hidden_states=True)
        rows.append(dataclasses.replace(_reference_row(outputs, 0, ids[0]), written=np.array(written)))
    return sorted(rows, key=lambda row: -len(row.token_ids))


def _continued(model: Any, ids: torch.Tensor, new: int, seed: int, options: Mapping[str, Any]) -> torch.Tensor:
    """What the model writes after `ids` [1, s]: up to `new` tokens, [1, t]."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        longer: torch.Tensor = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, pad_token_id=0, **options
        )
    return longer[:, ids.shape[1] :]


def _record_random_rows(model: Any, context_length: int, seed: int) -> list[ReferenceRow]:
    generator = torch.Generator().manual_seed(seed)
    rows = [_random_tokens(model, length, generator)[0] for length in _row_lengths(context_length)]
    # Filled up on the right, where no earlier position looks.
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    with torch.no_grad():
        outputs = model(batch, output_hidden_states=True, use_cache=False)
    return [_reference_row(outputs, number, ids) for number, ids in enumerate(rows)]


def _row_lengths(context_length: int) -> list[int]:
    longest = min(LONGEST_ROW, context_length)
    return sorted({longest, max(2, 2 * longest // 3), max(2, longest // 3)}, reverse=True)


def _random_tokens(model: Any, count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(model.get_output_embeddings().weight.shape[0], (1, count), generator=generator)


def _reference_row(outputs: Any, row: int, ids: torch.Tensor) -> ReferenceRow:
    """What the model gave at the tokens of one row; raises ValueError where that is not finite."""
    logits = outputs.logits[row, : len(ids)].float()
    states = torch.stack([state[row, : len(ids)].float() for state in outputs.hidden_states])
    if not (logits.isfinite().all() and states.isfinite().all()):
        raise ValueError("it computes NaN or infinity")
    return ReferenceRow(ids.numpy(), logits.numpy(), states.numpy())


def compare(bundle: Bundle, reference: Sequence[ReferenceRow]) -> Parity:
    """Run the bundle's graph over the rows of `reference` and measure how far it is from them."""
    session = ModelSession(bundle)
    comparison = _Comparison(session.layers)
    longest = reference[0]
    split = max(1, len(longest.token_ids) // 2)

    cache = session.new_cache(1, split)
    chunk = max(1, split // 2 + 1)
    out = session.prefill(cache, longest.token_ids[:split], chunk=chunk, logits="all", layers=session.layers)
    comparison.add("prefill in chunks", longest, slice(0, split), out.logits, out.hidden_states)
    for position in range(split, len(longest.token_ids)):
        out = session.decode(cache, longest.token_ids[position : position + 1], layers=session.layers)
        comparison.add("decode in place", longest, slice(position, position + 1), out.logits, out.hidden_states)

    # Rows that start at different lengths, share every step and leave the batch one after the other.
    batch = session.new_cache(len(reference), 1)
    starts = [max(1, len(row.token_ids) // 2) for row in reference]
    for row, start in zip(reference, starts, strict=True):
        prompt = session.new_cache(1, start)
        session.prefill(prompt, row.token_ids[:start], logits="none")
        batch.append_copy(prompt)
    live = list(range(len(reference)))
    while live:
        for slot in reversed(range(len(live))):
            if int(batch.lengths[slot]) == len(reference[live[slot]].token_ids):
                batch.remove(slot)
                live[slot] = live[-1]
                live.pop()
        if not live:
            break
        positions = [int(length) for length in batch.lengths]
        fed = [reference[index].token_ids[at] for index, at in zip(live, positions, strict=True)]
        out = session.decode(batch, np.array(fed), layers=session.layers)
        for slot, (index, at) in enumerate(zip(live, positions, strict=True)):
            logits = None if out.logits is None else out.logits[slot : slot + 1]
            states = None if out.hidden_states is None else out.hidden_states[:, slot : slot + 1]
            comparison.add("rows of different lengths", reference[index], slice(at, at + 1), logits, states)
    return comparison.result()


class _Comparison:
    """Gathers errors and most likely tokens over all checks."""

    def __init__(self, layers: Sequence[int]) -> None:
        self._layers = list(layers)
        self._figures: dict[str, dict[str, float]] = {}
        self._reference_ids: list[NDArray[np.int64]] = []
        self._graph_ids: list[NDArray[np.int64]] = []
        self._finite = True
        self._written = _Written()

    def add(
        self,
        check: str,
        row: ReferenceRow,
        where: slice,
        logits: NDArray[np.float32] | None,
        hidden_states: NDArray[np.float32] | None,
    ) -> None:
        """Compare logits [m, v] and hidden states [l, m, d] with the positions `where` of a row."""
        assert logits is not None
        reference_logits = row.logits[where]
        self._note(check, "logits", logits, reference_logits)
        self._reference_ids.append(reference_logits.argmax(axis=-1))
        self._graph_ids.append(logits.argmax(axis=-1))
        self._written.add(row, where, logits)
        if hidden_states is None:
            return
        for slot, layer in enumerate(self._layers):
            states = row.hidden_states[layer]
            self._note(check, "hidden_states", hidden_states[slot], states[where])

    def _note(self, check: str, tensor: str, actual: NDArray[np.float32], reference: NDArray[np.float32]) -> None:
        # Each position against its own largest value: the first token of many models is so large that, measured by it,
        # every other position could hold anything.
        scale = np.maximum(np.abs(reference).max(axis=-1), 1e-12)  # [m]
        error = float((np.abs(actual - reference).max(axis=-1) / scale).max())
        self._finite = self._finite and bool(np.isfinite(actual).all())
        figures = self._figures.setdefault(check, {})
        # max() drops a NaN that comes second; infinity keeps it visible.
        figures[tensor] = max(figures.get(tensor, 0.0), error if np.isfinite(error) else float("inf"))

    def result(self) -> Parity:
        reference_ids, graph_ids = np.concatenate(self._reference_ids), np.concatenate(self._graph_ids)
        tokens = np.union1d(reference_ids, graph_ids)
        chance = sum(float((reference_ids == token).mean() * (graph_ids == token).mean()) for token in tokens)
        return Parity(
            self._figures,
            float((reference_ids == graph_ids).mean()),
            chance,
            self._finite,
            len(reference_ids),
            **self._written.means(),
        )


class _Written:
    """Adds up what is measured at tokens that the model wrote itself."""

    def __init__(self) -> None:
        self._tokens = 0
        self._sums = np.zeros(4)  # loss, loss in torch, divergence, agreement

    def add(self, row: ReferenceRow, where: slice, logits: NDArray[np.float32]) -> None:
        """Take the logits [m, v] at the positions `where` of a row: each is of the token after it."""
        if row.written is None:
            return
        positions = np.arange(where.start, where.stop)
        inside = positions + 1 < len(row.token_ids)
        chosen = inside & row.written[np.minimum(positions + 1, len(row.token_ids) - 1)]
        if not chosen.any():
            return
        tokens = row.token_ids[positions[chosen] + 1]
        mine, reference = (_log_probabilities(each[chosen]) for each in (logits, row.logits[where]))
        places = np.arange(len(tokens))
        self._tokens += len(tokens)
        self._sums += (
            -mine[places, tokens].sum(),
            -reference[places, tokens].sum(),
            (np.exp(reference) * (reference - mine)).sum(),
            (mine.argmax(axis=1) == reference.argmax(axis=1)).sum(),
        )

    def means(self) -> dict[str, Any]:
        """The fields of `Parity`."""
        if not self._tokens:
            return {}
        names = ("loss", "reference_loss", "divergence", "written_agreement")
        means = dict(zip(names, map(float, self._sums / self._tokens), strict=True))
        return {"written": self._tokens, **means}


def _log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of logits [m, v], float64."""
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    normalised: NDArray[np.float64] = exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))
    return normalised
