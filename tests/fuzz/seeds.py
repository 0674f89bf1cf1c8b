"""Writes the seed corpus: the smallest inputs that reach every part of a target.

    python tests/fuzz/seeds.py

Everything in it is made here, from this repository's own small models and from texts written for it. Inputs that once
broke something are named `found-...`; they stay as they are.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from fixtures import ADDITION, STORIES
from folders import pack

from swift_edge import PickOptions
from swift_edge.scoring import Calibration, Head, load_head, save_head
from swift_edge.training import CandidateRows, StoredCandidate, StoreInfo, StoreWriter, collect

CORPUS: Final = Path(__file__).parent / "corpus"
SEEDS: dict[str, Callable[[], Iterator[tuple[str, dict[str, bytes]]]]] = {}


def seeds_of(target: str) -> Callable[[Any], Any]:
    """Register the function that makes the seeds of a target: names and files."""

    def register(function: Any) -> Any:
        SEEDS[target] = function
        return function

    return register


def as_json(document: object) -> bytes:
    return json.dumps(document).encode()


def as_lines(*documents: object) -> bytes:
    return b"".join(as_json(document) + b"\n" for document in documents)


def manifest(files: dict[str, bytes], **changes: Any) -> dict[str, Any]:
    """The manifest of the smallest model, for other files."""
    document = json.loads((ADDITION / "swift_edge.json").read_text(encoding="utf-8"))
    records = {name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()}
    return document | {"files": records, "parity": {"relative_error": {"prefill": 1e-7}, "positions": 8}} | changes


SMALL_FILES: Final = {"model.onnx": b"graph", "tokenizer.json": b"{}"}


@seeds_of("manifest")
def manifests() -> Iterator[tuple[str, dict[str, bytes]]]:
    yield "plain", {"swift_edge.json": as_json(manifest(SMALL_FILES))}
    template = {"chat_template.jinja": b"{{ messages[0].content }}"}
    yield "template", {"swift_edge.json": as_json(manifest(SMALL_FILES | template))} | template
    int4 = {"name": "int4", "block_size": 32, "accuracy_level": 4, "kv_cache": "int8"}
    yield "int4", {"swift_edge.json": as_json(manifest(SMALL_FILES, precision=int4))}
    yield "head", {"swift_edge.json": as_json(manifest(SMALL_FILES)), "head.npz": b"PK\x05\x06" + bytes(18)}


@seeds_of("foreign")
def foreign_folders() -> Iterator[tuple[str, dict[str, bytes]]]:
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {"model_type": "llama", "vocab_size": 96, "max_position_embeddings": 64, "_name_or_path": "tiny"} | sizes
    generation = {"eos_token_id": [2, 3], "bos_token_id": 1, "do_sample": True, "temperature": 0.7, "top_k": 50}
    yield "optimum", {"config.json": as_json(config), "generation_config.json": as_json(generation)}
    nested = {"model_type": "vision", "text_config": config | {"head_dim": 8}}
    templates = [{"name": "default", "template": "{{ messages }}"}, {"name": "tools", "template": "x"}]
    yield "nested", {"config.json": as_json(nested), "tokenizer_config.json": as_json({"chat_template": templates})}
    gpt2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 96, "n_positions": 64}
    yield "gpt2", {"config.json": as_json(gpt2), "tokenizer_config.json": as_json({"chat_template": "{{ messages }}"})}
    decoder = {
        "filename": "model.onnx",
        "head_size": 8,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    } | sizes
    model = {"type": "llama", "vocab_size": 96, "context_length": 64, "eos_token_id": 2, "decoder": decoder}
    search = {"past_present_share_buffer": True, "do_sample": True, "top_p": 0.9}
    yield "genai", {"genai_config.json": as_json({"model": model, "search": search})}


def small_head(**changes: Any) -> Head:
    weight = np.linspace(-1, 1, 2 * 64, dtype=np.float32).reshape(2, 64)
    values: dict[str, Any] = {"weight": weight, "bias": np.zeros(2, np.float32), "layers": (3,), "base_model": "tiny"}
    return Head(**(values | changes))


def head_files(head: Head) -> dict[str, bytes]:
    """A head file in its parts."""
    import zipfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head.npz"
        save_head(path, head)
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        metadata = str(np.load(path)["metadata"][()])
    del files["metadata.npy"]
    return files | {"metadata.json": metadata.encode()}


@seeds_of("head")
def heads() -> Iterator[tuple[str, dict[str, bytes]]]:
    yield "gated", head_files(small_head(summary={"problems": 3, "auroc": 0.7}))
    plain = small_head(weight=np.ones((1, 64), np.float32), bias=np.zeros(1, np.float32), gate=False, norm="rms")
    yield "plain", head_files(plain)
    calibration = load_head(STORIES.parent / "small-steps" / "head.npz").calibration
    assert isinstance(calibration, Calibration)
    wide = np.ones((2, 66), np.float32)
    scales = {"input_mean": np.zeros(66, np.float32), "input_scale": np.ones(66, np.float32)}
    statistics = {"token_statistics": ("logprob", "entropy"), "calibration": calibration}
    yield "calibrated", head_files(small_head(weight=wide, **scales, **statistics))
    yield "raw", {"raw.npz": b"PK\x05\x06" + bytes(18)}


INFO: Final = StoreInfo(
    base_model="tiny",
    fingerprint="ab",
    precision="fp32",
    bundle="models/tiny",
    feature="hidden",
    layers=(1, 3),
    width=2,
    eos_ids=(2,),
    problems=8,
    n=2,
    seed=0,
    sampling={"temperature": 1.0},
    max_new_tokens=3,
    raw=False,
    task="number",
    tokens_per_candidate=None,
    data_sha256="cd",
    version="0",
)


def store_files(until: int, info: StoreInfo = INFO) -> dict[str, bytes]:
    """A store with so many problems of two candidates, of two tokens each."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        with StoreWriter(folder, info) as writer:
            for problem in range(until):
                rows = []
                for index in range(2):
                    candidate = StoredCandidate(
                        problem=problem,
                        index=index,
                        correct=index == 0,
                        answer=f"{index}",
                        text="a",
                        token_ids=(5, 2),
                        tokens=2,
                        n_tokens=2,
                        finish_reason="stop",
                        unscored_tokens=0,
                        logprob=-1.0,
                        mean_logprob=-0.5,
                        self_certainty=math.inf,
                        entropy=0.5,
                        scores={"h": 0.25},
                    )
                    states = random.normal(size=(2, info.slices, info.width)).astype(np.float16)
                    statistics = -np.abs(random.normal(size=(2, 3))).astype(np.float32)
                    rows.append(CandidateRows(candidate, states, statistics, np.arange(2)))
                writer.add(problem, rows)
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


