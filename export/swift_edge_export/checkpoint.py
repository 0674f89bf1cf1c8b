"""A model as the exporter needs it: sizes, token ids, tokenizer, template, of a transformers checkpoint or a GGUF file.

Everything that can be refused cheaply is read before the weights are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.hub import cached_file

from swift_edge.bundle.manifest import TEMPLATE_NAME, TOKENIZER_NAME, Architecture, Tokens
from swift_edge.checks import is_whole
from swift_edge.errors import (
    ExportError,
    SwiftEdgeError,
    UnsupportedModelError,
    one_line,
)
from swift_edge.options import SamplingOptions, options_of
from swift_edge.records import shown
from swift_edge_export.checkpoint_tokenizer import check_ids, check_words, default_template, tokenizer_of
from swift_edge_export.gguf.container import SUFFIX, Contents
from swift_edge_export.gguf.source import gguf_name, is_gguf, read_gguf
from swift_edge_export.stated import read_stated
from swift_edge_export.tracing.attention_config import buffer_head_dim, check_config, exact_context_length

# Where a model's makers say nothing about sampling, it is done as in the method's paper (arXiv 2505.12225).
FALLBACK_TEMPERATURE = 1.0
FALLBACK_TOP_P = 0.9
_FILTERS = ("temperature", "top_p", "top_k", "min_p")
# What else of a generation config changes which tokens come next; 0 and 1 stand for "off" in those that are numbers.
_NOT_DONE = (
    "stop_strings",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "sequence_bias",
    "no_repeat_ngram_size",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "exponential_decay_length_penalty",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "top_h",
    "guidance_scale",
)
# More than any model has; both are walked through before anything else is known of a checkpoint.
_COUNTS = {re.compile(r"^(num|n)_(\w+_)?layers?$"): 1000, re.compile(r"^num_labels$"): 10**5}
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint says about itself, before its weights are loaded."""

    source: str
    """folder or hub id, as it was given"""
    name: str
    """hub id, or the folder's name"""
    revision: str | None
    """commit on the hub, where it is known"""
    config: PretrainedConfig
    """what the model is made from: the whole config, or that of its text part where the model is that part"""
    family: type[PreTrainedModel]
    """the class of the model"""
    architecture: Architecture
    """sizes of the graph's tensors"""
    tokens: Tokens
    """EOS, BOS and padding ids"""
    sampling: SamplingOptions
    """sampling that the makers recommend"""
    tokenizer: Any
    """the fast tokenizer of transformers"""
    chat_template: str | None
    """source of the default chat template"""
    parameters: int
    """weights, tied ones counted once"""
    notes: Sequence[str]
    """what the user should know"""
    trust_remote_code: bool
    """whether code of the checkpoint may run"""
    gguf: Contents | None = None
    """where the weights are in a GGUF file; None where transformers reads them itself"""


@dataclasses.dataclass(frozen=True, slots=True)
class _Stated:
    """What the files of a model state, in the words of transformers."""

    config: PretrainedConfig
    text: PretrainedConfig
    architecture: Architecture
    tokenizer: Any
    generation: Mapping[str, Any]
    generation_name: str
    notes: list[str]
    gguf: Contents | None = None


