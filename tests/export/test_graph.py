"""The traced graph's inputs and outputs: what a model is given in place of its cache, by whichever name it asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from swift_edge_export.tracing.graph import KeysAndValuesAsGiven


class SinceTransformers524(nn.Module):
    def forward(self, input_ids: torch.Tensor, cache: Any = None, **kwargs: Any) -> Any:
        return cache.update(input_ids, input_ids, 0, kwargs=kwargs)


class BeforeTransformers524(nn.Module):
    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None) -> Any:
        return past_key_values.update(input_ids, input_ids, 0, {"cache_position": None})


@pytest.mark.parametrize(
    "model", [SinceTransformers524(), BeforeTransformers524()], ids=lambda each: type(each).__name__
)
def test_keys_and_values_come_back_as_given_by_either_name(model: Any) -> None:
    given = torch.ones(1)
    key, value = model(given, **{KeysAndValuesAsGiven.cache_argument(model): KeysAndValuesAsGiven()})
    assert key is value is given
