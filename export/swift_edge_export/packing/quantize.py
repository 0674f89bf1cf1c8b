"""Packs a graph's weight matrices into int8 or int4 blocks, one after another, and writes graph and weights to disk.

`trace`,

A weight matrix of K inputs and N outputs is cut into blocks of neighbouring inputs of one output. A block has one fp32
scale; at int8 a weight is (code - 128) * scale. At int4 it is (code - zero point) * scale, with a zero point of 4 bits
for each block: 16 codes are too few to spend any on values that a block does not have. Products become `MatMulNBits`,
the token embedding becomes `GatherBlockQuantized`, and an embedding that is also the output layer is stored once, read
by both.

onnxruntime's own driver for this holds several copies of the whole model. Here its kernels run on a slice of one
matrix at a time and the result goes straight to disk, so the memory needed does not grow with the model.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from swift_edge.errors import ExportError, InvalidOptionError
from swift_edge_export.packing import grid
from swift_edge_export.packing.calibration import Inputs
from swift_edge_export.packing.folding import Scales, fit_scales, foldable_groups
from swift_edge_export.packing.rounding import feedback_factor, with_feedback
from swift_edge_export.packing.weights import (
    CHUNK_BYTES,
    Matrix,
    is_unused,
    release,
    same_weights,
    tensor_of,
    token_embedding,
    unpacked_weight,
    weight_of_product,
)

BITS: dict[str, int] = {"int8": 8, "int4": 4}

# Measured on x86 with AVX-512: blocks of 128 decode 8 rows 15 to 20 % faster than blocks of 32. ARM's KleidiAI kernels
# want 32. The smallest block that the kernels take is 16.
BLOCK_SIZE = 128
SMALLEST_BLOCK = 16

# onnxruntime computes in int8 only when asked to; without this attribute it unpacks to fp32, several times slower.
ACCURACY_LEVEL = 4

# An embedding that is no output layer is read one row per token, straight from the mapped file: its size costs disk,
# not time or memory. On two real checkpoints 4 bits there added 2 and 40 % to the KL divergence that int4 causes
# elsewhere, 8 bits added nothing: so it gets 8 at either precision. Below a million weights it stays fp32: there is
# nothing to save.
EMBEDDING_BITS = 8
SMALL_EMBEDDING = 1_000_000

INLINE_BYTES = 1024
PAGE = 4096
# Weights that are rounded with feedback at a time: their copies stay small, and products large.
FEEDBACK_WEIGHTS = 4 * 1024**2


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """What rounding is fitted to."""

    scales: Scales
    """by which weights are multiplied before they are rounded; the graph takes them back elsewhere"""
    moments: Mapping[str, torch.Tensor]
    """second moments [K, K] of what products read, by the value's name, before it is scaled"""
    tokens: int
    """of the model's own text that both were measured on"""


