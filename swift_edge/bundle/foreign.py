"""Folders that others wrote: recognised by their configuration, and described as a bundle without hidden states."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from swift_edge.bundle.manifest import (
    HEAD_NAME,
    LONGEST_NAME,
    MODEL_NAME,
    TEMPLATE_BYTES,
    TEMPLATE_NAME,
    TOKENIZER_NAME,
    Architecture,
    Bundle,
    Graph,
    HiddenStates,
    Manifest,
    Precision,
    Tokens,
    file_inside,
    read_text,
)
from swift_edge.checks import is_number
from swift_edge.errors import InvalidOptionError, ManifestError, UnknownFolderError, size_text
from swift_edge.options import SamplingOptions, options_of
from swift_edge.records import RecordError, described, read_value, shown
from swift_edge.system.documents import DocumentError, parse_json

GENAI_CONFIG_NAME = "genai_config.json"
CONFIG_NAME = "config.json"

# The names that every graph uses here, as genai_config.json writes them; not every graph has position_ids.
_GENAI_INPUTS: Mapping[str, str] = {
    "input_ids": "input_ids",
    "attention_mask": "attention_mask",
    "position_ids": "position_ids",
    "past_key_names": "past_key_values.%d.key",
    "past_value_names": "past_key_values.%d.value",
}
_GENAI_OUTPUTS: Mapping[str, str] = {
    "logits": "logits",
    "present_key_names": "present.%d.key",
    "present_value_names": "present.%d.value",
}

# transformers gives one size several names; GPT-2's generation has the second of each.
_CONFIG_KEYS: Mapping[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers", "n_layer"),
    "hidden_size": ("hidden_size", "n_embd"),
    "num_attention_heads": ("num_attention_heads", "n_head"),
    "vocab_size": ("vocab_size",),
    "context_length": ("max_position_embeddings", "n_positions"),
}


def recognise(folder: Path) -> Bundle | None:
    """Describe a folder that optimum or onnxruntime-genai wrote; `None` if it is neither's.

    The manifest has no hidden states, no fingerprint and no files. Raises a leaf of `BundleError` for a folder that is
    recognised but cannot be served, such as one whose graph takes embeddings in place of token ids.
    """
    if (folder / GENAI_CONFIG_NAME).is_file():
        return _from_genai(folder)
    if (folder / CONFIG_NAME).is_file() and (any(folder.glob("*.onnx")) or any(folder.glob("onnx/*.onnx"))):
        return _from_optimum(folder)
    return None


def _from_genai(folder: Path) -> Bundle:
    path = folder / GENAI_CONFIG_NAME
    config = _read_object(path)
    model = _value(config, "model", Mapping[str, Any], path)
    decoder = _value(model, "decoder", Mapping[str, Any], path)
    search = _value(config, "search", Mapping[str, Any], path)
    inputs = _value(decoder, "inputs", Mapping[str, Any], path)
    outputs = _value(decoder, "outputs", Mapping[str, Any], path)
    _check_names(inputs, _GENAI_INPUTS, {"position_ids"}, f"{path}: model.decoder.inputs")
    _check_names(outputs, _GENAI_OUTPUTS, set(), f"{path}: model.decoder.outputs")
    if "sliding_window" in decoder:
        # Such caches hold a window of the context and are shifted by the caller.
        raise ManifestError(
            f"{path} has model.decoder.sliding_window; expected a cache that holds the whole context: "
            "build the folder for the CPU, or run: swift-edge export MODEL --out DIR"
        )
    architecture = Architecture(
        model_type=_name(model.get("type")) or "unknown",
        num_layers=_value(decoder, "num_hidden_layers", int, path),
        hidden_size=_value(decoder, "hidden_size", int, path),
        num_attention_heads=_value(decoder, "num_attention_heads", int, path),
        num_key_value_heads=_value(decoder, "num_key_value_heads", int, path),
        head_dim=_value(decoder, "head_size", int, path),
        vocab_size=_value(model, "vocab_size", int, path),
        context_length=_value(model, "context_length", int, path),
    )
    shared = search.get("past_present_share_buffer") is True
    return _bundle(
        folder,
        file_inside(folder, _value(decoder, "filename", str, path)),
        "onnxruntime-genai",
        _manifest(
            base_model=folder.resolve().name,
            architecture=architecture,
            kv="in-place" if shared else "concatenated",
            tokens=_tokens((model,), architecture.vocab_size, path),
            sampling=_sampling(search, path),
            source=path,
        ),
    )


def _from_optimum(folder: Path) -> Bundle:
    path = folder / CONFIG_NAME
    document = _read_object(path)
    # Models that also see pictures keep the language model's sizes one level down.
    config = document["text_config"] if isinstance(document.get("text_config"), dict) else document
    generation_path = folder / "generation_config.json"
    generation = _read_object(generation_path) if generation_path.is_file() else {}
    sizes = {name: _value(config, keys, int, path) for name, keys in _CONFIG_KEYS.items()}
    heads = sizes["num_attention_heads"]
    head_dim = config.get("head_dim")
    architecture = Architecture(
        model_type=_name(config.get("model_type")) or "unknown",
        num_key_value_heads=_value(
            {"num_key_value_heads": heads} | _set_values(config), "num_key_value_heads", int, path
        ),
        head_dim=sizes["hidden_size"] // max(heads, 1) if head_dim is None else _value(config, "head_dim", int, path),
        **sizes,
    )
    return _bundle(
        folder,
        _optimum_graph(folder),
        "optimum",
        _manifest(
            base_model=_name(document.get("_name_or_path")) or folder.resolve().name,
            architecture=architecture,
            kv="concatenated",
            tokens=_tokens((generation, config), architecture.vocab_size, path),
            sampling=_sampling(generation, generation_path),
            source=path,
        ),
    )


def _optimum_graph(folder: Path) -> Path:
    for name in (MODEL_NAME, f"onnx/{MODEL_NAME}"):
        if (folder / name).is_file():
            return file_inside(folder, name)
    names = sorted(
        path.relative_to(folder).as_posix() for path in [*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")]
    )
    whole = [name for name in names if not Path(name).name.startswith(("decoder_", "encoder_"))]
    if len(whole) == 1:
        return file_inside(folder, whole[0])
    raise UnknownFolderError(
        f"{folder} holds {', '.join(names)}; expected one graph for prefill and decode, {MODEL_NAME}: "
        "keep only the wanted one, or export the model again with the task text-generation-with-past"
    )


def _bundle(
    folder: Path, model_path: Path, origin: Literal["optimum", "onnxruntime-genai"], manifest: Manifest
) -> Bundle:
    tokenizer_path = folder / TOKENIZER_NAME
    for path in (model_path, tokenizer_path):
        if not path.is_file():
            raise UnknownFolderError(
                f"{folder} was written by {origin} but has no {path.relative_to(folder).as_posix()}; "
                "copy that file from the original model or build the folder again"
            )
    head = folder / HEAD_NAME
    return Bundle(
        path=folder,
        manifest=manifest,
        model_path=model_path,
        tokenizer_path=tokenizer_path,
        chat_template=_chat_template(folder),
        head_path=head if head.is_file() else None,
        origin=origin,
    )


def _manifest(
    *,
    base_model: str,
    architecture: Architecture,
    kv: Literal["in-place", "concatenated"],
    tokens: Tokens,
    sampling: SamplingOptions,
    source: Path,
) -> Manifest:
    try:
        return Manifest(
            base_model=base_model,
            base_revision=None,
            fingerprint="",
            architecture=architecture,
            precision=Precision("unknown"),
            hidden_states=HiddenStates(()),
            graph=Graph(kv),
            tokens=tokens,
            sampling=sampling,
            files={},
            exporter={},
            parity={},
        )
    except ManifestError as error:
        raise ManifestError(f"{source}: {error}") from error


def _chat_template(folder: Path) -> str | None:
    if (folder / TEMPLATE_NAME).is_file():
        return read_text(folder / TEMPLATE_NAME, TEMPLATE_BYTES)
    path = folder / "tokenizer_config.json"
    template = _read_object(path).get("chat_template") if path.is_file() else None
    if isinstance(template, list) and all(isinstance(entry, dict) for entry in template):
        # Several by name: the one for plain chat is "default".
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    if template is not None and not (isinstance(template, str) and len(template) <= TEMPLATE_BYTES):
        raise ManifestError(
            f"{path}: chat_template is {shown(template)}; expected one text of at most {size_text(TEMPLATE_BYTES)}, or "
            f"a list of which one is named 'default': put the one to use into {TEMPLATE_NAME}"
        )
    return template


def _tokens(sources: tuple[Mapping[str, Any], ...], vocab_size: int, path: Path) -> Tokens:
    def ids(name: str) -> tuple[int, ...]:
        value = next((source[name] for source in sources if source.get(name) is not None), None)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            raise ManifestError(f"{path}: {name} is {shown(value)}; expected an integer or a list of integers")
        # genai writes -1 or an empty list where a model has no such token; a config's own default, which the model's
        # makers left as it was, may lie beyond a small vocabulary, where nothing is ever written.
        return tuple(dict.fromkeys(item for item in items if 0 <= item < vocab_size))

    bos, pad = ids("bos_token_id"), ids("pad_token_id")
    return Tokens(eos_ids=ids("eos_token_id"), bos_id=bos[0] if bos else None, pad_id=pad[0] if pad else None)


def _sampling(values: Mapping[str, Any], path: Path) -> SamplingOptions:
    """Take over sampling values only where sampling is asked for: else they are a tool's fillers, not advice."""
    present = _set_values(values) if values.get("do_sample") is True else {}
    options = {name: present[name] for name in options_of(SamplingOptions) if name in present}
    if is_number(top_k := options.get("top_k")) and top_k <= 0:  # 0 and -1 switch the filter off
        del options["top_k"]
    try:
        return SamplingOptions(**options)
    except InvalidOptionError as error:
        raise ManifestError(f"{path}: {error}: correct it, or copy the folder again") from error


