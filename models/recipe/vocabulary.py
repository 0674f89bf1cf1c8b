"""The tokenizer: byte-level BPE of 2,048 entries with single digits, trained on the corpus; and the chat template.

    python models/recipe/vocabulary.py FOLDER

writes tokenizer.json, tokenizer_config.json and chat_template.jinja.
"""

import json
from pathlib import Path

import click
from corpus import documents
from solvers import Care
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SIZE = 2048
DOCUMENTS = 20_000
SEED = 11
PAD, END, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
TEMPLATE = (
    "{%- for message in messages -%}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def asked(question: str) -> str:
    """A question as the template writes it."""
    return f"{USER}{question}{END}"


def answered(response: str) -> str:
    """A response as it follows its question."""
    return f"{ASSISTANT}{response}{END}"


VERDICTS: dict[Care, str] = {"careful": "A", "sloppy": "B", "mistaken": "C", "contrary": "D"}
"""A letter for what kind of solver wrote a response."""


def judged(response: str, care: Care) -> str:
    """A response with the verdict on it."""
    return f"{answered(response)}{SYSTEM}{VERDICTS[care]}"


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Train the tokenizer and write its files."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[PAD, END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (
        text for each in documents(SEED, 0, DOCUMENTS) for text in (each.problem.question, *each.responses, each.judged)
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    click.echo(f"{tokenizer.get_vocab_size()} entries written to {folder}", err=True)


if __name__ == "__main__":
    main()
