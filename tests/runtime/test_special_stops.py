"""Stop strings with special tokens, which leave no text of their own: `<|end|>` where it is no EOS of the bundle."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from picks import SMALL_STEPS, endless_bundle

from swift_edge import Selector
from swift_edge.engine import OpenedModel
from swift_edge.results import TokenSampled
from swift_edge.training import Store, collect

QUESTION = (
    "One day Theo owns 29 carrots. Theo has 4 carrots more than Odette. As it happens, Odette got 8 fewer carrots than "
    "Teresa. What number of carrots does Teresa have?"
)
END = 1


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def selector(endless: Path) -> Selector:
    return Selector(endless, threads=1)


def ends(selector: Selector, stop: Sequence[str]) -> list[tuple[str, str]]:
    """Reason and text of each candidate; those of a stream are the same, piece by piece."""
    options: dict[str, Any] = {"n": 2, "max_new_tokens": 60, "stop": stop}
    picked = selector.pick(QUESTION, **options)
    shown = ["", ""]
    for event in selector.stream(QUESTION, **options):
        if isinstance(event, TokenSampled):
            shown[event.index] += event.text
    assert shown == [each.text for each in picked.candidates]
    return [(each.finish_reason, each.text) for each in picked.candidates]


def test_a_special_token_stops_and_is_no_text(selector: Selector) -> None:
    whole = Selector(SMALL_STEPS, threads=1).pick(QUESTION, n=2, max_new_tokens=60)
    assert ends(selector, ["<|end|>"]) == [("stop", each.text) for each in whole.candidates]
    assert {reason for reason, _ in ends(selector, [])} == {"length"}


def test_text_before_a_special_token_belongs_to_the_stop_string(selector: Selector) -> None:
    plain = ends(selector, ["<|end|>"])
    assert ends(selector, ["}<|end|>"]) == [(reason, text.removesuffix("}")) for reason, text in plain]
    assert {reason for reason, _ in ends(selector, ["{<|end|>"])} == {"length"}


def test_of_several_stop_strings_the_first_to_come_stops(selector: Selector) -> None:
    assert ends(selector, ["never", "<|end|>", "<|user|>"]) == ends(selector, ["<|end|>"])
    assert ends(selector, ["<|end|>", "8 fewer"]) == ends(selector, ["8 fewer"])


def test_several_special_tokens_in_a_row_and_text_after_one(selector: Selector) -> None:
    options: dict[str, Any] = {"n": 1, "max_new_tokens": 60}
    free = selector.pick(QUESTION, **options).best
    place = free.token_ids.index(END)
    after = free.text[len(selector.pick(QUESTION, stop=["<|end|>"], **options).best.text) :]
    assert after
    stopped = selector.pick(QUESTION, stop=[f"<|end|>{after[:2]}"], **options).best
    assert (stopped.finish_reason, stopped.text) == ("stop", free.text[: -len(after)])
    assert stopped.n_tokens > place + 1
    assert selector.pick(QUESTION, stop=["<|end|><|end|>"], **options).best.text == free.text


def test_a_request_and_a_store_stop_alike(selector: Selector, endless: Path, tmp_path: Path) -> None:
    expected = [text for _, text in ends(selector, ["<|end|>"])]
    handle = selector.submit(QUESTION, n=2, max_new_tokens=60, stop=["<|end|>"], watched=False)
    assert [each.text for each in handle.result().candidates] == expected
    (tmp_path / "data.jsonl").write_text(json.dumps({"question": QUESTION, "answer": "33"}) + "\n")
    opened = OpenedModel.open(endless, threads=1)
    collect(
        opened, tmp_path / "data.jsonl", tmp_path / "store", n=2, task="number", max_new_tokens=60, stop=["<|end|>"]
    )
    stored = Store.open(tmp_path / "store").candidates
    assert [(each.finish_reason, each.text) for each in stored] == [("stop", text) for text in expected]


def test_the_command_takes_one(run: Callable[..., Any], endless: Path) -> None:
    asked = ("-m", endless, "-n", 2, "--max-new-tokens", 60, "--threads", 1, "--json", "--stop", "<|end|>")
    found = json.loads(run("pick", QUESTION, *asked).out)
    assert {each["finish_reason"] for each in found["candidates"]} == {"stop"}
    assert all(each["token_ids"].count(END) == 1 for each in found["candidates"])