@seeds_of("store")
def stores() -> Iterator[tuple[str, dict[str, bytes]]]:
    yield "whole", store_files(8)
    yield "part", store_files(2)
    yield "settings", {"store.json": INFO.to_json().encode()}


@seeds_of("collect")
def collections() -> Iterator[tuple[str, dict[str, bytes]]]:
    problems = as_lines({"prompt": "331970", "answer": 1301}, {"question": "100200", "answer": "300"})
    yield "new", {"problems.jsonl": problems}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "problems.jsonl"
        data.write_bytes(problems)
        out = Path(folder) / "store"
        from fuzz_collect import SUMS, opened

        collect(opened(), data, out, **SUMS)
        timings = as_json(dict.fromkeys(json.loads((out / "timings.json").read_bytes()), 1.5))
        info = json.loads((out / "store.json").read_bytes()) | {"bundle": "model"}  # wherever the model lies
        settings = {"store.json": as_json(info)}
        yield "timings", {"problems.jsonl": problems, "timings.json": timings} | settings
        lines = (out / "shard-00000.jsonl").read_bytes().split(b"\n")
        partial = {"shard-00000.jsonl.partial": b"\n".join(lines[:2]) + b"\n" + lines[2][:30]}
        yield "part", {"problems.jsonl": problems} | settings | partial


