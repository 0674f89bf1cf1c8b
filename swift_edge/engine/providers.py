"""Opening a graph in onnxruntime: telemetry off, threads set, and the providers checked that it really got.

onnxruntime is imported when the first graph is opened, not before.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, Final

from swift_edge.bundle.manifest import Bundle, Precision
from swift_edge.errors import BundleError, ProviderError, out_of_memory
from swift_edge.system.machine import LESS_MEMORY, tells_of_memory

INT8_KV_SINCE = (1, 28)
"""The first onnxruntime whose CPU kernels keep keys and values in int8 beside float32 activations, and rightly: 1.27
runs them, but computes every row of a batch wrong except the first."""
FP16_INT8_KV_SINCE = (1, 29)
"""The first onnxruntime that does so beside float16 activations."""

DEVICES: Final = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
"""Devices whose memory can be bound by its address, and the provider that computes there."""
# enable_cuda_graph is left out: it replays one run with the same shapes at the same addresses, but rows leave, and
# buffers grow; and the number of tokens that attention reads from the host would stay what it was when the run was
# recorded. The arena takes exactly what is asked for: rounded up to powers of two, the activations of a long prompt
# would leave less room for keys and values. TF32 is off because heads are multiplied in float32, and TF32 keeps three
# digits.
_OPTIONS: Final = {"CUDAExecutionProvider": {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}}


def open_graph(bundle: Bundle, providers: Sequence[str] | None, threads: int) -> Any:
    """Open the graph with the providers asked for (None: CPU), and ask the session whether it got them.

    Returns an `onnxruntime.InferenceSession`. Raises `ProviderError`, `BundleError`, or `MemoryLimitError`.
    """
    ort = onnxruntime_module()
    obstacle = kv_cache_obstacle(bundle.manifest.precision)
    if obstacle is not None:
        raise BundleError(f"{bundle.model_path}: {obstacle}, or export the model without --kv-cache int8")
    requested = [_provider_name(name, ort.get_available_providers()) for name in providers or ("cpu",)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # errors arrive as exceptions and need no log
    # Softmax tails and fading activations reach denormals, which cost a hundred times a normal operation.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    names = list(dict.fromkeys([*requested, "CPUExecutionProvider"]))
    try:
        # The first session of a process flushes denormals on the thread that opens it, too, and for good: that must not
        # be the caller's thread, whose arithmetic is not ours to change.
        with ThreadPoolExecutor(1) as opener:
            session = opener.submit(
                ort.InferenceSession, str(bundle.model_path), options, providers=_with_options(names), enable_fallback=0
            ).result()
    except Exception as error:
        if requested != ["CPUExecutionProvider"]:
            raise ProviderError(
                f"onnxruntime could not open the graph on {', '.join(requested)}: {error}; or leave providers out"
            ) from error
        if tells_of_memory(str(error)):
            raise out_of_memory(f"opening {bundle.model_path}", LESS_MEMORY) from error
        raise BundleError(
            f"onnxruntime {ort.__version__} does not open {bundle.model_path}: {error}; export or copy the bundle again"
        ) from error
    missing = [name for name in requested if name not in session.get_providers()]
    if missing:
        raise ProviderError(
            f"the session did not get {', '.join(missing)}, only {', '.join(session.get_providers())}; "
            "check the drivers that the provider needs, or leave providers out"
        )
    return session


def kv_cache_obstacle(precision: Precision) -> str | None:
    """Why the installed onnxruntime cannot keep keys and values as `precision` says, with the way out; None if it can.

    Earlier versions complain about the inputs of such a graph, fail at the first token, or compute wrong numbers.
    """
    if precision.kv_cache is None:
        return None
    installed: str = onnxruntime_module().__version__
    needed = FP16_INT8_KV_SINCE if precision.name == "fp16" else INT8_KV_SINCE
    if tuple(int(part) for part in installed.split(".")[:2]) >= needed:
        return None
    return (
        f"keys and values in {precision.kv_cache} at precision {precision.name} need onnxruntime "
        f"{'.'.join(map(str, needed))} or newer, this is {installed}: upgrade onnxruntime"
    )


def open_small_graph(model: bytes, device: str) -> Any:
    """Open a graph from bytes, to run on one of `DEVICES`; returns an `onnxruntime.InferenceSession`."""
    ort = onnxruntime_module()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model, options, providers=_with_options([DEVICES[device]]), enable_fallback=0)


def input_device(session: Any, name: str) -> str:
    """The device in whose memory the graph reads an input, in lower case as onnxruntime names it: `cpu`, `cuda`, `dml`.

    An input that is elsewhere is copied there when it is bound, and not again when the graph runs.
    """
    names = [value.name for value in session.get_inputs()]
    device: str = session.get_input_memory_infos()[names.index(name)].name.lower()
    return device


def _with_options(providers: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    return [(name, _OPTIONS.get(name, {})) for name in providers]


def onnxruntime_module() -> ModuleType:
    """Import onnxruntime with its telemetry off; the variable counts only if it is set before the first import."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    loaded = "onnxruntime" in sys.modules
    onnxruntime = importlib.import_module("onnxruntime")
    if loaded:
        onnxruntime.disable_telemetry_events()
    return onnxruntime


def _provider_name(name: str, available: Sequence[str]) -> str:
    """Find a provider by its name, or by its name without `ExecutionProvider`, in any case."""
    for candidate in available:
        if name.lower() in (candidate.lower(), candidate.lower().removesuffix("executionprovider")):
            return candidate
    raise ProviderError(
        f"the provider {name!r} is not in this onnxruntime, which has {', '.join(available)}; "
        "install an onnxruntime build that has it (onnxruntime-gpu for cuda), or leave providers out"
    )
