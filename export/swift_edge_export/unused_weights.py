"""Tensors of a checkpoint that its model does not use: refused by name, unless they are known to be harmless.

A model that leaves a weight aside computes something else than what was trained: biases that its config switches off,
adapters that were never merged, layers that it does not count, the scales of weights that are codes.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from swift_edge.errors import ExportError
from swift_edge_export.stored_tensor import FLOATS
from swift_edge_export.weight_files import WeightFiles, same_values

# What a model computes from its config, and older versions of transformers saved: rotary angles, position numbers.
_COMPUTED = re.compile(
    r"(^|\.)(original_inv_freq|inv_freq|position_ids|cos_cached|sin_cached|masked_bias|causal_mask|embed_positions)$"
)
# The triangle of ones of GPT-2 and its kin has the name of a bias, and four axes.
_MASK = re.compile(r"(^|\.)(\w*attn|\w*attention)\.bias$")
_MASK_AXES = 4
# What reads pictures and sounds for a model, or speaks for it: text alone never gets there.
_TOWERS = re.compile(
    r"^(model\.|thinker\.)?"
    r"(vision\w*|visual\w*|image\w*|audio\w*|speech\w*|embed_vision|embed_audio|multi_modal_projector|mm_projector"
    r"|talker|token2wav|code2wav)(\.|$)"
)
# Layers that draft the tokens after the next one; what the model says of the next one does not depend on them.
_DRAFTING = re.compile(r"^(model\.)?mtp(_\w+)?\.")
_LAYER = re.compile(r"(^|\.)layers\.(\d+)\.")
_DRAFTING_INPUT = "eh_proj.weight"

_ADAPTER = re.compile(
    r"(^|\.)(lora_|base_layer\.|original_module\.|modules_to_save\.|ia3_l|hada_w|lokr_w|oft_|boft_|vera_|vblora_"
    r"|adapter_|prompt_encoder\.)"
)
_CODES = re.compile(
    r"(scale|scale_inv|scales|scale_2|zero_point|qweight|qzeros|g_idx|packed|absmax|quant_map|SCB|amax|_codebook)$"
    r"|quant_state|weight_format$|quantizer"
)
# What stands before the names of a model that is a part of another, in some versions of transformers or all.
_WRAPPERS = ("model", "language_model")
_NAMES_SHOWN = 3


@contextlib.contextmanager
def every_unused_weight_told(family: type[PreTrainedModel]) -> Iterator[None]:
    """Let `from_pretrained` report all keys that it does not use; a family may hide some, such as whole layers."""
    name = "_keys_to_ignore_on_load_unexpected"
    owner: Any = next(kind for kind in family.__mro__ if name in vars(kind))
    hidden = vars(owner)[name]
    setattr(owner, name, _NothingHidden())
    try:
        yield
    finally:
        setattr(owner, name, hidden)


def refuse_unused_weights(
    source: str, files: WeightFiles, unused: Collection[str], model: PreTrainedModel
) -> list[str]:
    """Raise ExportError for keys that the model does not use and would need; returns notes on those it does not need.

    `unused` are those that transformers did not expect, by the names that it gives them. What it did expect has to be
    stored as floating-point numbers.
    """
    towers, drafting, refused = [], [], []
    stored = {name: _name_in_files(name, files) for name in unused}
    computed = {name for name, _ in model.named_buffers()}
    for name in sorted(unused):
        own = stored[name]
        axes = len(files.tensors[own].shape) if own is not None else 0
        if _COMPUTED.search(name) or name in computed or (_MASK.search(name) and axes == _MASK_AXES):
            continue
        if own is not None and _adds_nothing(own, files):
            continue
        if _TOWERS.search(name):
            towers.append(name)
        elif _DRAFTING.search(name) or _is_drafting_layer(name, unused, model.config):
            drafting.append(name)
        else:
            refused.append(name)
    if refused:
        raise ExportError(
            f"{source} holds {_count(refused)} that {type(model).__name__} does not use, as its config makes it: "
            f"{_some(refused)}; {_way_out(refused)}"
        )
    _refuse_two_names(source, files, model)
    used = files.tensors.keys() - {name for name in files.tensors if _COMPUTED.search(name)}
    for name in sorted(used - set(stored.values())):
        tensor = files.tensors[name]
        if tensor.dtype not in FLOATS:
            raise ExportError(
                f"{source} holds {name} as {tensor.dtype}, codes without what they stand for; "
                "expected weights in floating point: export the model that these were made from"
            )
    notes = []
    if towers:
        notes.append(f"{_count(towers)} for pictures or sound left out: {_some(towers)}")
    if drafting:
        notes.append(f"{_count(drafting)} for drafts of later tokens left out: {_some(drafting)}")
    return notes


def told_instead(missing: Sequence[str], unused: Collection[str]) -> str:
    """What lies in the files in place of weights that are missing, and the way out of that; empty if nothing does."""
    others = [name for name in sorted(unused) if not (_COMPUTED.search(name) or _TOWERS.search(name))]
    if not others:
        return ""
    way_out = _known_way_out(others)
    wrapped = next((name for name in others if name.endswith(f".{missing[0]}")), None)
    if not way_out and wrapped is not None:
        wrapper = wrapped.removesuffix(missing[0])
        way_out = f"{wrapper} stands before its names: save the model itself, not what it is wrapped in"
    return f"it holds {_some(others)} instead; {way_out or 'use the config that belongs to the weights'}"


def _refuse_two_names(source: str, files: WeightFiles, model: PreTrainedModel) -> None:
    """Refuse a weight under two of the names that transformers takes for one: it would load either."""
    wrappers = {*_WRAPPERS, model.base_model_prefix}
    own = model.state_dict().keys()
    found: dict[str, str] = {}
    for name in sorted(files.tensors):
        parts = name.split(".")
        while len(parts) > 1 and parts[0] in wrappers:
            del parts[0]
        other = found.setdefault(".".join(parts), name)
        if other == name or (name in own and other in own):
            continue
        if not same_values(files.read_stored(other), files.read_stored(name)):
            raise ExportError(
                f"{source} holds {min(name, other, key=len)} and {max(name, other, key=len)}, names of one weight, "
                "with different values; download or save the checkpoint again"
            )


class _NothingHidden:
    """An attribute that is an empty set, whatever is assigned to it."""

    def __get__(self, instance: object, owner: type) -> set[str]:
        return set()

    def __set__(self, instance: object, value: object) -> None:
        pass


def _name_in_files(name: str, files: WeightFiles) -> str | None:
    """What the file calls the tensor that transformers calls `name`, as far as only what stands before it differs."""
    if name in files.tensors:
        return name
    return next((own for own in files.tensors if own.endswith(f".{name}") or name.endswith(f".{own}")), None)


def _adds_nothing(name: str, files: WeightFiles) -> bool:
    """Whether a tensor is empty, or a bias of zeros, which some quantisers and converters write for every layer."""
    shape = files.tensors[name].shape
    return math.prod(shape) == 0 or (
        name.endswith(".bias") and len(shape) == 1 and not files.read(name, torch.float32).any()
    )


def _is_drafting_layer(name: str, unused: Collection[str], config: PretrainedConfig) -> bool:
    """Whether it belongs to one of the layers that the config counts apart, and that layer is one that drafts."""
    text = config.get_text_config()
    match, count = _LAYER.search(name), getattr(text, "num_nextn_predict_layers", None)
    if match is None or not isinstance(count, int):
        return False
    layer, prefix = int(match[2]), name[: match.end()]
    first = text.num_hidden_layers
    return first <= layer < first + count and prefix + _DRAFTING_INPUT in unused


def _count(names: Sequence[str]) -> str:
    return "1 weight" if len(names) == 1 else f"{len(names)} weights"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"


def _way_out(names: Sequence[str]) -> str:
    return _known_way_out(names) or (
        "use the config that belongs to the weights, or, where the model is right without them, load it with "
        "transformers and save it again"
    )


def _known_way_out(names: Sequence[str]) -> str:
    """The way out for weights whose names tell what they are; empty for others."""
    if any(_ADAPTER.search(name) for name in names):
        return "merge the adapter first (merge_and_unload of peft), and save the model whole"
    if any(_CODES.search(name) for name in names):
        return "these belong to a quantised model: export the model that it was made from"
    return ""
