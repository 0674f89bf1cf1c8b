"""Options as callers give them: which hidden states a text names, and what is said about one that names none."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_edge.checks import expect, is_number, parse_layers, shown
from swift_edge.errors import InvalidOptionError


@given(layers=st.integers(1, 90), data=st.data())
def test_layers_are_all_the_last_ones_or_those_that_are_named(layers: int, data: st.DataObject) -> None:
    everything = tuple(range(layers + 1))
    assert parse_layers("all", everything) == everything
    count = data.draw(st.integers(1, layers + 1))
    assert parse_layers(f"last:{count}", everything) == everything[layers + 1 - count :]
    named = data.draw(st.lists(st.integers(-layers - 1, layers), min_size=1, max_size=8))
    parsed = parse_layers(",".join(map(str, named)), everything)
    assert parsed == tuple(sorted({index % (layers + 1) for index in named}))


@given(text=st.one_of(st.text("0123456789,:-+ lastx", max_size=8), st.sampled_from(["last", "ALL", "1.5", "1;2", ""])))
def test_anything_else_is_refused_in_one_line_with_what_is_there(text: str) -> None:
    message = expected = "expected all, last:K with K from 1 to 5, or some of 0 to 4, separated by commas"
    try:
        parsed = parse_layers(text, range(5))
        assert parsed == tuple(sorted(set(parsed)))
        assert set(parsed) <= set(range(5))
    except InvalidOptionError as error:
        message = str(error)
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["last:0", "last:6", "last:-1", "5", "-6", "0,,1", "0,5"])
def test_layers_that_the_model_does_not_have_are_refused(text: str) -> None:
    with pytest.raises(InvalidOptionError, match=re.escape(repr(text))):
        parse_layers(text, range(5))


def test_layers_are_counted_among_those_that_are_there() -> None:
    assert parse_layers("all", (0, 4, 8)) == (0, 4, 8)
    assert parse_layers("last:2", (0, 4, 8)) == (4, 8)
    assert parse_layers("8,-3,8", (0, 4, 8)) == (0, 8)
    for text in ("1", "-4", "last:4"):
        with pytest.raises(InvalidOptionError, match="K from 1 to 3, or some of 0,4,8, separated by commas"):
            parse_layers(text, (0, 4, 8))


@pytest.mark.parametrize("value", [0, -1.5, np.float32(2), np.int64(3), 10**300])
def test_numbers(value: object) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [True, None, "1", math.nan, -math.inf, np.float32(math.inf), 10**400, [1]])
def test_what_is_no_number(value: object) -> None:
    assert not is_number(value)


def test_what_is_expected_is_said_with_what_was_found() -> None:
    expect(True, "n", 1, "a number above 0")
    with pytest.raises(InvalidOptionError, match=r"^n is -1; expected a number above 0$"):
        expect(False, "n", -1, "a number above 0")


class Unwritable:
    """An object from anywhere."""

    def __repr__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**7,
        "\n" * 100,
        10**6000,
        -(10**6000),
        range(10**9),
        [[0] * 10**6] * 99,
        {0: "y" * 10**7},
        Unwritable(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_value_is_shown_in_one_short_line(value: object) -> None:
    assert 0 < len(shown(value)) <= 80
    assert "\n" not in shown(value)
