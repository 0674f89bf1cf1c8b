"""The model as transformers loads it: the reference of every export, and what of its weights is refused."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from swift_edge.errors import ExportError
from swift_edge_export.checkpoint import Checkpoint, unreadable
from swift_edge_export.stored_tensor import layer_number
from swift_edge_export.unused_weights import every_unused_weight_told, refuse_unused_weights, told_instead
from swift_edge_export.weight_files import WeightFiles, refuse_other_weights, same_values, weight_files

# Codes of 4 bits lie in bytes by two, or in whole numbers of 32 bits by eight.
_MOST_PARAMETERS_PER_NUMBER = 8


def load_model(checkpoint: Checkpoint, note: Callable[[str], None] = lambda _: None) -> PreTrainedModel:
    """Load the weights in fp32, for tracing and as the reference; `note` is told of weights that are left out.

    Raises:
        ExportError: they do not load, are not complete, or hold more than the model uses.
    """
    files = refuse_other_weights(checkpoint)
    require_enough(checkpoint, files)
    model, report = _from_pretrained(checkpoint, checkpoint.config)
    require_complete(checkpoint.source, report)
    for line in refuse_unused_weights(checkpoint.source, files, report["unexpected_keys"], model):
        note(line)
    require_equal_ties(checkpoint.source, files, model)
    return model


def load_first_layers(checkpoint: Checkpoint, layers: int) -> PreTrainedModel:
    """Load a model that is cut to its first layers; those after them are left in the files."""
    model, report = _from_pretrained(checkpoint, shortened(checkpoint.config, layers))
    require_complete(checkpoint.source, report)
    return model


def shortened(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """A config like this one, of a model with the first `layers` layers alone."""
    config = copy.deepcopy(config)
    text: Any = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return config


def require_enough(checkpoint: Checkpoint, files: WeightFiles) -> None:
    """Raise ExportError where a config makes a model much larger than its files: transformers would fill the memory."""
    stored = sum(math.prod(tensor.shape) for tensor in files.tensors.values())
    if checkpoint.parameters > _MOST_PARAMETERS_PER_NUMBER * stored:
        raise ExportError(
            f"{checkpoint.source} holds {stored} numbers, its config makes a model of {checkpoint.parameters}; "
            "use the config that belongs to the weights"
        )


def require_complete(source: str, report: dict[str, Any]) -> None:
    """Raise ExportError where transformers reports weights that are missing, of another shape, or not converted."""
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would go on with random weights
        instead = told_instead(missing, report["unexpected_keys"])
        raise ExportError(
            f"{source} lacks {len(missing)} of the model's weights, the first is {missing[0]}; "
            + (instead or "download or save the checkpoint again")
        )
    for key in sorted(report["mismatched_keys"]):
        name, *shapes = (key,) if isinstance(key, str) else key  # transformers before 5 tells no shapes
        stored, expected = (list(shape) for shape in shapes) if shapes else ("another", "one of its own")
        raise ExportError(
            f"{source} has {name} of shape {stored}, its config makes it {expected}; "
            "use the config that belongs to the weights"
        )
    for problem in report.get("error_msgs") or ():
        raise ExportError(f"{source} does not load: {problem}; download or save the checkpoint again")


def require_equal_ties(source: str, files: WeightFiles, model: PreTrainedModel) -> None:
    """Refuse weights of the file that differ and were tied all the same; transformers before 5 ties by the config."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in files.tensors:
            names.setdefault(id(parameter), []).append(name)
    for first, *others in names.values():
        for other in others:
            if not same_values(files.read_stored(first), files.read_stored(other)):
                raise ExportError(
                    f"{source} holds {first} and {other} with different values, but its config ties them; "
                    'put "tie_word_embeddings": false into config.json'
                )


def stored_tensors(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """What the files of a model hold, by name: its parameters, and buffers such as the scales of Gemma 4's layers."""
    kept = model.state_dict().keys()
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in kept]
    return sorted([*model.named_parameters(), *buffers])


def finite(source: str, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass weights on, and raise ExportError at the first that holds NaN or infinity: some text would meet it."""
    for name, weight in weights:
        least, most = weight.detach().aminmax() if weight.numel() else (torch.zeros(()), torch.zeros(()))
        if not (least.isfinite() and most.isfinite()):
            raise ExportError(f"{source} holds NaN or infinity in {name}; download or save the checkpoint again")
        del least, most
        yield name, weight
        del weight  # before the next one is made


def fingerprint(weights: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over names, shapes and fp32 values of all weights by name: the same at every precision of the export."""
    digest = hashlib.sha256()
    for name, parameter in weights:
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().float().contiguous().numpy().data)
        del parameter  # before the next one is made
    return digest.hexdigest()


def _from_pretrained(checkpoint: Checkpoint, config: PretrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
    revision = checkpoint.revision if not Path(checkpoint.source).exists() else None
    loader: Any = AutoModelForCausalLM
    source: str | None = checkpoint.source
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": checkpoint.trust_remote_code}
    if checkpoint.gguf is not None:
        loader, source, options = checkpoint.family, None, {"state_dict": _read_weights(checkpoint, config)}
    try:
        with every_unused_weight_told(checkpoint.family):
            model, report = loader.from_pretrained(
                source,
                config=config,
                **options,
                dtype=torch.float32,
                # The plainest attention is the reference: a faster one may pass over an argument, as 4.57's does over
                # Gemma 2's soft cap.
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused by name
            )
    except Exception as error:
        raise unreadable(checkpoint.source, error) from error
    return model.eval().requires_grad_(False), report


def _read_weights(checkpoint: Checkpoint, config: PretrainedConfig) -> dict[str, torch.Tensor]:
    """The weights in fp32, but for those of layers that `config` is cut to leave out."""
    files = next(weight_files(checkpoint))
    cut, whole = (each.get_text_config().num_hidden_layers for each in (config, checkpoint.config))
    left_out = {name for name in files.tensors if cut <= (layer_number(name) or 0) < whole}
    return {name: files.read(name, torch.float32) for name in files.tensors if name not in left_out}