def read_checkpoint(
    source: str, revision: str | None = None, *, file: str | None = None, trust_remote_code: bool = False
) -> Checkpoint:
    """Read config, generation config and tokenizer of a folder, hub id or GGUF file, and check them.

    `file` names a GGUF file in the folder, or on the hub.

    Raises:
        ExportError: the folder is not a transformers checkpoint, the file no GGUF file, or the hub does not have it.
        UnsupportedModelError: the model is no decoder, or keeps more than one kind of attention head.
        TokenizerError: no fast tokenizer, or one whose ids exceed the vocabulary.
        InvalidOptionError: `file` does not fit `source`.
    """
    if not source:  # as of a variable that is not set: to a path that is the current folder
        raise ExportError(
            "the name of the model is empty; expected a folder, such as . for the current one, or a hub id"
        )
    if is_gguf(source, file):
        stated, name = _of_gguf(source, revision, file), gguf_name(source, file)
    else:
        stated = _of_folder(source, revision, trust_remote_code)
        name = Path(source).resolve().name if Path(source).exists() else source
    notes, vocab_size = stated.notes, stated.architecture.vocab_size
    template = default_template(source, stated.tokenizer.chat_template, notes)
    tokens = _token_ids(source, stated, vocab_size)
    sampling = _sampling(stated.generation, stated.generation_name, notes)
    with _config_refusals(source):
        skeleton = _skeleton(stated.config, trust_remote_code)
    return Checkpoint(
        source=source,
        name=name,
        revision=getattr(stated.config, "_commit_hash", None) or revision,
        config=skeleton.config,
        family=type(skeleton),
        architecture=stated.architecture,
        tokens=tokens,
        sampling=sampling,
        tokenizer=stated.tokenizer,
        chat_template=template,
        parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        notes=notes,
        trust_remote_code=trust_remote_code,
        gguf=stated.gguf,
    )


def _of_folder(source: str, revision: str | None, trust_remote_code: bool) -> _Stated:
    _check_folder(source, revision)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _config_refusals(source):
        _check_stated_sizes(source, read_stated(source, revision, "config.json"))
        config = AutoConfig.from_pretrained(source, **options)
        if getattr(config, "is_encoder_decoder", False):
            raise UnsupportedModelError(f"{source} is an encoder-decoder ({config.model_type}); expected a causal LM")
        text = config.get_text_config()
        for each in (config, text):
            _refuse_quantised(source, getattr(each, "quantization_config", None))
        architecture, notes = _architecture(source, text)
        check_config(text)
    tokenizer = tokenizer_of(source, options)
    check_ids(source, tokenizer, architecture.vocab_size, notes)
    generation = read_stated(source, revision, "generation_config.json")
    if tokenizer.chat_template is None:  # processors keep theirs in a file that no tokenizer reads
        tokenizer.chat_template = read_stated(source, revision, "chat_template.json").get("chat_template")
    return _Stated(config, text, architecture, tokenizer, generation, "generation_config.json", notes)


def _of_gguf(source: str, revision: str | None, file: str | None) -> _Stated:
    with _config_refusals(source):
        model = read_gguf(source, revision, file)
        architecture, notes = _architecture(source, model.config)
        check_config(model.config)
    check_words(source, model.tokenizer)
    check_ids(source, model.tokenizer, architecture.vocab_size, notes)
    notes.extend(model.notes)
    contents = model.contents
    return _Stated(
        model.config,
        model.config,
        architecture,
        model.tokenizer,
        model.generation,
        f"the metadata of {contents.path.name}",
        notes,
        contents,
    )