@seeds_of("records")
def records() -> Iterator[tuple[str, dict[str, bytes]]]:
    yield "manifest", {"manifest.json": as_json(manifest(SMALL_FILES))}
    yield "store", {"store.json": as_json(asdict(INFO))}
    yield "defaults", {"pick.json": as_json(PickOptions().to_dict())}
    options = {"n": "auto", "max_n": 8, "prune": {"16": 4}, "stop": ["\n"], "task": "number", "min_confidence": 0.5}
    yield "options", {"pick.json": as_json(options)}
    yield "collect", {"collect.json": as_json({"temperature": 0.7, "top_p": 0.9, "seed": 3, "stop": "x", "raw": True})}
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "2 + 5"}]
    yield (
        "problems",
        {
            "problems.jsonl": as_lines(
                {"question": "2 + 5", "answer": 7, "family": "sums"},
                {"prompt": "yes?", "answer": "(B) yes"},
                {"messages": messages, "answer": r"\boxed{7}"},
            )
        },
    )
    yield (
        "responses",
        {
            "responses.jsonl": as_lines(
                {"prompt": "2 + 5", "reference": "7", "completions": ["7", "8"], "correctness": [True, 0]},
                {"prompt": "1", "completions": ["a"], "token_ids": [[5, 2]], "steps": [["a"]], "reference": "1"},
            )
        },
    )
    scores = [{"problem": problem, "index": index, "score": 0.25} for problem in range(2) for index in range(2)]
    yield "scores", {"scores.jsonl": as_lines(*scores)}


def tokenizers() -> Iterator[tuple[str, dict[str, Any]]]:
    """Small tokenizers of each kind; all but the first few ids are letters."""
    special = [
        {
            "id": i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, text in enumerate(("<unk>", "<s>", "</s>"))
    ]
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [start, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    base: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": template,
        "decoder": None,
    }
    marks = {"<unk>": 0, "<s>": 1, "</s>": 2}
    letters = {letter: 3 + place for place, letter in enumerate("\u2581Onceupatim01A.b")}
    prepend = {"type": "Prepend", "prepend": "\u2581"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    bpe = {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": marks | letters | {"on": 30, "<0x41>": 31},
        "merges": [["o", "n"]],
    }
    bpe["vocab"] |= {"o": 32}
    yield (
        "bpe",
        base
        | {
            "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]},
            "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]},
            "model": bpe,
        },
    )
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    yield (
        "bytes",
        base
        | {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
            },
            "decoder": byte_level,
            "normalizer": {"type": "NFC"},
            "model": bpe | {"byte_fallback": False, "vocab": marks | letters | {"\u0120": 40, "o": 32, "on": 30}},
        },
    )
    unigram = {"type": "Unigram", "unk_id": 0, "byte_fallback": False}
    scores = [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], *([letter, -3.0] for letter in letters)]
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    yield "unigram", base | {"pre_tokenizer": metaspace, "decoder": metaspace, "model": unigram | {"vocab": scores}}
    pattern = {"type": "Split", "pattern": {"Regex": "\\w+|\\s"}, "behavior": "Isolated", "invert": False}
    words = {
        "type": "WordPiece",
        "unk_token": "<unk>",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 9,
    }
    yield (
        "pieces",
        base
        | {
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            },
            "pre_tokenizer": pattern,
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": words | {"vocab": marks | {"a": 3, "##a": 4, "b": 5, "0": 6, "1": 7}},
        },
    )
    level = {"type": "WordLevel", "unk_token": "<unk>", "vocab": marks | letters}
    yield "level", base | {"pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": {"type": "Fuse"}, "model": level}


@seeds_of("tokenizer")
def tokenizer_files() -> Iterator[tuple[str, dict[str, bytes]]]:
    for name, document in tokenizers():
        yield name, {"tokenizer.json": as_json(document), "text.txt": "Once, 12 \u00e9 upon".encode()}


