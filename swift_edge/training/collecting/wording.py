"""The words around a benchmark's questions: what is asked for, and worked examples where a model has to be shown.

A chat model gets the instruction as its system prompt and the question alone as the user's turn, or, where its template
takes no system prompt, behind the first question. A model without a chat template continues a text:

    INSTRUCTION / Question: ... / Answer: ... / Question: ... / Answer:
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Final

from swift_edge.bundle.tokenizer import Message
from swift_edge.engine.model import OpenedModel, Prompt
from swift_edge.errors import TemplateError
from swift_edge.options import MOST_SHOTS
from swift_edge.training.collecting.benchmarks import BENCHMARKS
from swift_edge.training.collecting.problems import Problem, Problems
from swift_edge.training.collecting.worked_examples import WORKED_EXAMPLES
from swift_edge.training.store.format import Asked, Form

NEXT_QUESTION: Final = "\nQuestion:"
"""What a model without a chat template goes on with after its answer; responses end before it."""
_PROBE: Final = "Answer in verse."


@dataclass(frozen=True, slots=True)
class Wording:
    """How the questions of a benchmark are put to one model."""

    form: Form
    """Where the instruction stands."""
    instruction: str
    """What is asked for; empty for nothing."""
    examples: tuple[tuple[str, str], ...]
    """Questions and answers that are shown before each question."""

    def prompt(self, question: str) -> Prompt:
        """The prompt that asks a question."""
        if self.form == "text":
            shown = [f"Question: {asked}\nAnswer: {answer}" for asked, answer in self.examples]
            parts = [self.instruction, *shown, f"Question: {question}\nAnswer:"]
            return "\n\n".join(part for part in parts if part)
        questions = [asked for asked, _ in self.examples] + [question]
        turns: list[Message] = []
        if self.instruction and self.form == "user":
            questions[0] += f"\n\n{self.instruction}"
        elif self.instruction:
            turns.append({"role": "system", "content": self.instruction})
        for asked, (_, answer) in zip(questions, self.examples, strict=False):
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return (*turns, {"role": "user", "content": questions[-1]})

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end a response."""
        return (NEXT_QUESTION,) if self.form == "text" else ()

    @property
    def examples_sha256(self) -> str:
        """SHA-256 of the examples; empty without any."""
        return hashlib.sha256(repr(self.examples).encode()).hexdigest() if self.examples else ""


def wording_for(problems: Problems, opened: OpenedModel, *, raw: bool) -> Wording | None:
    """How these problems are put to a model; None where they are asked as they stand."""
    asking = problems.asking
    if asking.benchmark == "jsonl":
        return None
    form = _form(opened, raw)
    shots = asking.shots if asking.shots is not None else (MOST_SHOTS if form == "text" else 0)
    instruction = BENCHMARKS[asking.benchmark].instruction if asking.system is None else asking.system
    return Wording(form, instruction, WORKED_EXAMPLES[asking.benchmark][:shots])


def worded(problems: Problems, wording: Wording | None) -> tuple[Problem, ...]:
    """The problems with the prompts that ask them."""
    if wording is None:
        return problems.rows
    return tuple(replace(each, prompt=wording.prompt(str(each.question))) for each in problems.rows)


def asked(problems: Problems, wording: Wording | None) -> Asked | None:
    """What a store keeps of it; None for a whole file of prompts, from its beginning."""
    asking = problems.asking
    if wording is None:
        if not asking.skip and asking.shuffle is None:
            return None
        wording = Wording("given", "", ())
    return Asked(
        asking.benchmark,
        len(wording.examples),
        wording.instruction,
        wording.form,
        wording.examples_sha256,
        asking.skip,
        asking.shuffle,
    )


def _form(opened: OpenedModel, raw: bool) -> Form:
    if raw or opened.bundle.chat_template is None:
        return "text"
    try:
        text = opened.tokenizer.render([{"role": "system", "content": _PROBE}, {"role": "user", "content": "1"}])
    except TemplateError:  # some refuse system prompts, others leave them out
        return "user"
    return "system" if _PROBE in text else "user"
