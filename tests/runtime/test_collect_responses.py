"""Collecting from given texts: the same features as decoding them, labels from the file, and bad rows named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swift_edge import Selector
from swift_edge.engine import OpenedModel
from swift_edge.errors import DataError, DiskSpaceError, InvalidOptionError, StoreError
from swift_edge.scoring import Head
from swift_edge.training import CollectProgress, Store, collect, collect_responses

ROOT = Path(__file__).parents[2]
STORIES = ROOT / "models" / "stories260k"
ADDITION = ROOT / "tests" / "data" / "addition-gpt2-h1_l1"
OPENINGS = ("Once upon a time", "Lily saw a dog", "The sun")
TALES: dict[str, Any] = {"grader": lambda _, text: "the" in text, "n": 3, "max_new_tokens": 80, "temperature": 1.2}


@pytest.fixture(scope="module")
def telling() -> OpenedModel:
    return OpenedModel.open(STORIES, threads=1)


@pytest.fixture(scope="module")
def adding() -> OpenedModel:
    return OpenedModel.open(ADDITION, threads=1)


@pytest.fixture(scope="module")
def decoded(telling: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """What decoding gives for some prompts, some responses longer than a chunk."""
    folder = tmp_path_factory.mktemp("decoded")
    (folder / "data.jsonl").write_text(
        "".join(json.dumps({"prompt": text}) + "\n" for text in OPENINGS), encoding="utf-8"
    )
    collect(telling, folder / "data.jsonl", folder / "store", **TALES)
    return Store.open(folder / "store")


def rollouts(store: Store, **fields: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """The candidates of a store in the released layout, with further lists made from each candidate."""
    rows = []
    for number, opening in enumerate(OPENINGS):
        members = [each for each in store.candidates if each.problem == number]
        row = {"prompt": opening, "completions": [each.text for each in members]}
        rows.append(row | {name: [make(each) for each in members] for name, make in fields.items()})
    return rows


def file_of(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "responses.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_given_tokens_have_the_features_that_decoding_them_gave(
    telling: OpenedModel, decoded: Store, tmp_path: Path
) -> None:
    rows = rollouts(decoded, correctness=lambda each: each.correct, token_ids=lambda each: list(each.token_ids))
    lines: list[str] = []
    states: list[CollectProgress] = []
    found = collect_responses(
        telling, file_of(tmp_path, rows), tmp_path / "store", report=lines.append, progress=states.append
    )
    opened = Store.open(tmp_path / "store")
    assert opened.complete
    assert (opened.info.n, opened.info.seed, opened.info.sampling, opened.info.task) == (None, None, None, None)
    assert found.new_tokens == states[-1].tokens == sum(each.n_tokens for each in decoded.candidates)
    assert found.prefill_s > 0 == found.decode_s
    for one, other in zip(opened.candidates, decoded.candidates, strict=True):
        assert (one.problem, one.index, one.correct) == (other.problem, other.index, other.correct)
        assert (one.text, one.token_ids, one.tokens) == (other.text, other.token_ids, other.tokens)
        assert one.finish_reason == "given"
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert one.self_certainty == pytest.approx(other.self_certainty, abs=1e-4)
        assert one.entropy == pytest.approx(other.entropy, abs=1e-4)
    for mine, theirs in zip(opened.shards, decoded.shards, strict=True):
        scale = np.abs(theirs.states.astype(np.float32)).max(axis=2, keepdims=True)
        assert (np.abs(mine.states.astype(np.float32) - theirs.states) / scale).max() < 2e-3
        np.testing.assert_allclose(mine.statistics, theirs.statistics, atol=1e-4)
        np.testing.assert_array_equal(mine.token_ids, theirs.token_ids)
        np.testing.assert_array_equal(mine.positions, theirs.positions)


def test_texts_are_encoded_and_get_the_eos(telling: OpenedModel, tmp_path: Path) -> None:
    row = {
        "prompt": OPENINGS[0],
        "completions": [", there was a girl.", " a"],
        "correctness": [1, 0],
        "steps": [[], []],
    }
    found = collect_responses(telling, file_of(tmp_path, [row]), tmp_path / "store")
    (note,) = found.notes
    assert "steps" in note
    eos_id = telling.tokenizer.end_of_turn
    for stored, text in zip(Store.open(tmp_path / "store").candidates, row["completions"], strict=True):
        assert stored.token_ids == (*telling.tokenizer.encode_response(str(text)), eos_id)
        assert stored.text == text
        assert stored.tokens == stored.n_tokens


def test_a_head_scores_given_texts_as_score_does(telling: OpenedModel, tmp_path: Path, stories_head: Head) -> None:
    texts = [", there was a little girl.", " purple seven of", " a" * 100]
    rows = [{"prompt": OPENINGS[0], "completions": texts, "correctness": [1, 0, 0]}]
    data = file_of(tmp_path, rows)
    collect_responses(telling, data, tmp_path / "store", heads={"plain": stories_head}, store_features=False)
    scored = Selector(STORIES, head=stories_head, threads=1).score(OPENINGS[0], texts)
    found = [each.scores["plain"] for each in Store.open(tmp_path / "store").candidates]
    assert found == [each.score for each in scored.candidates]


def test_labels_are_graded_where_the_file_has_none(adding: OpenedModel, tmp_path: Path) -> None:
    rows = [
        {"prompt": "331970", "reference": 1301, "completions": ["1301", "1201"]},
        # Labels that are there stay, whatever the task says; the answers are the task's.
        {"prompt": "331970", "reference": "1301", "completions": ["1301", "1201"], "correctness": [False, True]},
    ]
    found = collect_responses(adding, file_of(tmp_path, rows), tmp_path / "store", task="number")
    opened = Store.open(tmp_path / "store")
    assert [each.correct for each in opened.candidates] == [True, False, False, True]
    assert [each.answer for each in opened.candidates] == ["1301", "1201"] * 2
    assert opened.info.task == "number"
    assert (found.problems, found.correct, found.mixed) == (2, 2, 2)
    # No EOS in this model, and the last of four digits does not fit into its context.
    assert {(each.n_tokens, each.tokens, each.unscored_tokens) for each in opened.candidates} == {(4, 3, 1)}
    by_callable = collect_responses(
        adding,
        file_of(tmp_path, [{"prompt": "331970", "completions": ["1301", "1"]}]),
        tmp_path / "callable",
        grader=lambda problem, text: len(text) == 4 and problem.answer is None,
    )
    assert by_callable.correct == 1


def test_positions_are_limited_here_too(telling: OpenedModel, decoded: Store, tmp_path: Path) -> None:
    data = file_of(tmp_path, rollouts(decoded, correctness=lambda each: each.correct))
    collect_responses(telling, data, tmp_path / "store", tokens_per_candidate=3, layers=(5,), limit=2)
    opened = Store.open(tmp_path / "store")
    assert opened.info.problems == 2
    assert {each.tokens for each in opened.candidates} == {3}
    with pytest.raises(StoreError, match="collected with layers"):
        collect_responses(telling, data, tmp_path / "store", tokens_per_candidate=3, limit=2)


def test_an_interrupted_run_goes_on(telling: OpenedModel, decoded: Store, tmp_path: Path) -> None:
    data = file_of(tmp_path, rollouts(decoded, correctness=lambda each: each.correct))
    collect_responses(telling, data, tmp_path / "whole")

    def stop(state: CollectProgress) -> None:
        if state.problems == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_responses(telling, data, tmp_path / "parts", progress=stop)
    found = collect_responses(telling, data, tmp_path / "parts")
    assert 0 < found.new_tokens < found.tokens
    for file in (tmp_path / "whole").iterdir():
        if file.name != "timings.json":
            assert (tmp_path / "parts" / file.name).read_bytes() == file.read_bytes()


GOOD = {"prompt": "123456", "completions": ["579"], "correctness": [True]}


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        ({"correctness": None}, {}, "line 2 has no correctness; add it, or name a --task"),
        ({"correctness": None}, {"task": "number"}, "line 2 has no answer"),
        ({"correctness": None, "reference": "?"}, {"task": "number"}, "line 2 has the answer"),
        ({"prompt": ""}, {}, "line 2: the prompt is empty"),
        ({"prompt": "1234567890"}, {}, "line 2: the prompt has 10 tokens"),
        ({"completions": ["1" * 9]}, {}, "line 2: text 1 has 9 tokens after a prompt of 6"),
        ({"completions": [""]}, {}, "line 2: text 1 has no tokens"),
        ({"completions": ["\ud800"]}, {}, "line 2: completions has half a character"),
        ({"token_ids": [[1, 10]]}, {}, "line 2: token_ids 0 goes from 1 to 10; expected ids from 0 to 9"),
        ({"token_ids": [[-1, 1]]}, {}, "line 2: token_ids 0 goes from -1"),
        ({"token_ids": [[1] * 5]}, {}, "line 2: token_ids 0 has 5 tokens after a prompt of 6"),
    ],
)
def test_a_row_that_the_model_cannot_take_is_named_before_anything_is_written(
    adding: OpenedModel, tmp_path: Path, row: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    data = file_of(tmp_path, [GOOD, GOOD | row])
    with pytest.raises(DataError, match=f"responses.jsonl {reason}"):
        collect_responses(adding, data, tmp_path / "store", **options)
    assert not list(tmp_path.glob("store/*"))


def test_options_and_disk_are_checked(adding: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = file_of(tmp_path, [GOOD])
    with pytest.raises(InvalidOptionError, match="layers are 5"):
        collect_responses(adding, data, tmp_path / "store", layers=(5,))

    class Full:
        free = 100

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Full)
    with pytest.raises(DiskSpaceError, match=r"fewer --layers .* 100 bytes are free"):
        collect_responses(adding, data, tmp_path / "store")
