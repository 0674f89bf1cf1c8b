"""Given responses to many problems: each is read in one go after its prompt, which is read once.

Yields what `generating` yields for responses that it writes, so that both are stored in the same way. Knows token ids
and what is read of them. Does not know labels or files.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from swift_edge.arrays import Ids
from swift_edge.engine.model import OpenedModel
from swift_edge.errors import DataError, InvalidOptionError, PromptError, TokenizerError
from swift_edge.scoring.reading import CHUNK_TOKENS, read_tokens
from swift_edge.training.collecting.features import READ_STATISTICS, FeatureReader, GrowingFeatures, ReadCandidate
from swift_edge.training.collecting.generating import Tally
from swift_edge.training.collecting.problems import naming
from swift_edge.training.collecting.responses import AnsweredProblem


@dataclass(slots=True)
class Extent:
    """How much there is to read."""

    candidates: int = 0
    """Responses."""
    kept_tokens: int = 0
    """Tokens of them whose features are kept, at most."""


def check_given(
    opened: OpenedModel, problems: Sequence[AnsweredProblem], reader: FeatureReader, *, raw: bool
) -> Extent:
    """Encode every response once, and check that all of it fits.

    Raises `DataError` with the line of a prompt or a response that does not, `MemoryLimitError` if memory is short.
    """
    extent = Extent()
    longest_prompt = longest_answer = 0
    for problem in problems:
        prompt_ids, answers = _encoded(opened, problem, reader, raw)
        extent.candidates += len(answers)
        extent.kept_tokens += sum(len(reader.kept_positions(len(answer))) for answer in answers)
        longest_prompt = max(longest_prompt, len(prompt_ids))
        longest_answer = max(longest_answer, *map(len, answers))
    opened.session.require_memory(
        1, longest_prompt, longest_answer, layers=len(reader.read_layers), tokens_per_run=CHUNK_TOKENS
    )
    return extent


def read_given(
    opened: OpenedModel,
    problems: Sequence[AnsweredProblem],
    reader: FeatureReader,
    *,
    raw: bool,
    tally: Tally,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[tuple[AnsweredProblem, tuple[ReadCandidate, ...]]]:
    """Yield each problem with its responses; `tally` counts on, and `on_step` is called, after each response."""
    session, watch = opened.session, tally.watch
    for problem in problems:
        prompt_ids, answers = _encoded(opened, problem, reader, raw)
        limit = len(prompt_ids) + max(map(len, answers))
        begun = time.perf_counter()
        cache = session.new_cache(1, limit, limit)
        first_logits = session.prefill(cache, prompt_ids).logits  # [1, v]
        assert first_logits is not None
        watch.prefill_s += time.perf_counter() - begun
        tally.prompt_tokens += len(prompt_ids)
        tally.rows = tally.held = 1
        candidates = []
        for index, (text, answer) in enumerate(zip(problem.completions, answers, strict=True)):
            cache.truncate(len(prompt_ids))
            growing = GrowingFeatures(index, reader, opened.tokenizer)
            for read in read_tokens(
                session,
                cache,
                answer,
                first_logits,
                watch,
                layers=reader.read_layers,
                statistics=READ_STATISTICS,
                feeds_last=reader.feeds_last,
            ):
                started = time.perf_counter()
                fed = reader.read(read.hidden_states, read.logits, read.statistics)
                watch.head_s += time.perf_counter() - started
                growing.add(read.token_ids, read.statistics, fed, slice(None))
            unscored = max(0, len(prompt_ids) + len(answer) - session.context_length)
            candidates.append(growing.finish("given", unscored, text))
            tally.tokens += len(answer)
            on_step()
        yield problem, tuple(candidates)


def _encoded(
    opened: OpenedModel, problem: AnsweredProblem, reader: FeatureReader, raw: bool
) -> tuple[Ids, list[list[int]]]:
    """Token ids of the prompt `[p]` and of the responses `[t]`, the EOS appended to texts without one."""
    try:
        prompt_ids = opened.prompt_ids(problem.prompt, raw=raw, feeds_last=reader.feeds_last)
        if problem.token_ids is None:
            return prompt_ids, [
                opened.answer_ids(text, place, len(prompt_ids), with_eos=True)
                for place, text in enumerate(problem.completions)
            ]
    except (PromptError, TokenizerError, InvalidOptionError) as error:
        raise naming(problem, error) from error
    context, vocab_size = opened.session.context_length, opened.session.vocab_size
    for place, ids in enumerate(problem.token_ids):
        if min(ids) < 0 or max(ids) >= vocab_size:
            raise DataError(
                f"{problem.place}: token_ids {place} goes from {min(ids)} to {max(ids)}; expected ids from 0 to "
                f"{vocab_size - 1}, those of this model"
            )
        # As in decoding, the last token may lie beyond a full context.
        if len(prompt_ids) + len(ids) > context + 1:
            raise DataError(
                f"{problem.place}: token_ids {place} has {len(ids)} tokens after a prompt of {len(prompt_ids)}, but "
                f"the model's context holds {context}; leave that response out"
            )
    return prompt_ids, [list(ids) for ids in problem.token_ids]