def _check_names(actual: Mapping[str, Any], expected: Mapping[str, str], optional: set[str], where: str) -> None:
    for key, name in expected.items():
        if actual.get(key) != name and not (key in optional and key not in actual):
            value = f"{actual[key]!r:.80}" if key in actual else "missing"
            raise ManifestError(
                f"{where}.{key} is {value}; expected {name!r}: build the folder for a text model with default names, "
                "or run: swift-edge export MODEL --out DIR"
            )
    unknown = sorted(actual.keys() - expected.keys())
    if unknown:
        raise ManifestError(
            f"{where} has {unknown[0]!r:.80}, which this runtime cannot feed or read; expected token ids and "
            "one key and value per layer: run: swift-edge export MODEL --out DIR"
        )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        # As the program reads it that wrote it: strange values of what is not used here do no harm.
        document = parse_json(read_text(path), str(path), strict=False)
    except DocumentError as error:
        raise ManifestError(f"{error}: copy the folder again") from error
    if not isinstance(document, dict):
        raise ManifestError(f"{path} holds a {type(document).__name__}; expected an object: copy the folder again")
    return document


def _name(value: object) -> str | None:
    return value if isinstance(value, str) and len(value) <= LONGEST_NAME else None


def _set_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _value(values: Mapping[str, Any], keys: str | tuple[str, ...], kind: Any, path: Path) -> Any:
    """The value of the first of the `keys` that is set."""
    keys = (keys,) if isinstance(keys, str) else keys
    for key in keys:
        if values.get(key) is not None:
            try:
                return read_value(values[key], kind, key)
            except RecordError as error:
                raise ManifestError(f"{path}: {error}") from None
    raise ManifestError(f"{path}: {' or '.join(keys)} is missing; expected {described(kind)}")