@dataclasses.dataclass(frozen=True, slots=True)
class Quantization:
    """What was packed, and how."""

    precision: Literal["int8", "int4"]
    """type of the packed weights"""
    block_size: int
    """most inputs that share one scale; narrow matrices have smaller blocks"""
    accuracy_level: int
    """what MatMulNBits computes in: 4 int8, 1 or 0 fp32"""
    products: int
    """MatMul and Gemm nodes that became MatMulNBits"""
    embeddings: int
    """Gather nodes that became GatherBlockQuantized"""
    shared_tables: int
    """embeddings stored once together with the output layer"""
    carried: int
    """matrices that lay on a grid of `grid.BLOCK_SIZE` already, and are exactly what they were"""
    matrices: int
    """matrices that were packed, those included"""
    zero_points: int
    """matrices whose blocks have a zero point beside their scale"""
    fitted_tokens: int
    """tokens of the model's own text to which scales and rounding were fitted; 0 for the nearest codes"""
    scaled: int
    """matrices whose inputs were scaled before"""
    fed_back: int
    """matrices that were rounded with error feedback"""
    left_as_they_were: tuple[str, ...]
    """initialisers that a product or the embedding reads, but that stayed fp32"""
    weight_bytes: int
    """size of the data file"""


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
    """A matrix in the data file; codes and scales are as MatMulNBits and GatherBlockQuantized read them."""

    name: str
    """of the initialiser it was"""
    inputs: int
    """K"""
    outputs: int
    """N"""
    bits: int
    """per weight"""
    block_size: int
    """inputs per scale"""
    zero_points: bool
    """whether each block has one; without, it is 2^(bits-1)"""
    offset: int
    """of the codes, in bytes from the start of the file; the scales follow, then the zero points"""

    @property
    def blocks(self) -> int:
        """Blocks per output; the last one is padded."""
        return -(-self.inputs // self.block_size)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block's codes."""
        return self.block_size * self.bits // 8


def quantize(
    model: ir.Model | str | os.PathLike[str],
    path: str | os.PathLike[str],
    precision: Literal["int8", "int4"],
    *,
    block_size: int = BLOCK_SIZE,
    accuracy_level: int = ACCURACY_LEVEL,
    fit: Fit | None = None,
    note: Callable[[float], None] = lambda _: None,
) -> Quantization:
    """Write `model` with packed weights to `path`, its weights to `path` + ".data" beside it.

    Args:
        model: an fp32 graph in memory, or the path of one; not changed.
        path: the file to write, such as `staging / "model.onnx"`; it and the data file are overwritten.
        precision: "int8" or "int4"; all weight matrices get it, except embeddings that are not the output layer (see
            `EMBEDDING_BITS`) and positions' tables, which stay fp32.
        block_size: most inputs that share one scale, a power of two from 16. A matrix of which more than an eighth
            would be padding gets smaller blocks.
        accuracy_level: what MatMulNBits computes in. 4: activations are rounded to int8, block by block; 0 or 1: fp32.
        fit: what `fit_rounding` found for this graph; without it every weight gets the nearest code.
        note: told which share of the graph's products is packed, 0 to 1.

    Without a fit it needs at most 150 MB of memory beyond the weights of `model`, whatever their size.

    Raises:
        InvalidOptionError: an option out of range, or `path` is where the weights of `model` are read from.
        ExportError: a weight is not finite, or the graph has no fp32 weight matrix at all.
    """
    check_options(precision, block_size, accuracy_level)
    path = Path(path)
    data_path = path.with_name(path.name + ".data")
    packed_model = model.clone() if isinstance(model, ir.Model) else ir.load(path_to_load(model, path))
    check_source(packed_model.graph, data_path)
    with data_path.open("wb") as file:
        packer = Packer(packed_model.graph, file, data_path, block_size, accuracy_level, fit)
        packer.pack_embeddings(BITS[precision])
        packer.pack_products(BITS[precision], note)
        if not packer.products:
            raise ExportError(
                f"the graph has no fp32 weight matrix that could be packed as {precision}; "
                "trace the model in fp32, or export with another --precision"
            )
        packer.remove_unused()
        packer.write_the_rest()
        weight_bytes = file.tell()
    packed_model.opset_imports["com.microsoft"] = 1
    ir.save(packed_model, path)
    return Quantization(
        precision=precision,
        block_size=block_size,
        accuracy_level=accuracy_level,
        products=packer.products,
        embeddings=packer.embeddings,
        shared_tables=packer.shared_tables,
        carried=packer.carried,
        matrices=len(packer.packed),
        zero_points=sum(packed.zero_points for packed in packer.packed.values()),
        fitted_tokens=0 if fit is None else fit.tokens,
        scaled=packer.scaled,
        fed_back=packer.fed_back,
        left_as_they_were=tuple(dict.fromkeys(packer.left_as_they_were)),
        weight_bytes=weight_bytes,
    )


def fit_rounding(
    model: ir.Model,
    read: Inputs,
    precision: Literal["int8", "int4"],
    *,
    block_size: int = BLOCK_SIZE,
    note: Callable[[float], None] = lambda _: None,
) -> Fit:
    """Fit what comes before the weights of a graph, and their rounding, to what its products read.

    The scales that weights will be multiplied by are taken back in the gains and biases of `model`, which is good for
    nothing then but to be packed with this fit.
    """
    tables = [table for node in model.graph if (table := token_embedding(node)) is not None]

    def block_size_of(matrix: Matrix) -> int | None:
        size = block_size_for(matrix.shape[0], block_size)
        tied = any(same_weights(matrix, table) for table in tables)
        weights = tensor_of(matrix.value).numpy()
        carried = grid.lies_on_grid(matrix, weights, BITS[precision], min(size, grid.BLOCK_SIZE))
        del weights
        release(tensor_of(matrix.value))
        return None if tied or carried else size

    scales = fit_scales(foldable_groups(model.graph), read, BITS[precision], block_size_of, note)
    return Fit(scales, read.moments, read.tokens)


def check_options(precision: str, block_size: int, accuracy_level: int) -> None:
    """Refuse what the kernels do not take."""
    if precision not in BITS:
        raise InvalidOptionError(f"precision is {precision!r}, expected one of {', '.join(BITS)}")
    if block_size < SMALLEST_BLOCK or block_size & (block_size - 1):
        raise InvalidOptionError(
            f"block_size is {block_size}, expected a power of two from {SMALLEST_BLOCK}, such as 128"
        )
    if accuracy_level not in range(5):
        raise InvalidOptionError(f"accuracy_level is {accuracy_level}, expected 0 to 4 (4 computes in int8)")


def path_to_load(source: str | os.PathLike[str], path: Path) -> Path:
    """The graph to read, if it is not the one to write."""
    if path.exists() and path.samefile(source):
        raise InvalidOptionError(f"{path} would be overwritten while it is read; give another path to write to")
    return Path(source)


def check_source(graph: ir.Graph, data_path: Path) -> None:
    """Refuse to overwrite the file that the weights are read from."""
    if not data_path.exists():
        return
    sources = {Path(t.path) for v in graph.initializers.values() if isinstance(t := v.const_value, ir.ExternalTensor)}
    if any(source.exists() and data_path.samefile(source) for source in sources):
        raise InvalidOptionError(
            f"{data_path} holds the weights that are read and would be overwritten; give another path to write to"
        )


def block_size_for(inputs: int, largest: int) -> int:
    """The largest block, from `largest` down to 16, that leaves at most an eighth of the padded matrix to padding.

    Halving a block of 4-bit codes costs a sixteenth more for scales, so a little padding is the better deal.
    """
    size = largest
    while size > SMALLEST_BLOCK and 8 * (-inputs % size) > inputs + (-inputs % size):
        size //= 2
    return size


def packing_kernel(bits: int) -> Callable[..., None]:
    """onnxruntime's function that packs [K, N] weights; it is the one its MatMulNBits quantiser calls.

    `onnxruntime.quantization` would offer it too, but importing that package configures the root logger.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    bindings = importlib.import_module("onnxruntime.capi._pybind_state")
    kernel: Callable[..., None] = getattr(bindings, f"quantize_matmul_{bits}bits")
    return kernel


def pack_with_feedback(
    columns: npt.NDArray[np.float32],
    factor: torch.Tensor,
    packed: Packed,
    scales: npt.NDArray[np.float32],
    zero_points: npt.NDArray[np.uint8],
) -> npt.NDArray[np.uint8]:
    """Codes [N, blocks, bytes] of weights [K, N], as MatMulNBits reads them; fills in scales and zero points."""
    rows = torch.from_numpy(np.ascontiguousarray(columns.T))
    rounded = with_feedback(rows, factor, packed.bits, packed.block_size)
    scales[:] = rounded.scales.numpy()
    zero_points[:] = in_halves(rounded.zero_points.numpy())
    return in_halves(rounded.codes.numpy())


def in_halves(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Numbers of 4 bits, two in a byte along the last axis, the first one in the lower half."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    pairs: npt.NDArray[np.uint8] = codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)
    return pairs


class Packer:
    """Rewrites one graph and appends its weights to the data file, in the order it meets them."""

    def __init__(
        self,
        graph: ir.Graph,
        file: IO[bytes],
        data_path: Path,
        largest_block: int,
        accuracy_level: int,
        fit: Fit | None,
    ) -> None:
        """Nothing is packed yet; see `quantize` for the order of the calls."""
        self.graph = graph
        self.file = file
        self.data_path = data_path
        self.largest_block = largest_block
        self.accuracy_level = accuracy_level
        self.fit = fit
        self.factor: tuple[str, torch.Tensor] | None = None  # of the value that was read last
        self.scaled = 0
        self.fed_back = 0
        self.packed: dict[tuple[Matrix, int], Packed] = {}
        self.products = 0
        self.embeddings = 0
        self.shared_tables = 0
        self.carried = 0
        self.left_as_they_were: list[str] = []

    def pack_embeddings(self, bits: int) -> None:
        """Turn reads of the token embedding into GatherBlockQuantized, sharing the output layer's codes if tied."""
        products = [(matrix, node) for node in self.graph if (matrix := weight_of_product(node)) is not None]
        for node in list(self.graph):
            table = token_embedding(node)
            if table is None:
                continue
            twin = next((product for product in products if same_weights(product[0], table)), None)
            if twin is not None:
                self.shared_tables += 1
                packed = self.pack(twin[0], bits, twin[1].inputs[0])
            elif np.prod(table.shape) >= SMALL_EMBEDDING:
                packed = self.pack(table, EMBEDDING_BITS)
            else:
                self.left_as_they_were.append(str(table.value.name))
                continue
            self.embeddings += 1
            self.replace(node, self.gather(node, packed))

    def pack_products(self, bits: int, note: Callable[[float], None] = lambda _: None) -> None:
        """Turn every product with a weight matrix into MatMulNBits, Gemm's bias into an Add.

        onnxruntime folds the Add back into MatMulNBits where its provider can.
        """
        nodes = list(self.graph)
        for place, node in enumerate(nodes):
            note(place / len(nodes))
            matrix = weight_of_product(node)
            if matrix is None:
                if (name := unpacked_weight(node)) is not None:
                    self.left_as_they_were.append(name)
                continue
            product = self.product(node, self.pack(matrix, bits, node.inputs[0]))
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if bias is None:
                self.replace(node, [product])
            else:
                product.outputs[0].name = f"{node.outputs[0].name}.product"
                self.replace(node, [product, ir.node("Add", [product.outputs[0], bias])])
            self.products += 1

    def product(self, node: ir.Node, packed: Packed) -> ir.Node:
        """`node`'s product with packed weights."""
        attributes = {"K": packed.inputs, "N": packed.outputs, "bits": packed.bits, "block_size": packed.block_size}
        if self.accuracy_level:
            attributes["accuracy_level"] = self.accuracy_level
        codes = self.view(packed, "codes", (packed.outputs, packed.blocks, packed.block_bytes))
        inputs = [node.inputs[0], codes, *self.grid_of(packed)]
        return ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft", name=node.name)

    def gather(self, node: ir.Node, packed: Packed) -> list[ir.Node]:
        """`node`'s rows from packed weights; the padding of the last block is cut off."""
        # The bytes of MatMulNBits' codes under another shape: a second initialiser for them costs nothing on disk,
        # where a Reshape node would be folded into a second copy in memory.
        table = self.view(packed, "table", (packed.outputs, packed.blocks * packed.block_bytes))
        attributes = {"bits": packed.bits, "block_size": packed.block_size, "gather_axis": 0, "quantize_axis": 1}
        inputs = [table, node.inputs[1], *self.grid_of(packed)]
        rows = ir.node("GatherBlockQuantized", inputs, attributes, domain="com.microsoft", name=node.name)
        if packed.inputs == packed.blocks * packed.block_size:
            return [rows]
        rows.outputs[0].name = f"{node.outputs[0].name}.padded"
        bounds = [("start", 0), ("end", packed.inputs), ("axis", -1)]
        limits = [self.constant(f"{packed.name}.{name}", value) for name, value in bounds]
        return [rows, ir.node("Slice", [rows.outputs[0], *limits])]

    def pack(self, matrix: Matrix, bits: int, read: ir.Value | None = None) -> Packed:
        """Append codes and scales of a matrix, once however many nodes read it; `read` is what it is multiplied by."""
        if (matrix, bits) in self.packed:
            return self.packed[matrix, bits]
        inputs, outputs = matrix.shape
        tensor = tensor_of(matrix.value)
        weights = tensor.numpy()
        size = block_size_for(inputs, self.largest_block)
        grid_size = min(size, grid.BLOCK_SIZE)
        carried = grid.lies_on_grid(matrix, weights, bits, grid_size)
        if carried:
            size = grid_size
            self.carried += 1
        name = f"{matrix.value.name}.int{bits}" + ("" if matrix.outputs_first else ".transposed")
        asymmetric = bits == 4 and not carried
        factor = self.factor_for(read) if asymmetric else None
        self.fed_back += factor is not None
        packed = Packed(name, inputs, outputs, bits, size, asymmetric, self.aligned(outputs * inputs))
        scales = np.empty((outputs, packed.blocks), np.float32)
        zero_points = np.zeros((outputs, -(-packed.blocks * bits // 8)), np.uint8)
        step = max(1, CHUNK_BYTES // (4 * packed.blocks * size) if factor is None else FEEDBACK_WEIGHTS // inputs)
        for start in range(0, outputs, step):
            stop = min(start + step, outputs)
            chunk = np.zeros((packed.blocks * size, stop - start), np.float32)  # [K padded, outputs of this chunk]
            chunk[:inputs] = self.scaled_columns(matrix, weights, read, start, stop)
            if not np.isfinite(chunk).all():
                raise ExportError(
                    f"the weight {matrix.value.name} holds values that are not finite and cannot be packed; "
                    "the checkpoint is damaged, or was trained in a wider type than fp32"
                )
            if carried and (exact := grid.grid_codes(chunk[:inputs], bits, size)) is not None:
                codes, scales[start:stop] = exact
            elif factor is not None:
                codes = pack_with_feedback(chunk[:inputs], factor, packed, scales[start:stop], zero_points[start:stop])
            else:
                codes = np.zeros((stop - start, packed.blocks, packed.block_bytes), np.uint8)
                grid_of_chunk = scales[start:stop], zero_points[start:stop]
                packing_kernel(bits)(codes, chunk, *grid_of_chunk, size, stop - start, inputs, not asymmetric)
            self.file.write(codes.tobytes())
        del weights
        release(tensor)
        self.register(f"{name}.scales", ir.DataType.FLOAT, scales.shape, self.append(scales.data, scales.nbytes))
        if asymmetric:
            place = self.append(zero_points.data, zero_points.nbytes)
            self.register(f"{name}.zero_points", ir.DataType.UINT8, zero_points.shape, place)
        self.packed[matrix, bits] = packed
        return packed

    def scaled_columns(
        self, matrix: Matrix, weights: npt.NDArray[np.float32], read: ir.Value | None, start: int, stop: int
    ) -> npt.NDArray[np.float32]:
        """Weights [K, stop - start] of some outputs, multiplied as the fit says."""
        columns = matrix.columns(weights, start, stop)
        if self.fit is None:
            return columns
        for_inputs = None if read is None else self.fit.scales.inputs.get(str(read.name))
        for_outputs = self.fit.scales.outputs.get(str(matrix.value.name))
        if for_inputs is not None:
            self.scaled += start == 0
            columns = columns * for_inputs.numpy()[:, None]
        return columns if for_outputs is None else columns * for_outputs.numpy()[start:stop]

    def factor_for(self, read: ir.Value | None) -> torch.Tensor | None:
        """How errors are fed back among the inputs of a value; None where nothing is known of it."""
        if self.fit is None or read is None or (moment := self.fit.moments.get(str(read.name))) is None:
            return None
        name = str(read.name)
        if self.factor is None or self.factor[0] != name:
            scale = self.fit.scales.inputs.get(name)
            self.factor = name, feedback_factor(moment if scale is None else moment / scale / scale[:, None])
        return self.factor[1]

    def view(self, packed: Packed, role: str, shape: tuple[int, ...]) -> ir.Value:
        """The packed codes as an initialiser of a shape."""
        return self.register(f"{packed.name}.{role}", ir.DataType.UINT8, shape, packed.offset)

    def grid_of(self, packed: Packed) -> list[ir.Value]:
        """The scales, [N, blocks], and the zero points where there are any, [N, blocks] of 4 bits, two in a byte."""
        roles = ("scales", "zero_points") if packed.zero_points else ("scales",)
        return [self.graph.initializers[f"{packed.name}.{role}"] for role in roles]

    def register(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], offset: int) -> ir.Value:
        """The initialiser of that name, which lies at `offset` of the data file."""
        if name not in self.graph.initializers:
            tensor = self.external(name, dtype, shape, offset)
            value = ir.Value(name=name, type=ir.TensorType(dtype), shape=tensor.shape, const_value=tensor)
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def constant(self, name: str, value: int) -> ir.Value:
        """An int64 [1] initialiser inside the graph file."""
        if name not in self.graph.initializers:
            tensor = ir.tensor([value], dtype=ir.DataType.INT64, name=name)
            initializer = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([1]), const_value=tensor)
            self.graph.register_initializer(initializer)
        return self.graph.initializers[name]

    def external(self, name: str, dtype: ir.DataType, shape: tuple[int, ...], offset: int) -> ir.ExternalTensor:
        """A tensor in the data file."""
        length = int(np.prod(shape)) * dtype.bitwidth // 8
        folder, location = self.data_path.parent, self.data_path.name
        return ir.ExternalTensor(location, offset, length, dtype, shape=ir.Shape(shape), name=name, base_dir=folder)

    def aligned(self, size: int) -> int:
        """Pad the file for a tensor of about `size` bytes and return its offset; big ones start on a page."""
        step = PAGE if size >= PAGE else 64
        self.file.write(b"\0" * (-self.file.tell() % step))
        return self.file.tell()

    def append(self, content: memoryview | bytes, size: int) -> int:
        """Append bytes and return their offset."""
        offset = self.aligned(size)
        self.file.write(content)
        return offset

    def replace(self, node: ir.Node, new_nodes: list[ir.Node]) -> None:
        """Put nodes in the place of one; the last one takes over its output, name and shape included."""
        old, new = node.outputs, new_nodes[-1].outputs
        ir.convenience.replace_nodes_and_values(self.graph, node, [node], new_nodes, old, new)

    def remove_unused(self) -> None:
        """Drop the transposes and initialisers that only the replaced nodes read."""
        for node in reversed(list(self.graph)):
            if node.op_type == "Transpose" and is_unused(node.outputs[0]):
                self.graph.remove(node, safe=True)
        for name, value in list(self.graph.initializers.items()):
            if is_unused(value):
                del self.graph.initializers[name]

    def write_the_rest(self) -> None:
        """Move what was not packed to the data file; small tensors stay in the graph, for shape inference to see."""
        for name, value in self.graph.initializers.items():
            tensor = tensor_of(value)
            if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path) == self.data_path:
                continue
            if tensor.dtype == ir.DataType.STRING:
                continue
            if tensor.nbytes <= INLINE_BYTES:
                value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=name)
            else:
                offset = self.append(tensor.tobytes(), tensor.nbytes)
                value.const_value = self.external(name, tensor.dtype, tuple(tensor.shape.numpy()), offset)
            release(tensor)
