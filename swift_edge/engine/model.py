"""Everything that opening a bundle gives, and what options and prompts come to with it.

Checks each option and each combination once, before anything is computed. Does not run the model.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np

from swift_edge.arrays import Ids
from swift_edge.bundle.folder import check_hashes, open_bundle
from swift_edge.bundle.manifest import MODEL_NAME, TEMPLATE_NAME, TOKENIZER_NAME, Bundle
from swift_edge.bundle.tokenizer import Message, Tokenizer
from swift_edge.bundle.verified import VerifiedFiles
from swift_edge.checks import is_whole
from swift_edge.engine.prefix_cache import PrefixCache
from swift_edge.engine.sampling import SamplingOptions
from swift_edge.engine.session import ModelSession
from swift_edge.engine.signals import check_signal
from swift_edge.errors import InvalidOptionError, PromptTooLongError
from swift_edge.scoring.candidate import Ranking
from swift_edge.scoring.head import Head, check_head, load_head
from swift_edge.selection.adaptive.pace import Pace
from swift_edge.selection.adaptive.steering import Plan
from swift_edge.selection.decision import Decision, ExternalScorer, Extractor

Prompt: TypeAlias = str | Sequence[Message]

LEAD_S: Final = 0.1
"""Seconds after which onnxruntime no longer needs the interpreter, which reading a tokenizer keeps to itself."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a pick as the caller gave them; None is the bundle's own."""

    n: int | Literal["auto"]
    """Candidates per prompt, or `auto`."""
    max_new_tokens: int
    """Most tokens of a candidate."""
    temperature: float | None
    """Divides the logits; 0 is greedy."""
    top_p: float | None
    """Probability mass kept; 1 keeps all."""
    top_k: int | None
    """Most likely tokens kept; 0 keeps all."""
    min_p: float | None
    """Least share of the greatest probability kept; 0 keeps all."""
    repetition_penalty: float | None
    """Penalty of tokens that were seen; 1 is none."""
    stop: tuple[str, ...]
    """Strings before which a candidate's text ends."""
    seed: int
    """Seed of all candidates' random numbers."""
    signal: str | None
    """Signal to score by in place of the head."""
    raw: bool
    """Whether the prompt is taken without the chat template."""
    strategy: str = "best"
    """How the pick is made from the scores: `auto`, or one of `ranking.STRATEGIES`."""
    task: str | Extractor | None = None
    """What candidates answer; None is the task that the head was trained on."""
    external: ExternalScorer | None = None
    """Another judge of the candidates' texts."""
    min_confidence: float | None = None
    """Least probability of a pick that is not abstained from."""
    max_n: int | None = None
    """Most candidates where `n` is `auto`."""
    prune: str | Mapping[int, int] | None = None
    """Which rows are dropped while they are written; None is `auto` where `n` is, else `off`."""
    budget_tokens: int | None = None
    """Most response tokens of a pick."""
    budget_seconds: float | None = None
    """Most seconds of a pick."""


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A bundle with its session, tokenizer and head, shared by all calls and threads."""

    bundle: Bundle
    """The folder, checked."""
    session: ModelSession
    """The graph."""
    tokenizer: Tokenizer
    """Text to ids and back."""
    head: Head | None
    """The head that scores unless a signal is asked for."""
    head_name: str | None
    """The head as the caller named it, or its file name in the bundle."""
    warnings: tuple[str, ...]
    """What the caller should know, one line each."""
    pace: Pace
    """How long its steps take here, and what plans make of it."""
    prefixes: PrefixCache | None = None
    """Beginnings of prompts that need not be read again; None where none are kept."""

    @classmethod
    def open(
        cls,
        path: str,
        head: str | Head | None,
        providers: Sequence[str] | None,
        threads: int | None,
        prefix_cache_bytes: int = 0,
    ) -> "OpenedModel":
        """Open and check the bundle and its head, then the graph; `head` replaces the bundle's own."""
        _check_whole("prefix_cache_bytes", prefix_cache_bytes, 0)
        bundle = open_bundle(path, hashes=False)
        loaded: Head | None
        name: str | None
        if isinstance(head, Head):
            loaded, name = head, f"a head of {head.base_model or 'an unnamed model'}"
        elif head is not None:
            loaded, name = load_head(head), head
        elif bundle.head_path is not None:
            loaded, name = load_head(bundle.head_path), bundle.head_path.name
        else:
            loaded, name = None, None
        warnings = [] if loaded is None else check_head(loaded, bundle.manifest)
        if not bundle.manifest.hidden_states.indices:
            warnings.append(
                f"{path} ({bundle.origin}) gives no hidden states: it serves label-free signals and heads on logits; "
                "run swift-edge export for other heads"
            )
        session, tokenizer, complaints = open_parts(bundle, providers, threads)
        # Rows that are concatenated are taken over from the graph as a whole; those on a device would cross the bus.
        keeps = prefix_cache_bytes > 0 and session.takes_ragged_rows and not session.keeps_rows_on_device
        prefixes = PrefixCache(prefix_cache_bytes) if keeps else None
        pace = Pace(bundle, session)
        return cls(bundle, session, tokenizer, loaded, name, (*warnings, *complaints), pace, prefixes)

    def ranking(self, signal: str | None) -> Ranking:
        """By what to rank: the signal that was asked for, else the head, else the mean log-probability."""
        if signal is None and self.head is not None:
            return Ranking.by_head(self.head, self.bundle.manifest.tokens.eos_ids)
        return Ranking(None, check_signal(signal or "mean_logprob"))

    def prompt_ids(self, prompt: Prompt, *, raw: bool, feeds_last: bool) -> Ids:
        """Token ids `[p]` of a prompt that leaves room for one more token, fed again if something is read after it."""
        prompt_ids = np.array(self.tokenizer.encode_prompt(prompt, raw=raw), np.int64)
        if len(prompt_ids) + feeds_last > self.session.context_length:
            raise PromptTooLongError(len(prompt_ids), self.session.context_length)
        return prompt_ids

    def answer_ids(self, text: str, place: int, prompt_tokens: int, *, with_eos: bool) -> list[int]:
        """Token ids `[t]` of a given response, with the EOS at its end if asked for; fits into the context."""
        answer = self.tokenizer.encode_response(text)
        end = self.tokenizer.end_of_turn
        ended = bool(answer) and answer[-1] in self.bundle.manifest.tokens.eos_ids
        if with_eos and end is not None and not ended:
            answer.append(end)
        context = self.session.context_length
        if not answer:
            raise InvalidOptionError(f"text {place} has no tokens; expected some text to score")
        # As in decoding, the last token may lie beyond a full context.
        if prompt_tokens + len(answer) > context + 1:
            raise InvalidOptionError(
                f"text {place} has {len(answer)} tokens after a prompt of {prompt_tokens}, "
                f"but the model's context holds {context}; shorten the text or the prompt"
            )
        return answer

    def verify(self, options: Options) -> tuple[SamplingOptions, Ranking, Plan]:
        """Check every option and every combination; returns what they come to with this bundle."""
        _check_whole("max_new_tokens", options.max_new_tokens, 1)
        _check_whole("seed", options.seed, 0, 2**64 - 1)
        if not all(isinstance(text, str) and text for text in options.stop):
            raise InvalidOptionError(f"stop is {list(options.stop)}; expected strings of at least one character")
        default = self.bundle.manifest.sampling
        sampling = SamplingOptions(
            temperature=default.temperature if options.temperature is None else options.temperature,
            top_p=default.top_p if options.top_p is None else options.top_p,
            top_k=default.top_k if options.top_k is None else options.top_k,
            min_p=default.min_p if options.min_p is None else options.min_p,
            repetition_penalty=(
                default.repetition_penalty if options.repetition_penalty is None else options.repetition_penalty
            ),
        )
        ranking = self.ranking(options.signal)
        decision = Decision.of(
            ranking.head,
            strategy=options.strategy,
            task=options.task,
            external=options.external,
            min_confidence=options.min_confidence,
        )
        plan = Plan.of(
            options.n,
            max_n=options.max_n,
            prune=options.prune,
            budget_tokens=options.budget_tokens,
            budget_seconds=options.budget_seconds,
            decision=decision,
        )
        if plan.most > 1 and sampling.temperature == 0:
            raise InvalidOptionError(
                f"n is {options.n} at temperature 0, where all candidates are the same; "
                "expected n=1, or a temperature above 0"
            )
        return sampling, ranking, plan