def save_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `tokenizer.json` and, where there is one, `chat_template.jinja`."""
    backend = checkpoint.tokenizer.backend_tokenizer
    # Left over from training, these would cut or fill every prompt.
    backend.no_truncation()
    backend.no_padding()
    backend.save(str(folder / TOKENIZER_NAME))
    if checkpoint.chat_template:
        (folder / TEMPLATE_NAME).write_text(checkpoint.chat_template, encoding="utf-8")


def unreadable(source: str, error: Exception) -> ExportError:
    """What transformers raised about a checkpoint, as one line with a way out."""
    said, reason = str(error), one_line(error)
    if "trust_remote_code" in said:
        return ExportError(
            f"{source} brings code of its own, which is never run unasked; if you trust it: --trust-remote-code"
        )
    if "Unrecognized configuration class" in said:
        return UnsupportedModelError(f"{source} is of a kind that transformers has no causal LM for; expected one")
    if "per-layer attribute" in said:  # said of a config whose layers differ, with advice for programmers
        return UnsupportedModelError(
            f"{source} has layers of different sizes, such as heads of several widths; expected layers that are alike"
        )
    if not Path(source).exists():
        return ExportError(
            f"{source} is no folder here and could not be read from the hub ({type(error).__name__}: {reason}); "
            "check the name, the connection, or log in for a gated model"
        )
    return ExportError(
        f"{source} does not load with transformers {transformers.__version__} ({type(error).__name__}: "
        f"{reason}); check its config and its files"
    )


@contextlib.contextmanager
def _config_refusals(source: str) -> Iterator[None]:
    """Turn whatever a config raises into an ExportError: its attributes are code, and may raise anything."""
    try:
        yield
    except SwiftEdgeError:
        raise
    except Exception as error:
        raise unreadable(source, error) from error


def _check_folder(source: str, revision: str | None) -> None:
    """Refuse a folder that is no whole checkpoint, or that holds an adapter, which would be left out."""
    folder = Path(source)
    adapter = next((name for name in _ADAPTER_FILES if (folder / name).exists()), None)
    if adapter is None and not folder.exists():
        with contextlib.suppress(OSError):  # a hub that does not answer is told of when the config is asked for
            found = cached_file(source, _ADAPTER_FILES[0], revision=revision)
            adapter = None if found is None else _ADAPTER_FILES[0]
    if adapter is not None:
        raise ExportError(
            f"{source} holds an adapter ({adapter}), which an export would leave out; merge it into its model first "
            "(merge_and_unload of peft), and save that to a folder of its own, or remove it"
        )
    if folder.exists() and not (folder / "config.json").is_file():
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        weights = [name for name in names if name.endswith(SUFFIX)]
        if weights:
            raise ExportError(
                f"{source} has no config.json, but holds {', '.join(weights[:6])}; name the one to export with --file"
            )
        names = names[:6]
        description = f"holds {', '.join(names) or 'nothing'}" if folder.is_dir() else "is a file"
        raise ExportError(
            f"{source} {description}; expected a transformers checkpoint: a folder with config.json, "
            "weights and tokenizer, or a hub id such as Qwen/Qwen2.5-0.5B-Instruct"
        )


def _refuse_quantised(source: str, stated: Any) -> None:
    """Refuse a config of quantised weights: with some, transformers quantises plain weights too while it loads them."""
    if stated is None:
        return
    method = stated.get("quant_method") if isinstance(stated, dict) else getattr(stated, "quant_method", None)
    raise UnsupportedModelError(
        f"the config of {source} has a quantization_config ({method or 'without a method'}); expected weights in "
        "floating point: export the model that it was made from, or take that entry out where the weights are plain"
    )


def _check_stated_sizes(source: str, stated: Mapping[str, Any]) -> None:
    """Refuse absurd numbers of what transformers makes a list entry, and then a module, for."""
    for name, value in stated.items():
        if isinstance(value, dict):
            _check_stated_sizes(source, value)
            continue
        for pattern, most in _COUNTS.items():
            if pattern.search(name) and isinstance(value, int | float) and value > most:
                raise UnsupportedModelError(
                    f"the config of {source} has {shown(value)} as {name}; expected at most {most}"
                )


def _architecture(source: str, config: PretrainedConfig) -> tuple[Architecture, list[str]]:
    if not hasattr(config, "max_position_embeddings"):
        raise UnsupportedModelError(
            f"{source} ({config.model_type}) has a config without max_position_embeddings; expected a causal LM "
            "with rotary or learned positions, up to a limit that it states"
        )

    def size(name: str, value: Any) -> int:
        if not is_whole(value, 1):
            raise UnsupportedModelError(
                f"the config of {source} has {shown(value)} as {name}; expected an integer of at least 1"
            )
        return int(value)

    try:
        heads = size("num_attention_heads", config.num_attention_heads)
        hidden_size = size("hidden_size", config.hidden_size)
        size("max_position_embeddings", config.max_position_embeddings)
        context_length, note = exact_context_length(config)
        architecture = Architecture(
            model_type=config.model_type,
            num_layers=size("num_hidden_layers", config.num_hidden_layers),
            hidden_size=hidden_size,
            num_attention_heads=heads,
            num_key_value_heads=size("num_key_value_heads", _stated_or(config, "num_key_value_heads", heads)),
            head_dim=buffer_head_dim(size("head_dim", _stated_or(config, "head_dim", hidden_size // heads))),
            vocab_size=size("vocab_size", config.vocab_size),
            context_length=size("context length", context_length),
        )
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{source} ({config.model_type}) has a config without {error.name}; "
            "expected one of a decoder-only transformer"
        ) from error
    return architecture, [note] if note else []


def _stated_or(config: PretrainedConfig, name: str, value: int) -> Any:
    stated = getattr(config, name, None)
    return value if stated is None else stated


def _token_ids(source: str, stated_by: _Stated, vocab_size: int) -> Tokens:
    tokenizer, notes = stated_by.tokenizer, stated_by.notes
    named = [
        (f"eos_token_id of {stated_by.generation_name}", stated_by.generation.get("eos_token_id")),
        ("eos_token_id of config.json", getattr(stated_by.text, "eos_token_id", None)),
    ]
    own = [("EOS of the tokenizer", tokenizer.eos_token_id)]
    eos: list[int] = []
    # The first one counts most: what a chat template calls eos_token, or what ends a text where there is no template.
    for name, stated in own + named if tokenizer.chat_template else named + own:
        for token in stated if isinstance(stated, list) else [] if stated is None else [stated]:
            if not is_whole(token, -math.inf):
                raise ExportError(
                    f"{name} of {source} is {shown(stated)}; expected ids of tokens from 0 to {vocab_size - 1}: "
                    "repair or remove it"
                )
            eos += _known([token], name, vocab_size, notes)
    if not eos:
        notes.append("no token ends a text: candidates end at max_new_tokens, at a stop string or with the context")
    # BOS is the tokenizer's alone: configs name one for models that never see it, and templates would write it.
    padding = [] if tokenizer.pad_token_id is None else [tokenizer.pad_token_id]
    padding = _known(padding, "padding of the tokenizer", vocab_size, notes)
    return Tokens(
        eos_ids=tuple(dict.fromkeys(eos)), bos_id=tokenizer.bos_token_id, pad_id=padding[0] if padding else None
    )


def _known(ids: list[int], name: str, vocab_size: int, notes: list[str]) -> list[int]:
    """Those ids that the model has a logit for, with a note on others; -1 is what some configs write for none."""
    for token in ids:
        if not 0 <= token < vocab_size:
            notes.append(f"{name} is {shown(token)}, the vocabulary has 0 to {vocab_size - 1}; left out")
    return [token for token in ids if 0 <= token < vocab_size]


def _sampling(generation: Mapping[str, Any], origin: str, notes: list[str]) -> SamplingOptions:
    """What `generation` recommends; `origin` says where it stands."""
    declared = options_of(SamplingOptions)
    stated: dict[str, Any] = {}
    for name, option in declared.items():
        # Zero stands for "off" in all of these; one filter alone is a recommendation not to use the others.
        value: Any = generation.get(name) or None
        if name == "top_k" and is_whole(value, -math.inf) and value < 0:
            value = None
        if value is not None and not option.accepts(value):
            notes.append(f"{name} of {origin} is {shown(value)}; expected {option.expected}: left out")
            value = None
        stated[name] = value
    for name in _NOT_DONE:
        value = generation.get(name)
        if value and value != 1:
            stop = "; give it with --stop" if name == "stop_strings" else ""
            notes.append(f"{name} of {origin} is {shown(value)}, which is not done here: left out{stop}")
    silent = all(stated[name] is None for name in _FILTERS)
    return SamplingOptions(
        temperature=float(stated["temperature"] or FALLBACK_TEMPERATURE),
        top_p=float(stated["top_p"] or (FALLBACK_TOP_P if silent else 1.0)),
        top_k=stated["top_k"],
        min_p=stated["min_p"],
        repetition_penalty=float(stated["repetition_penalty"] or 1.0),
    )


def _skeleton(config: PretrainedConfig, trust_remote_code: bool) -> PreTrainedModel:
    """The model without memory for its weights."""
    maker: Any = AutoModelForCausalLM
    with torch.device("meta"):
        # A config may name an attention that is not installed here, or a type that no model can be made in.
        skeleton: PreTrainedModel = maker.from_config(
            config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=trust_remote_code
        )
    return skeleton
