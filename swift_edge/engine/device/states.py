"""Hidden states that stay on the device: only their products with a head's weights are copied back.

g rows of weights   l layers   d numbers of a state   m tokens
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swift_edge.engine.device.memory import Device, DeviceArray
from swift_edge.engine.device.small_graphs import FLOAT, graph, node
from swift_edge.engine.states import StateWeights


class StateReader:
    """Multiplies hidden states on a device with weights that are copied there once; shared by threads."""

    def __init__(self, device: Device, dtype: np.dtype[Any], weights: StateWeights) -> None:
        """Open a graph for float32 or float16 states, and put the weights onto the device."""
        self.weights = weights
        self._device = device
        outputs, layers, width = weights.weight.shape
        self._weight = device.placed(np.ascontiguousarray(weights.weight.reshape(outputs, layers * width).T))
        self._names = [f"states.{layer}" for layer in weights.layers]
        self._inputs = {"shape": np.array([-1, layers * width])}
        nodes = [
            node("Concat", self._names, ["together"], {"axis": 1}),  # [m, l, d]
            node("Cast", ["together"], ["states"], {"to": FLOAT}),
        ]
        source = "states"
        if weights.rms_epsilon is not None:
            self._inputs["epsilon"] = np.array([weights.rms_epsilon], np.float32)
            nodes += [
                node("Mul", ["states", "states"], ["squares"]),
                node("ReduceMean", ["squares"], ["mean"], {"axes": [2]}),
                node("Add", ["mean", "epsilon"], ["positive"]),
                node("Sqrt", ["positive"], ["length"]),
                node("Div", ["states", "length"], ["units"]),
            ]
            source = "units"
        nodes += [
            node("Reshape", [source, "shape"], ["inputs"]),  # [m, l * d]
            node("MatMul", ["inputs", "weight"], ["products"]),
        ]
        kinds = dict.fromkeys(self._names, dtype.type) | {"weight": np.float32}
        kinds |= {name: array.dtype.type for name, array in self._inputs.items()}
        self._session = device.open(graph(nodes, kinds, {"products": np.float32}))

    def products(self, states: Sequence[DeviceArray]) -> NDArray[np.float32]:
        """Products of the weights with the states `[m, 1, d]` of each layer, summed over the layers: float32 `[g, m]`.

        Raises what `Device.run` does.
        """
        products = np.empty((states[0].shape[0], len(self.weights.weight)), np.float32)  # [m, g]
        fed = dict(zip(self._names, states, strict=True)) | self._inputs | {"weight": self._weight}
        self._device.run(self._session, fed, {"products": products})
        return np.ascontiguousarray(products.T)