@seeds_of("template")
def templates() -> Iterator[tuple[str, dict[str, bytes]]]:
    messages = as_json([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 5"}])
    loop = b"{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m.content | trim }}\n{% endfor %}"
    yield "loop", {"chat_template.jinja": loop, "messages.json": messages}
    macro = b"{% macro part(x) %}{{ x|tojson }}{% endmacro %}{% set ns = namespace(n=0) %}{% for m in messages %}"
    macro += b"{% set ns.n = ns.n + 1 %}{{ part(m) }}{% if ns.n > 3 %}{% break %}{% endif %}{% endfor %}{{ ns.n }}"
    yield "macro", {"chat_template.jinja": macro, "messages.json": messages}
    refuse = b"{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    refuse += b"{{ strftime_now('%Y') }}"
    yield "refuse", {"chat_template.jinja": refuse, "messages.json": messages}
    marked = b"{% generation %}{{ messages[-1]['content'][:9] }}{% endgeneration %}{{ 3 * 'ab' }}{{ range(9)|list }}"
    yield "marked", {"chat_template.jinja": marked}


@seeds_of("answers")
def answers() -> Iterator[tuple[str, dict[str, bytes]]]:
    pairs = {
        "number": ("So she has 3 + 4 = 7 apples. The answer is $1,234.50.", "#### 1234.5"),
        "latex": (r"Hence \boxed{\frac{1}{2}+\sqrt{3}}.", r"$\dfrac12 + 3^{1/2}$"),
        "tuple": (r"The answer is $(1, \infty) \cup \{3\}$", r"x \in (1,\infty)\cup\{3\}"),
        "matrix": (r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
        "letter": ("**Answer:** (B) because A and C are wrong", "B"),
        "yes-no": ("Yes. There is no doubt.", "yes"),
        "literal": ("assert f(1) == [1, 'a', {'b': None}]", "[1, 'a', {'b': None}]"),
        "text": ("The capital is `St. Louis`.", "st louis"),
        "unit": ("about 30 cm^2, or 12:30, or 5!", r"\log_2 8 \text{ cm}"),
    }
    for name, (first, second) in pairs.items():
        yield name, {"a.txt": first.encode(), "b.txt": second.encode()}


@seeds_of("pick")
def picks() -> Iterator[tuple[str, dict[str, bytes]]]:
    sampling = {"n": 3, "temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1}
    yield "sampling", {"pick.json": as_json({"prompt": "Once upon", "options": sampling | {"seed": 7, "stop": [". "]}})}
    adaptive = {"n": "auto", "max_n": 6, "prune": {"2": 3}, "budget_tokens": 20, "budget_seconds": 5.0}
    yield "adaptive", {"pick.json": as_json({"prompt": "1", "options": adaptive})}
    counted = {"task": "number", "strategy": "majority", "signal": "self_certainty", "raw": True}
    yield "counted", {"pick.json": as_json({"prompt": "2 + 5 is", "options": counted})}
    yield "greedy", {"pick.json": as_json({"prompt": "<s> a", "options": {"n": 1, "temperature": 0, "prune": "off"}})}
    yield "score", {"score.json": as_json({"prompt": "Once", "texts": [" upon a time", "x"], "raw": False})}
    yield "many", {"many.json": as_json({"prompt": ["Once", "One day"], "options": {"n": 2}})}


@seeds_of("model")
def models() -> Iterator[tuple[str, dict[str, bytes]]]:
    files = {"model.onnx": b"", "tokenizer.json": b""}
    yield "plain", {"swift_edge.json": as_json(manifest(files))}
    template = {"chat_template.jinja": b"{{ messages[0].content }}"}
    yield "template", {"swift_edge.json": as_json(manifest(files | template))} | template
    digits = {str(digit): digit for digit in range(10)} | {"=": 10, "+": 11}
    level = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "unk_token": "0", "vocab": digits},
    }
    yield "tokenizer", {"swift_edge.json": as_json(manifest(files)), "tokenizer.json": as_json(level)}


@seeds_of("arguments")
def arguments() -> Iterator[tuple[str, dict[str, bytes]]]:
    collecting = "collect -m model --data problems.jsonl --task number -n 2 --max-new-tokens 3"
    calls = {
        "pick": "pick 331970 -m model -n 2 --seed 3 --json",
        "auto": "pick 331970 -m model -n auto --max-n 6 --task number --strategy majority --min-confidence 0.9",
        "page": "pick - -m model -n 2 --explain page.html --raw --stop 1 --temperature 0.5",
        "score": "score 331970 1301 9 -m model --signal mean_logprob --json",
        "inspect": "inspect model --json",
        "collect": f"{collecting} --out new --layers last:1",
        "again": f"{collecting} --out store --json",
        "given": "collect -m model --responses responses.jsonl --out new --feature logits",
        "fit": "fit store --out head.npz --max-iterations 1 --weight-decay 0.1 --memory 1GiB --json",
        "recalibrate": "recalibrate head.npz store --out other.npz --force",
    }
    for name, call in calls.items():
        yield name, {"arguments.txt": call.replace(" ", "\n").encode(), "stdin.txt": b"331970\n"}


@seeds_of("checkpoint")
def checkpoints() -> Iterator[tuple[str, dict[str, bytes]]]:
    import io
    import zipfile

    import torch  # only this target needs it

    inputs = 2 * 64
    state = {"fused_layer.weight": torch.zeros(2, inputs), "fused_layer.bias": torch.zeros(2)}
    packed = io.BytesIO()
    torch.save(state, packed)
    with zipfile.ZipFile(packed) as archive:
        parts = {name.partition("/")[2].replace("/", "_"): archive.read(name) for name in archive.namelist()}
    yield "torch", {name.lstrip("."): content for name, content in parts.items()}
    for kind, size in (("F32", 4), ("BF16", 2)):
        weight, bias = 2 * inputs * size, 2 * size
        header = {
            "fused_layer.weight": {"dtype": kind, "shape": [2, inputs], "data_offsets": [0, weight]},
            "fused_layer.bias": {"dtype": kind, "shape": [2], "data_offsets": [weight, weight + bias]},
        }
        yield f"safetensors-{kind.lower()}", {"header.json": as_json(header), "numbers.bin": bytes(weight + bias)}
    yield "pickle", {"raw.pt": b"\x80\x04\x95\x08\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s."}


@seeds_of("gguf")
def ggufs() -> Iterator[tuple[str, dict[str, bytes]]]:
    import struct

    def text(content: str) -> bytes:
        return struct.pack("<Q", len(content.encode())) + content.encode()

    def listed(kind: int, values: Sequence[bytes]) -> bytes:
        return struct.pack("<IIQ", 9, kind, len(values)) + b"".join(values)

    def value(content: Any) -> bytes:
        if isinstance(content, list):
            texts = isinstance(content[0], str)
            return (
                listed(8, [*map(text, content)]) if texts else listed(6, [struct.pack("<f", each) for each in content])
            )
        if isinstance(content, str):
            return struct.pack("<I", 8) + text(content)
        if isinstance(content, bool):
            return struct.pack("<I?", 7, content)
        if isinstance(content, int):
            return struct.pack("<II", 4, content)
        return struct.pack("<If", 6, content)

    width, tokens = 32, [chr(letter) for letter in range(65, 65 + 32)]
    sizes = {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": width,
        "feed_forward_length": width,
        "attention.head_count": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    words = {"tokens": tokens, "bos_token_id": 1, "eos_token_id": 2}
    kinds = {
        "bytes": {"model": "gpt2", "pre": "gpt-2", "merges": ["A A", "A B"]}
        | words
        | {"tokens": [*tokens, "AA", "AB"]},
        "pieces": {"model": "llama", "scores": [-float(rank) for rank in range(len(tokens))]} | words,
    }
    for name, tokenizer in kinds.items():
        entries = {"general.architecture": "llama", "tokenizer.chat_template": "{{ messages }}"}
        entries |= {f"llama.{key}": size for key, size in sizes.items()}
        entries |= {f"tokenizer.ggml.{key}": each for key, each in tokenizer.items()}
        listing = [("token_embd.weight", (width, 34), 0, 0), ("output_norm.weight", (width,), 0, 4352)]
        listing += [("blk.0.attn_q.weight", (width, width), 2, 4480), ("blk.0.attn_k.weight", (width, width), 12, 5056)]
        head = b"GGUF" + struct.pack("<IQQ", 3, 3 if name == "bytes" else 2, len(entries))
        head += b"".join(text(key) + value(each) for key, each in entries.items())
        for tensor, shape, kind, offset in listing[: 3 if name == "bytes" else 2]:
            head += text(tensor) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        yield name, {"header.bin": head + bytes(-len(head) % 32), "tensors.bin": bytes(5056)}


def main() -> None:
    """Write the seeds of all targets, in place of those that were made before."""
    for target, make in SEEDS.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if not old.name.startswith("found-"):
                old.unlink()
        for name, files in make():
            (folder / name).write_bytes(pack(files))


if __name__ == "__main__":
    main()
