"""A transformers checkpoint as the exporter needs it: sizes, token ids, tokenizer, template, then the weights.

Everything that can be refused cheaply is read before the weights are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.hub import cached_file

from swift_edge.bundle.manifest import TEMPLATE_NAME, TOKENIZER_NAME, Architecture, Tokens
from swift_edge.errors import ExportError, TokenizerError, UnsupportedModelError
from swift_edge.options import SamplingOptions
from swift_edge_export.tracing.attention_config import buffer_head_dim, check_config, exact_context_length

# Where a model's makers say nothing about sampling, it is done as in the method's paper (arXiv 2505.12225).
FALLBACK_TEMPERATURE = 1.0
FALLBACK_TOP_P = 0.9
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")


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
    """the whole config"""
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


def read_checkpoint(source: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Checkpoint:
    """Read config, generation config and tokenizer of a folder or hub id, and check them.

    Raises:
        ExportError: the folder is not a transformers checkpoint, or the hub does not have it.
        UnsupportedModelError: the model is no decoder, or keeps more than one kind of attention head.
        TokenizerError: no fast tokenizer, or one whose ids exceed the vocabulary.
    """
    folder = Path(source)
    if folder.exists() and not (folder / "config.json").is_file():
        names = sorted(entry.name for entry in folder.iterdir())[:6] if folder.is_dir() else []
        description = f"holds {', '.join(names) or 'nothing'}" if folder.is_dir() else "is a file"
        raise ExportError(
            f"{source} {description}; expected a transformers checkpoint: a folder with config.json, "
            "weights and tokenizer, or a hub id such as Qwen/Qwen2.5-0.5B-Instruct"
        )
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except Exception as error:
        raise _unreadable(source, error) from error
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{source} is an encoder-decoder ({config.model_type}); expected a causal LM")
    text = config.get_text_config()
    architecture, notes = _architecture(source, text)
    check_config(text)
    tokenizer, beyond = _tokenizer(source, options, architecture.vocab_size)
    if beyond:
        notes.append(f"{beyond} of the tokenizer's added tokens have ids beyond the vocabulary; no text may hold them")
    generation = _stated(source, revision, "generation_config.json")
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    name = folder.resolve().name if folder.exists() else source
    return Checkpoint(
        source=source,
        name=name,
        revision=getattr(config, "_commit_hash", None) or revision,
        config=config,
        architecture=architecture,
        tokens=_token_ids(generation, text, tokenizer),
        sampling=_sampling(generation),
        tokenizer=tokenizer,
        chat_template=template,
        parameters=_count_parameters(source, config, trust_remote_code),
        notes=notes,
        trust_remote_code=trust_remote_code,
    )


def load_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """Load the weights in fp32, for tracing and as the reference; raises ExportError where they do not load."""
    revision = checkpoint.revision if not Path(checkpoint.source).exists() else None
    loader: Any = AutoModelForCausalLM
    try:
        model, report = loader.from_pretrained(
            checkpoint.source,
            revision=revision,
            trust_remote_code=checkpoint.trust_remote_code,
            dtype=torch.float32,
            # The plainest attention is the reference: a faster one may pass over an argument, as 4.57's does over
            # Gemma 2's soft cap.
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except Exception as error:
        raise _unreadable(checkpoint.source, error) from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would go on with random weights
        raise ExportError(
            f"{checkpoint.source} lacks {len(missing)} of the model's weights, the first is {missing[0]}; "
            "download or save the checkpoint again"
        )
    for name, *shapes in sorted(report["mismatched_keys"]):
        stored, expected = (list(shape) for shape in shapes)
        raise ExportError(
            f"{checkpoint.source} has {name} of shape {stored}, its config makes it {expected}; "
            "use the config that belongs to the weights"
        )
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    return loaded


def fingerprint(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over names, shapes and fp32 values of all weights by name: the same at every precision of the export."""
    digest = hashlib.sha256()
    for name, parameter in weights:
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().float().contiguous().numpy().data)
        del parameter  # before the next one is made
    return digest.hexdigest()


