"""Reading of given responses to many problems, in chunks after their prompts, which are read once.

Yields the same as `generating` does for responses that it writes, so that both are stored alike.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from time import perf_counter

from swift_edge.arrays import Ids
from swift_edge.engine.model import OpenedModel
from swift_edge.engine.reading import RESPONSE_CHUNK_TOKENS
from swift_edge.engine.request import Consumer, Reading, Step
from swift_edge.errors import DataError, InvalidOptionError, PromptError, TokenizerError
from swift_edge.training.collecting.features import FeatureReader, GrowingFeatures, ReadCandidate
from swift_edge.training.collecting.generating import Tally
from swift_edge.training.collecting.problems import naming
from swift_edge.training.collecting.responses import AnsweredProblem


@dataclass(slots=True)
class Extent:
    """Number of responses and tokens to read."""

    candidates: int = 0
    """Responses."""
    kept_tokens: int = 0
    """Most response tokens whose features are kept."""


def check_completions(
    opened: OpenedModel, problems: Sequence[AnsweredProblem], reader: FeatureReader, *, raw: bool
) -> Extent:
    """Encode every response once, and check that all of them fit.

    Raises `DataError` with the line of a prompt or response that does not, `MemoryLimitError` if memory is short.
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
        1, longest_prompt, longest_answer, layers=len(reader.reads.all_layers), tokens_per_run=RESPONSE_CHUNK_TOKENS
    )
    return extent


def read_completions(
    opened: OpenedModel,
    problems: Sequence[AnsweredProblem],
    reader: FeatureReader,
    *,
    raw: bool,
    tally: Tally,
    on_step: Callable[[], None] = lambda: None,
) -> Iterator[tuple[AnsweredProblem, tuple[ReadCandidate, ...]]]:
    """Yield each problem with its responses; after each response `tally` is updated and `on_step` called."""
    for problem in problems:
        prompt_ids, answers = _encoded(opened, problem, reader, raw)
        consumer = _Completions(opened, reader, tally, len(answers))
        ticket = opened.engine.submit(Reading(prompt_ids, answers, reader.reads), consumer)
        tally.prompt_tokens += len(prompt_ids)
        tally.rows = tally.held = 1
        candidates = []
        try:
            for index, (text, answer) in enumerate(zip(problem.completions, answers, strict=True)):
                growing = consumer.next_read()
                assert growing.index == index
                unscored = max(0, len(prompt_ids) + len(answer) - opened.session.context_length)
                candidates.append(growing.finish("given", unscored, text))
                on_step()
        finally:
            ticket.cancel()
        tally.watch.add(ticket.watch)
        yield problem, tuple(candidates)


class _Completions(Consumer):
    """The responses of a problem; the consumer of the request that reads them."""

    def __init__(self, opened: OpenedModel, reader: FeatureReader, tally: Tally, responses: int) -> None:
        self._reader = reader
        self._tally = tally
        self._growing = [GrowingFeatures(index, reader, opened.tokenizer) for index in range(responses)]
        self._current = 0
        self._read: SimpleQueue[GrowingFeatures | BaseException] = SimpleQueue()

    def next_read(self) -> GrowingFeatures:
        """Wait for the next response to be read, or raise the error that ended the reading."""
        outcome = self._read.get()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def step(self, step: Step) -> None:
        """Take a chunk of a response; when the next response begins, the one before is complete."""
        if step.candidates[0] != self._current:
            self._read.put(self._growing[self._current])
            self._current = step.candidates[0]
        started = perf_counter()
        fed = self._reader.read(step)
        self._tally.watch.head_s += perf_counter() - started
        self._growing[self._current].add(step.token_ids.tolist(), step.statistics, fed, slice(None))
        self._tally.tokens += len(step.token_ids)

    def closed(self, error: BaseException | None) -> None:
        """The last response is complete, or reading failed."""
        self._read.put(self._growing[self._current] if error is None else error)


def _encoded(
    opened: OpenedModel, problem: AnsweredProblem, reader: FeatureReader, raw: bool
) -> tuple[Ids, list[list[int]]]:
    """Token ids of the prompt `[p]` and of the responses `[t]`, the EOS appended to texts without one."""
    try:
        prompt_ids = opened.prompt_ids(problem.prompt, raw=raw, feeds_last=reader.reads.feeds_last)
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
