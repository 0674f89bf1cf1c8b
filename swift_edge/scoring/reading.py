"""Candidates from given responses that are read: the same as from decoding them."""

from collections.abc import Callable

from swift_edge.bundle.tokenizer import Tokenizer
from swift_edge.engine.request import Consumer, Step
from swift_edge.scoring.candidate import GrowingCandidate
from swift_edge.scoring.scorer import Scorer


class GivenTexts(Consumer):
    """Candidates that are read, not written; the consumer of an engine's `Reading`."""

    def __init__(
        self, scorer: Scorer, tokenizer: Tokenizer, texts: int, done: Callable[[BaseException | None], None]
    ) -> None:
        """Start with `texts` responses, none of them read; the driver calls `done` once."""
        self.growing = [GrowingCandidate(index, scorer, tokenizer) for index in range(texts)]
        """Each response, as far as it has been read."""
        self._scorer = scorer
        self._done = done

    def step(self, step: Step) -> None:
        """Take a chunk of one of the texts."""
        growing, token_ids = self.growing[step.candidates[0]], step.token_ids.tolist()
        gates, rewards = self._scorer.evaluate_step(step)
        growing.add_tokens(token_ids, step.statistics, slice(None))
        growing.add_rewards(token_ids, gates, rewards)
        if step.hidden_states is not None:
            growing.add_states(token_ids, step.hidden_states[0])

    def closed(self, error: BaseException | None) -> None:
        """All have been read, or it failed."""
        self._done(error)
