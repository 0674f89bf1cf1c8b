"""Options of a pick: what is taken and refused, and that everything made from their declaration says the same."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import swift_edge
from swift_edge import PickOptions, Selector
from swift_edge.answers import ANSWER_TASKS, TaskName
from swift_edge.cli import commands
from swift_edge.errors import InvalidOptionError
from swift_edge.options import (
    CollectInput,
    CollectOptions,
    PickInput,
    SamplingInput,
    SamplingOptions,
    WritingInput,
    WritingOptions,
    options_reference,
)
from swift_edge.training import collect

ROOT = Path(__file__).parents[2]
PACKAGE = Path(swift_edge.__file__).parent
STORIES = str(ROOT / "models" / "stories260k")
STEPS = str(ROOT / "models" / "small-steps")
SUMS = "There are 4 apples and 3 pears. How many fruits are there?"
Run = Callable[..., Any]

WHOLE = st.integers(1, 10**9)
NUMBER = st.integers(1, 10**4)
SHARE = st.floats(0, 1)


def falling(schedule: dict[int, int]) -> dict[int, int]:
    """The same numbers, so that none stays that was dropped before."""
    return dict(zip(sorted(schedule), sorted(schedule.values(), reverse=True), strict=True))


SOME = {
    "n": st.one_of(st.just("auto"), NUMBER),
    "max_new_tokens": WHOLE,
    "temperature": st.one_of(st.none(), st.just(0), st.floats(1e-6, 1e6)),
    "top_p": st.one_of(st.none(), st.floats(0, 1, exclude_min=True)),
    "top_k": st.one_of(st.none(), st.integers(0, 10**6)),
    "min_p": st.one_of(st.none(), SHARE),
    "repetition_penalty": st.one_of(st.none(), st.floats(1e-3, 1e3)),
    "stop": st.one_of(st.text(min_size=1), st.lists(st.text(min_size=1), max_size=3)),
    "raw": st.booleans(),
    "seed": st.one_of(st.none(), st.integers(0, 2**64 - 1)),
    "signal": st.sampled_from([None, "mean_logprob", "self_certainty"]),
    "strategy": st.sampled_from(["auto", "best", "majority", "vote", "calibrated", "best-of-majority", "scaling"]),
    "task": st.sampled_from([None, *ANSWER_TASKS]),
    "min_confidence": st.one_of(st.none(), SHARE),
    "max_n": st.one_of(st.none(), NUMBER),
    "prune": st.one_of(
        st.sampled_from([None, "auto", "off"]), st.dictionaries(WHOLE, WHOLE, min_size=1, max_size=3).map(falling)
    ),
    "budget_tokens": st.one_of(st.none(), WHOLE),
    "budget_seconds": st.one_of(st.none(), st.floats(0, 1e9, exclude_min=True)),
}
"""Values that each option may have."""
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-1, 2),
        st.integers(-2, 2**65),
        st.floats(-2, 2000).filter(lambda number: not number.is_integer()),
        st.sampled_from(["", "auto", "off", "best", "number", "mean_logprob", "1"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["0", "1", "16", "01", "x"]), inner, max_size=2)
    ),
    max_leaves=3,
)
"""What may come as JSON, near what is taken."""


@given(st.fixed_dictionaries({}, optional=SOME))
def test_what_was_written_as_json_is_read_back(values: dict[str, Any]) -> None:
    options = PickOptions(**values)
    document = json.loads(json.dumps(options.to_dict(), allow_nan=False))
    assert document == options.to_dict()
    assert PickOptions.from_dict(document) == options
    assert PickOptions.from_dict({name: document[name] for name in values}) == options


@given(name=st.sampled_from(sorted(SOME)), value=JSON)
def test_the_schema_describes_what_is_read(name: str, value: object) -> None:
    schema = PickOptions.json_schema()
    assert schema["additionalProperties"] is False
    if fits(value, schema["properties"][name]):
        PickOptions.from_dict({name: value})
    else:
        with pytest.raises(InvalidOptionError, match=f"^{name} is .*; expected "):
            PickOptions.from_dict({name: value})


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """The words of JSON schema that are used here; an integer is written without a fraction."""
    kinds = {
        "null": value is None,
        "boolean": isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, (int, float)) and not isinstance(value, bool),
        "string": isinstance(value, str),
        "array": isinstance(value, list),
        "object": isinstance(value, dict),
    }
    if "anyOf" in schema:
        return any(fits(value, each) for each in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if "const" in schema:
        return value == schema["const"] and not isinstance(value, bool)
    if not kinds[schema["type"]]:
        return False
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        least, above, most = (schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
        inside = (least is None or value >= least) and (above is None or value > above)
        return inside and (most is None or value <= most)
    if isinstance(value, dict):
        ((pattern, inner),) = schema["patternProperties"].items()
        return len(value) >= schema["minProperties"] and all(
            re.search(pattern, key) is not None and fits(each, inner) for key, each in value.items()
        )
    if isinstance(value, list):
        return all(fits(each, schema["items"]) for each in value)
    return not isinstance(value, str) or len(value) >= schema["minLength"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": "1"}, "temperature is '1'; expected 0 or a number from 1e-06 to 1000000, or None"),
        ({"temperature": math.nan}, "temperature is nan; expected"),
        ({"temperature": math.inf}, "temperature is inf; expected"),
        ({"temperature": 10**400}, "temperature is an integer of 1329 bits"),
        ({"temperature": 1e-7}, "temperature is 1e-07; expected"),
        ({"temperature": True}, "temperature is True; expected"),
        ({"top_p": "x"}, "top_p is 'x'; expected a number above 0 and at most 1, or None"),
        ({"top_p": 0}, "top_p is 0; expected"),
        ({"top_k": 1.5}, "top_k is 1.5; expected an integer from 0 to 1000000000, or None"),
        ({"min_p": math.nan}, "min_p is nan; expected a number from 0 to 1, or None"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; expected a number from 0.001 to 1000, or None"),
        ({"stop": ["a"] * 257}, "stop is ['a', 'a', 'a'"),
        ({"stop": range(10**10)}, "stop is range(0, 10000000000); expected a text"),
        ({"stop": "a" * 16385}, "stop is 'aaa"),
        ({"stop": "\ud800"}, "stop is '\\ud800'; expected a text"),
        ({"stop": None}, "stop is None; expected a text"),
        ({"temperature": 1e7}, "temperature is 10000000.0; expected 0 or a number from 1e-06 to 1000000"),
        ({"n": 10**4000}, "n is an integer of 13288 bits; expected an integer from 1 to 10000"),
        ({"n": 10_001}, "n is 10001; expected an integer from 1 to 10000"),
        ({"max_new_tokens": 10**9 + 1}, "max_new_tokens is 1000000001"),
        ({"prune": {4: 2, 8: 3}}, "prune is {4: 2, 8: 3}; expected auto, off, how many candidates stay by token count"),
        ({"prune": {8: 3, 4: 2}}, "prune is {4: 2, 8: 3}; expected auto, off, how many candidates stay by token count"),
        ({"prune": dict.fromkeys(range(1, 300), 1)}, "prune is {1: 1, 2: 1"),
        ({"prune": {10**4000: 1}}, "prune is"),
        ({"stop": 5}, "stop is 5; expected a text or a list of up to 256 texts, of at least one character each"),
        ({"stop": ["a", ""]}, "stop is ['a', '']; expected"),
        ({"stop": None}, "stop is None; expected"),
        ({"seed": 1.5}, "seed is 1.5; expected an integer from 0 to 18446744073709551615, or None"),
        ({"seed": 2**64}, "seed is 18446744073709551616; expected"),
        ({"n": True}, "n is True; expected an integer from 1 to 10000, or auto"),
        ({"n": 0}, "n is 0; expected"),
        ({"n": "many"}, "n is 'many'; expected"),
        ({"n": None}, "n is None; expected"),
        ({"max_new_tokens": 4.0}, "max_new_tokens is 4.0; expected an integer from 1 to 1000000000, in tokens"),
        ({"raw": 1}, "raw is 1; expected True or False"),
        ({"signal": "vibes"}, "signal is 'vibes'; expected mean_logprob, self_certainty, or None"),
        ({"strategy": "bestt"}, "strategy is 'bestt'; expected auto, best, majority"),
        ({"strategy": None}, "strategy is None; expected"),
        ({"task": "sums"}, "task is 'sums'; expected number, latex"),
        ({"external": 3}, "external is 3; expected a function, or None"),
        ({"min_confidence": 1.5}, "min_confidence is 1.5; expected a number from 0 to 1, or None"),
        ({"max_n": 0}, "max_n is 0; expected an integer from 1 to 10000, or None"),
        ({"prune": {16: 0}}, "prune is {16: 0}; expected auto, off, how many candidates stay by token count"),
        ({"prune": {}}, "prune is {}; expected"),
        ({"budget_tokens": 0.5}, "budget_tokens is 0.5; expected an integer from 1 to 1000000000, in tokens, or None"),
        ({"budget_seconds": 0}, "budget_seconds is 0; expected a number above 0 and at most 1000000000"),
        ({"options": {"n": 4}}, "options is {'n': 4}; expected a PickOptions, or None"),
        ({"temprature": 1.0}, "there is no option 'temprature'; did you mean temperature?"),
        ({"max_tokens": 5}, "there is no option 'max_tokens'; did you mean max_new_tokens?"),
    ],
)
def test_a_bad_value_is_refused_with_what_was_expected(options: dict[str, Any], told: str) -> None:
    selector = Selector("no-such-folder")  # options come first
    for call in (selector.pick, selector.stream, lambda prompt, **asked: selector.pick_many([prompt], **asked)):
        with pytest.raises(InvalidOptionError) as raised:
            call("x", **options)
        assert str(raised.value).startswith(told)
        assert "\n" not in str(raised.value)


def test_what_cannot_come_as_json_is_refused() -> None:
    for document, told in (
        ({"external": "f"}, "there is no option 'external'"),
        ({"N": 3}, "there is no option 'N'; did you mean"),
        ({"prune": {"016": 8}}, "prune is {'016': 8}"),
        ([("n", 3)], "options is [('n', 3)]; expected an object of options by name"),
    ):
        with pytest.raises(InvalidOptionError) as raised:
            PickOptions.from_dict(document)  # type: ignore[arg-type]
        assert str(raised.value).startswith(told)
    with pytest.raises(InvalidOptionError, match=r"^task is .*no function"):
        PickOptions(task=str.strip).to_dict()


def test_numbers_of_numpy_are_plain_ones_and_a_schedule_is_a_copy() -> None:
    schedule = {np.int64(16): 8}
    options = PickOptions(n=np.int64(4), top_p=np.float64(0.5), stop="END", prune=schedule)  # type: ignore[arg-type]
    schedule[np.int64(32)] = 4
    assert (type(options.n), type(options.top_p), options.stop, options.prune) == (int, float, ("END",), {16: 8})


def test_keywords_win_over_the_options_they_come_with() -> None:
    selector, options = Selector(STORIES, threads=1), PickOptions(n=2, max_new_tokens=4, seed=3)
    picked = selector.pick("Once", options=options, seed=4)
    assert picked.seed == 4
    alone = selector.pick("Once", n=2, max_new_tokens=4, seed=4)
    assert [each.token_ids for each in picked.candidates] == [each.token_ids for each in alone.candidates]
    (streamed,) = (event for event in selector.stream("Once", options=options) if hasattr(event, "selection"))
    (many,) = selector.pick_many(["Once"], options=options)
    assert streamed.selection.seed == many.seed == options.seed


def test_the_bundle_decides_what_was_left_open_and_a_seed_is_drawn() -> None:
    defaults = SamplingOptions(temperature=0.7, top_k=20, repetition_penalty=1.1)
    resolved = PickOptions(top_p=0.5, seed=None).resolved(defaults)
    assert (resolved.temperature, resolved.top_p, resolved.top_k, resolved.min_p) == (0.7, 0.5, 20, None)
    assert resolved.repetition_penalty == 1.1
    assert resolved.seed is not None
    assert resolved.resolved(SamplingOptions(min_p=0.1)) == PickOptions(
        **{each.name: getattr(resolved, each.name) for each in fields(resolved)} | {"min_p": 0.1}
    )


@pytest.mark.parametrize(
    ("declaration", "keywords", "open_ended"),
    [
        (SamplingOptions, SamplingInput, True),
        (WritingOptions, WritingInput, False),
        (CollectOptions, CollectInput, False),
        (PickOptions, PickInput, False),
    ],
)
def test_keywords_are_the_fields(declaration: type, keywords: type, open_ended: bool) -> None:
    expected = get_type_hints(declaration)
    if open_ended:  # in a call None is the bundle's own
        expected = {name: hint | None for name, hint in expected.items()}
    assert get_type_hints(keywords) == expected


def test_the_names_of_tasks_are_those_of_the_tasks() -> None:
    assert get_args(TaskName) == tuple(ANSWER_TASKS)


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_typo_is_seen_before_anything_runs(checker: str, tmp_path: Path) -> None:
    pytest.importorskip(checker)
    right = (
        'strategy="best", prune={16: 8}, task=str.strip, n="auto"',
        'options=PickOptions(signal=None), prune="off"',
    )
    wrong = ('strategy="bestt"', 'signal="loudness"', 'task="sums"', 'prune="hard"', 'n="few"', "temprature=1.0")
    lines = ["from swift_edge import PickOptions, Selector", "selector = Selector('x')"]
    lines += [f"selector.pick('x', {keywords})" for keywords in (*right, *wrong)]
    lines += [f"PickOptions({keywords})" for keywords in wrong]
    if (ROOT / "swift_edge").is_dir():
        # It does not follow the import hooks of an editable install.
        (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}), encoding="utf-8")
    program = tmp_path / "program.py"
    program.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", checker, str(program)],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )
    found = {int(line) for line in re.findall(r"program\.py:(\d+)[:\d]* .*error", done.stdout)}
    first = len(right) + 3
    assert found == set(range(first, first + 2 * len(wrong))), done.stdout + done.stderr


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the sources are not here")
def test_the_reference_is_made_from_the_declaration() -> None:
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == options_reference()
    assert all(f"| `{each.name}` |" in options_reference() for each in fields(PickOptions))


def test_a_sampling_option_is_declared_in_one_place() -> None:
    named = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\brepetition_penalty\s*(:|=(?!=))", path.read_text(encoding="utf-8"))
    ]
    assert named == ["options.py"]


def test_the_options_import_nothing_of_what_they_are_for() -> None:
    text = (PACKAGE / "options.py").read_text(encoding="utf-8")
    imported = set(re.findall(r"^from (swift_edge[\w.]*) import", text, re.MULTILINE))
    assert imported <= {"swift_edge.answers", "swift_edge.checks", "swift_edge.errors", "swift_edge.field_texts"}


def test_every_option_that_can_be_written_down_is_one_of_the_command(run: Run) -> None:
    names = {parameter.name for parameter in commands.commands["pick"].params}
    assert {each.name for each in fields(PickOptions)} - {"external"} <= names
    shown = " ".join(run("pick", "--help").out.split())
    assert "Divides the logits; 0 is greedy. [default: the bundle's]" in shown
    assert "--max-new-tokens N Most tokens of each candidate. [default: 512]" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ("pick", "x", "-m", "absent", "--top-p", "2"),
        ("pick", "x", "-m", "absent", "-n", "0"),
        ("score", "x", "y", "-m", STORIES, "--signal", "loudness"),
        ("collect", "-m", "absent", "--data", "absent", "--task", "number", "--out", "absent", "--seed", "-1"),
        ("eval", "-m", "absent", "--data", "absent", "--task", "number", "--out", "absent", "--rows", "0"),
        ("bench", "-m", STORIES, "--top-p", "0"),
        ("bench", "-m", STORIES, "--rounds", "0"),
    ],
)
def test_a_bad_value_is_status_2_from_every_command(run: Run, arguments: tuple[str, ...]) -> None:
    outcome = run(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert re.match(r"error: \w+ is .*; expected ", line)


def test_a_pick_that_abstains_is_status_3_and_says_nothing(run: Run, tmp_path: Path) -> None:
    asked = ("pick", SUMS, "-m", STEPS, "-n", "2", "--max-new-tokens", "24", "--threads", "1")
    sure = run(*asked, "--min-confidence", "0")
    assert sure.status == 0
    assert sure.out
    unsure = run(*asked, "--min-confidence", "1", "--explain", tmp_path / "page.html")
    assert (unsure.status, unsure.out) == (3, "")
    assert "abstained" in unsure.err
    assert (tmp_path / "page.html").exists()
    told = run(*asked, "--min-confidence", "1", "--json")
    assert told.status == 3
    assert json.loads(told.out)["abstained"] is True


def test_collecting_takes_its_options_the_same_way(tmp_path: Path) -> None:
    for options, told in (
        ({"temprature": 1.0}, "did you mean temperature?"),
        ({"seed": None}, "seed is None; expected an integer from 0 to 18446744073709551615$"),
        ({"n": "auto"}, "n is 'auto'; expected an integer of at least 1"),
        ({"rows": 0}, "rows is 0; expected an integer from 1 to 1024"),
        ({"top_p": "x"}, "top_p is 'x'"),
    ):
        with pytest.raises(InvalidOptionError, match=told):
            collect("absent", "absent", tmp_path / "store", task="number", **options)  # type: ignore[arg-type]