def save_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `tokenizer.json` and, where there is one, `chat_template.jinja`."""
    backend = checkpoint.tokenizer.backend_tokenizer
    # Left over from training, these would cut or fill every prompt.
    backend.no_truncation()
    backend.no_padding()
    backend.save(str(folder / TOKENIZER_NAME))
    if checkpoint.chat_template:
        (folder / TEMPLATE_NAME).write_text(checkpoint.chat_template, encoding="utf-8")


def _unreadable(source: str, error: Exception) -> ExportError:
    reason = " ".join(str(error).split())
    if "trust_remote_code" in reason:
        return ExportError(
            f"{source} brings code of its own, which is never run unasked; if you trust it: --trust-remote-code"
        )
    if "Unrecognized configuration class" in reason:
        return UnsupportedModelError(f"{source} is of a kind that transformers has no causal LM for; expected one")
    if not Path(source).exists():
        return ExportError(
            f"{source} is no folder here and could not be read from the hub ({type(error).__name__}: {reason[:200]}); "
            "check the name, the connection, or log in for a gated model"
        )
    return ExportError(f"{source} does not load with transformers {transformers.__version__}: {reason[:300]}")


def _architecture(source: str, config: PretrainedConfig) -> tuple[Architecture, list[str]]:
    if not hasattr(config, "max_position_embeddings"):
        raise UnsupportedModelError(
            f"{source} ({config.model_type}) has a config without max_position_embeddings; expected a causal LM "
            "with rotary or learned positions, up to a limit that it states"
        )
    try:
        heads = config.num_attention_heads
        context_length, note = exact_context_length(config)
        architecture = Architecture(
            model_type=config.model_type,
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            num_attention_heads=heads,
            num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=buffer_head_dim(getattr(config, "head_dim", None) or config.hidden_size // heads),
            vocab_size=config.vocab_size,
            context_length=context_length,
        )
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{source} ({config.model_type}) has a config without {error.name}; "
            "expected one of a decoder-only transformer"
        ) from error
    return architecture, [note] if note else []


def _tokenizer(source: str, options: dict[str, Any], vocab_size: int) -> tuple[Any, int]:
    """The tokenizer, and how many of its added tokens have no logit; those are refused only where a text holds them."""
    try:
        file = cached_file(
            source, TOKENIZER_NAME, revision=options["revision"], _raise_exceptions_for_missing_entries=False
        )
        # The file is what the makers published. transformers 5 builds some families' tokenizers anew from the
        # vocabulary alone, which is another tokenizer where the family's checkpoint was given one of its own.
        kind = AutoTokenizer if file is None else PreTrainedTokenizerFast
        tokenizer = kind.from_pretrained(source, **options)
    except Exception as error:
        raise TokenizerError(
            f"{source} has no tokenizer that loads ({' '.join(str(error).split())[:200]}); "
            "expected tokenizer.json beside the weights"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(f"{source} has only a slow tokenizer; expected one with a tokenizer.json")
    _settle_bos(tokenizer, _stated(source, options["revision"], "tokenizer_config.json").get("add_bos_token"))
    added = {token for token in tokenizer.added_tokens_decoder if token >= vocab_size}
    needed = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    beyond = {token for token in tokenizer.get_vocab().values() if token >= vocab_size}
    if beyond - added or needed & added:
        raise TokenizerError(
            f"the tokenizer of {source} has ids up to {max(beyond)}, the model's vocabulary ends at {vocab_size - 1}; "
            "use the tokenizer that belongs to the model"
        )
    return tokenizer, len(added)


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


def _stated(source: str, revision: str | None, name: str) -> dict[str, Any]:
    """What a JSON file of the checkpoint states, and nothing else; empty without the file."""
    try:
        # transformers' own classes fill in defaults, which cannot be told from what the makers wrote afterwards.
        file = cached_file(source, name, revision=revision)
    except OSError:
        return {}
    try:
        stated = json.loads(Path(str(file)).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(f"{name} of {source} is not JSON ({error}); repair or remove it") from error
    return stated if isinstance(stated, dict) else {}


def _token_ids(generation: Mapping[str, Any], config: PretrainedConfig, tokenizer: Any) -> Tokens:
    eos: list[int] = []
    named = [generation.get("eos_token_id"), getattr(config, "eos_token_id", None)]
    # The first one counts most: what a chat template calls eos_token, or what ends a text where there is no template.
    for ids in [tokenizer.eos_token_id, *named] if tokenizer.chat_template else [*named, tokenizer.eos_token_id]:
        eos += ids if isinstance(ids, list) else [] if ids is None else [ids]
    # BOS is the tokenizer's alone: configs name one for models that never see it, and templates would write it.
    return Tokens(eos_ids=tuple(dict.fromkeys(eos)), bos_id=tokenizer.bos_token_id, pad_id=tokenizer.pad_token_id)


def _sampling(generation: Mapping[str, Any]) -> SamplingOptions:
    # Zero stands for "off" in all of these; one filter alone is a recommendation not to use the others.
    temperature, top_p, top_k, min_p = (generation.get(name) or None for name in _SAMPLING)
    silent = temperature is top_p is top_k is min_p is None
    return SamplingOptions(
        temperature=float(temperature or FALLBACK_TEMPERATURE),
        top_p=float(top_p or (FALLBACK_TOP_P if silent else 1.0)),
        top_k=top_k if top_k is not None and top_k > 0 else None,
        min_p=min_p,
        repetition_penalty=float(generation.get("repetition_penalty") or 1.0),
    )


def _count_parameters(source: str, config: PretrainedConfig, trust_remote_code: bool) -> int:
    """Weights of the model, counted on a skeleton without memory."""
    maker: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            skeleton = maker.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _unreadable(source, error) from error
    return sum(parameter.numel() for parameter in skeleton.parameters())
