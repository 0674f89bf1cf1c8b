"""JSON documents to dataclasses: what is read, and what messages say of everything else."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_edge.records import FloatOrNull, RecordError, finite_or_none, json_text, read_fields, read_record
from swift_edge.scoring import Calibration


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Whole:
    count: int
    share: float
    mean: FloatOrNull
    ready: bool
    kind: Literal["some", "none"]
    note: str | None
    part: Part
    ids: tuple[int, ...]
    others: tuple[Part, ...]
    names: Mapping[str, FloatOrNull]
    steps: Mapping[int, Part] = field(default_factory=dict)
    anything: Any = None
    width: int = 3


texts = st.text(st.characters(codec="utf-8"), max_size=5)
whole_numbers = st.integers(-(2**40), 2**40)
parts = st.builds(Part, texts, st.none() | whole_numbers)
finite = st.floats(allow_nan=False, allow_infinity=False)
wholes = st.builds(
    Whole,
    whole_numbers,
    finite,
    finite,
    st.booleans(),
    st.sampled_from(["some", "none"]),
    st.none() | texts,
    parts,
    st.lists(whole_numbers, max_size=3).map(tuple),
    st.lists(parts, max_size=3).map(tuple),
    st.dictionaries(texts, finite, max_size=3),
    st.dictionaries(st.integers(0, 10**6), parts, max_size=3),
    st.none() | texts,
    whole_numbers,
)
WHOLE = Whole(1, 0.5, math.nan, True, "some", None, Part("a"), (1, 2), (Part("b", 2),), {"x": math.nan})


def document_of(record: Whole) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(asdict(record)))
    document["mean"] = finite_or_none(record.mean)
    document["names"] = {name: finite_or_none(number) for name, number in record.names.items()}
    return document


@given(record=wholes)
def test_what_was_written_is_read_back(record: Whole) -> None:
    assert read_record(document_of(record), Whole) == record


def test_null_is_nan_where_the_field_says_so_and_unknown_names_are_passed_over() -> None:
    found = read_record(document_of(WHOLE) | {"later": 1}, Whole)
    assert math.isnan(found.mean)
    assert math.isnan(found.names["x"])
    whole_share = read_record(document_of(WHOLE) | {"share": 1}, Whole).share
    assert (whole_share, type(whole_share)) == (1.0, float)


def test_what_holds_nothing_by_default_may_be_missing_and_nothing_else() -> None:
    for name in document_of(WHOLE):
        document = document_of(WHOLE)
        del document[name]
        if name in ("steps", "anything"):
            assert getattr(read_record(document, Whole), name) == getattr(WHOLE, name)
            continue
        with pytest.raises(RecordError, match=rf"^{name} is missing; expected "):
            read_record(document, Whole)
        assert name not in read_fields(document, Whole, optional=(name,))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": True}, "count is true; expected an integer"),
        ({"count": 10**30}, f"count is {10**30}; expected an integer of at most 64 bits"),
        ({"ids": [1, -(10**30)]}, f"ids is -{10**30}; expected an integer of at most 64 bits"),
        ({"steps": {"9" * 5000: {}}}, f'steps is {{"{"9" * 75}...; expected an object whose names are whole numbers'),
        ({"steps": {"01": {}}}, 'steps is {"01": {}}; expected an object whose names are whole numbers'),
        ({"count": 1.0}, "count is 1.0; expected an integer"),
        ({"share": "1"}, 'share is "1"; expected a number'),
        ({"share": None}, "share is null; expected a number"),
        ({"share": 10**400}, f"share is 1{'0' * 76}...; expected a number"),
        ({"mean": "high"}, 'mean is "high"; expected a number'),
        ({"ready": 1}, "ready is 1; expected true or false"),
        ({"kind": ["some"]}, 'kind is ["some"]; expected one of some, none'),
        ({"note": 5}, "note is 5; expected a string"),
        ({"part": None}, "part is null; expected an object"),
        ({"part": {"size": 1}}, "part.name is missing; expected a string"),
        ({"ids": 5}, "ids is 5; expected a list"),
        ({"ids": [1, True]}, "ids[1] is true; expected an integer"),
        ({"others": [{"name": "a", "size": "b"}]}, 'others[0].size is "b"; expected an integer'),
        ({"names": {"x": "y"}}, 'names.x is "y"; expected a number'),
        ({"steps": {"two": {}}}, 'steps is {"two": {}}; expected an object whose names are whole numbers'),
        ({"steps": {"2": 5}}, "steps.2 is 5; expected an object"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError) as caught:
        read_record(document_of(WHOLE) | changes, Whole)
    assert str(caught.value) == said


@pytest.mark.parametrize("document", [[], None, "{}", 3])
def test_a_document_has_to_be_an_object(document: object) -> None:
    with pytest.raises(RecordError, match=r"^the document is .*; expected an object$"):
        read_record(document, Whole)


@given(
    document=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=3), inner),
        max_leaves=10,
    )
)
def test_whatever_is_written_is_json_and_utf8(document: object) -> None:
    text = json_text(document)
    text.encode()
    json.loads(text, parse_constant=pytest.fail)


CALIBRATION = Calibration(slope=1.5, intercept=-0.5, base_rate=0.4, error=0.1, candidates=80, problems=10)


def test_a_calibration_is_read_as_it_was_written() -> None:
    assert read_record(json.loads(json.dumps(CALIBRATION.to_dict())), Calibration) == CALIBRATION


@pytest.mark.parametrize("changes", [{"slope": "1"}, {"slope": True}, {"intercept": None}, {"problems": 2.5}])
def test_a_calibration_of_other_data_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="; expected"):
        read_record(CALIBRATION.to_dict() | changes, Calibration)
    partly = CALIBRATION.to_dict()
    del partly["error"]
    with pytest.raises(RecordError, match="error is missing; expected a number"):
        read_record(partly, Calibration)
