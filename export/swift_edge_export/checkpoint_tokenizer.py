"""The tokenizer of a checkpoint and its chat template, checked against the model."""

from __future__ import annotations

from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from swift_edge.bundle.manifest import TOKENIZER_NAME
from swift_edge.errors import SwiftEdgeError, TokenizerError, one_line
from swift_edge.records import shown
from swift_edge.system.panics import is_panic
from swift_edge_export.stated import read_stated

_OWN_TOKENIZER = (
    "copy tokenizer.json and tokenizer_config.json of the model that these weights were made from into the folder"
)
_PROBES = ("a", "1", "the", ".")
# Files that some tokenizers are made from in place of their own.
_OTHER_VOCABULARIES = ("tokenizer.model", "tekken.json", "tiktoken.model")


def tokenizer_of(source: str, options: dict[str, Any]) -> Any:
    """The fast tokenizer of a checkpoint."""
    try:
        file = cached_file(
            source, TOKENIZER_NAME, revision=options["revision"], _raise_exceptions_for_missing_entries=False
        )
        # The file is what the makers published. transformers 5 builds some families' tokenizers anew from the
        # vocabulary alone, which is another tokenizer where the family's checkpoint was given one of its own.
        kind = AutoTokenizer if file is None else PreTrainedTokenizerFast
        tokenizer = kind.from_pretrained(source, **options)
        if file is None:
            _require_vocabulary(source, options["revision"], tokenizer)
        if not getattr(tokenizer, "is_fast", False):
            raise TokenizerError(f"{source} has only a slow tokenizer; expected one with a tokenizer.json")
        _settle_bos(tokenizer, read_stated(source, options["revision"], "tokenizer_config.json").get("add_bos_token"))
        check_words(source, tokenizer)
    except SwiftEdgeError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise TokenizerError(
            f"{source} has no tokenizer that loads ({type(error).__name__}: {one_line(error)}); {_OWN_TOKENIZER}"
        ) from error
    return tokenizer


def check_words(source: str, tokenizer: Any) -> None:
    """Refuse a tokenizer that has no token for anything."""
    backend = tokenizer.backend_tokenizer
    words = backend.get_vocab_size(with_added_tokens=False) > 1  # one is the unknown token
    if not words or not any(backend.encode(text, add_special_tokens=False).ids for text in _PROBES):
        raise TokenizerError(f"the tokenizer of {source} gives no token for any letter or digit; {_OWN_TOKENIZER}")


def check_ids(source: str, tokenizer: Any, vocab_size: int, notes: list[str]) -> None:
    """Refuse a tokenizer with ids that have no logit; those of added tokens only where a text holds them."""
    added = {token for token in tokenizer.added_tokens_decoder if token >= vocab_size}
    needed = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    beyond = {token for token in tokenizer.get_vocab().values() if token >= vocab_size}
    if beyond - added or needed & added:
        raise TokenizerError(
            f"the tokenizer of {source} has ids up to {max(beyond)}, the model's vocabulary ends at {vocab_size - 1}; "
            "use the tokenizer that belongs to the model"
        )
    if added:
        notes.append(
            f"{len(added)} of the tokenizer's added tokens have ids beyond the vocabulary; no text may hold them"
        )


def _require_vocabulary(source: str, revision: str | None, tokenizer: Any) -> None:
    """Refuse a tokenizer that was made without the files of its vocabulary: transformers then makes an empty one."""
    names = [name for what, name in type(tokenizer).vocab_files_names.items() if what in ("vocab_file", "merges_file")]
    wanted = [names] if names else []
    for options in [*wanted, *([name] for name in _OTHER_VOCABULARIES)]:
        files = [
            cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
            for name in options
        ]
        if None not in files:
            return
    raise TokenizerError(
        f"{source} has no tokenizer: neither {TOKENIZER_NAME} nor {' and '.join(names) or 'a vocabulary'}; "
        f"{_OWN_TOKENIZER}"
    )


def _settle_bos(tokenizer: Any, add_bos: bool | None) -> None:
    """Let the tokenizer put BOS before a text exactly where `add_bos_token` of its config says so.

    transformers' own classes of some families read that setting and rewrite what `tokenizer.json` does.
    """
    bos = tokenizer.bos_token
    if add_bos is None or bos is None:
        return
    backend = tokenizer.backend_tokenizer
    puts = backend.encode("1").ids[:1] == [tokenizer.bos_token_id]
    if bool(add_bos) != puts:
        single = f"{bos} $A" if add_bos else "$A"
        special = [(bos, tokenizer.bos_token_id)] if add_bos else []
        backend.post_processor = TemplateProcessing(single=single, special_tokens=special)


def default_template(source: str, template: Any, notes: list[str]) -> str | None:
    """The template that picks will use: the one without a name, the one named default, or the only one."""
    if isinstance(template, dict) and "default" in template:
        template = template["default"]
    elif isinstance(template, dict):
        if len(template) != 1:
            raise TokenizerError(
                f"the tokenizer of {source} has the chat templates {', '.join(sorted(map(str, template)))} and none "
                "named default; name the one to use so in tokenizer_config.json, or put it into chat_template.jinja"
            )
        ((name, template),) = template.items()
        notes.append(f"the chat template named {name} is used: it is the only one, and none is named default")
    if template is not None and not isinstance(template, str):
        raise TokenizerError(
            f"the tokenizer of {source} has {shown(template)} as its chat template; expected a text: put the template "
            "into chat_template.jinja"
        )
    return template or None
