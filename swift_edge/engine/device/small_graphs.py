"""ONNX graphs of a few nodes, encoded without the `onnx` package, for operators that run on a device.

They are made when they are needed, not shipped as bytes: the graph that reads states depends on the head's layers and
norm and on the model's types. The field numbers are those of onnx.proto.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

OPSET: Final = 17
"""Version of the operators: the first that came with IR version 8."""
_IR_VERSION: Final = 8
# TensorProto.DataType
_ELEMENT_TYPES: Final[dict[type, int]] = {np.float32: 1, np.int64: 7, np.float16: 10}
_NONE: Final[Mapping[str, int | list[int]]] = {}
FLOAT: Final = 1
"""Value of the attribute `to` of a Cast to float32."""


def node(
    operator: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Mapping[str, int | list[int]] = _NONE
) -> bytes:
    """One node as a NodeProto; attributes are whole numbers or lists of them."""
    parts = [*(_field(1, name) for name in inputs), *(_field(2, name) for name in outputs), _field(4, operator)]
    parts += [_field(5, _attribute(name, value)) for name, value in attributes.items()]
    return b"".join(parts)


def graph(nodes: Sequence[bytes], inputs: Mapping[str, type], outputs: Mapping[str, type]) -> bytes:
    """The whole model as a ModelProto; inputs and outputs by name with their NumPy types, of any shape."""
    parts = [_field(1, each) for each in nodes]
    parts += [_field(2, "graph")]
    parts += [_field(11, _tensor(name, kind)) for name, kind in inputs.items()]
    parts += [_field(12, _tensor(name, kind)) for name, kind in outputs.items()]
    return _field(1, _IR_VERSION) + _field(7, b"".join(parts)) + _field(8, _field(2, OPSET))


def _attribute(name: str, value: int | list[int]) -> bytes:
    """AttributeProto, of type INT or INTS."""
    if isinstance(value, int):
        return _field(1, name) + _field(3, value) + _field(20, 2)
    return _field(1, name) + b"".join(_field(8, each) for each in value) + _field(20, 7)


def _tensor(name: str, kind: type) -> bytes:
    """The name and element type of a tensor, ValueInfoProto: name, TypeProto, TypeProto.Tensor, its elem_type."""
    return _field(1, name) + _field(2, _field(1, _field(1, _ELEMENT_TYPES[kind])))


def _field(number: int, value: int | str | bytes) -> bytes:
    """A number, or a string or message with its length in front."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits per byte, the lowest first; the eighth says that more follow."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