def open_parts(
    bundle: Bundle, providers: Sequence[str] | None, threads: int | None
) -> tuple[ModelSession, Tokenizer, list[str]]:
    """Open the graph and read the tokenizer of a bundle whose hashes were not checked yet, and check them.

    The graph and the tokenizer are hashed before they are read. What is left, the weights, is numbers: they are hashed
    while onnxruntime packs them and the tokenizer is read. Files that an earlier start found right and that have not
    changed since are not hashed again. Returns warnings, too. Raises what `check_hashes`, `ModelSession` and
    `Tokenizer.load` do.
    """
    files = VerifiedFiles(bundle)
    unchecked = () if files.known() else bundle.manifest.fixed_files
    read_whole = (MODEL_NAME, TOKENIZER_NAME, TEMPLATE_NAME)
    check_hashes(bundle, [name for name in unchecked if name in read_whole])
    tokenizer = Tokenizer(bundle)
    with ThreadPoolExecutor(2) as beside:
        session = beside.submit(ModelSession, bundle, providers, threads)
        hashing = beside.submit(check_hashes, bundle, [name for name in unchecked if name not in read_whole])
        wait([session], LEAD_S)
        tokenizer.load()
        hashing.result()  # first: damage explains more than the failure that it leads to
    complaint = files.remember() if unchecked else None
    return session.result(), tokenizer, [complaint] if complaint else []


def _check_whole(name: str, value: int, least: int, most: int | None = None) -> None:
    # A float would pass the comparisons and fail later, where nobody knows its name.
    if not is_whole(value, least) or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidOptionError(f"{name} is {value!r}; expected an integer {limits}")
