"""Benchmarks: official files are read as they are, worded for the model, and graded by their own task."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift_edge import Selector
from swift_edge.answers import answer_task
from swift_edge.bundle import open_bundle, read_manifest, write_bundle
from swift_edge.errors import DataError
from swift_edge.options import BenchmarkName
from swift_edge.scoring import load_head
from swift_edge.training import Asked, FitOptions, Problem, Store, collect, fit_head, read_problems

ROOT = Path(__file__).parents[2]
STORIES = str(ROOT / "models" / "stories260k")
Run = Callable[..., Any]

ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {
        "question": "Rosa has 3 boxes of 4 pens. How many pens has she?",
        "answer": "Rosa has 3*4 = <<3*4=12>>12 pens.\n#### 12",
    },
    "math": {
        "problem": "What is $\\frac{1}{2} + \\frac{1}{4}$?",
        "solution": "The sum is $\\frac{2}{4} + \\frac{1}{4} = \\boxed{\\frac{3}{4}}$.",
        "answer": "\\frac{3}{4}",
        "subject": "Prealgebra",
        "level": 1,
        "unique_id": "test/prealgebra/1.json",
    },
    "aqua": {
        "question": "What is 15% of 40?",
        "options": ["A)4", "B)5", "C)6", "D)7", "E)8"],
        "rationale": "0.15 * 40 = 6. Answer: C",
        "correct": "C",
    },
    "hellaswag": {
        "ind": 24,
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is sitting on a roof.",
        "ctx_b": "he",
        "ctx": "A man is sitting on a roof. he",
        "split": "val",
        "endings": ["flies off.", "rips tiles off.", "is a roof.", "sings a ladder."],
        "label": 1,
    },
    "coinflip": {"question": "A coin is heads up. Ann flips the coin. Is the coin still heads up?", "answer": "no"},
    "svamp": {
        "ID": "chal-1",
        "Body": "A pack costs 76 dollars. If there is a discount of 25 dollars",
        "Question": "How much is a pack?",
        "Equation": "( 76.0 - 25.0 )",
        "Answer": 51.0,
        "Type": "Subtraction",
    },
    "cruxeval": {"code": "def f(a):\n    return {a: a + 1}", "input": "1", "output": "{1: 2}", "id": "sample_0"},
}
"""A row of each benchmark, in the shape of its official file."""


def file_of(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "question", "answer"),
    [
        ("gsm8k", "Rosa has 3 boxes of 4 pens. How many pens has she?", "12"),
        ("math", "What is $\\frac{1}{2} + \\frac{1}{4}$?", "\\frac{3}{4}"),
        ("aqua", "What is 15% of 40?\n\n(A) 4\n(B) 5\n(C) 6\n(D) 7\n(E) 8", "C"),
        (
            "hellaswag",
            "Roof shingle removal: A man is sitting on a roof. he ...\n\nWhich ending is the most likely one?\n\n"
            "(A) flies off.\n(B) rips tiles off.\n(C) is a roof.\n(D) sings a ladder.",
            "B",
        ),
        ("coinflip", "A coin is heads up. Ann flips the coin. Is the coin still heads up?", "no"),
        ("svamp", "A pack costs 76 dollars. If there is a discount of 25 dollars, how much is a pack?", "51.0"),
        (
            "cruxeval",
            "```python\ndef f(a):\n    return {a: a + 1}\n```\n\nWhat does this call return?\n\n```python\nf(1)\n```",
            "{1: 2}",
        ),
    ],
)
def test_an_official_row_becomes_a_question_and_a_reference(
    tmp_path: Path, name: Any, question: str, answer: str
) -> None:
    problems = read_problems(file_of(tmp_path, ROWS[name]), benchmark=name)
    (problem,) = problems.rows
    assert (problem.question, problem.answer) == (question, answer)
    assert problem.row == ROWS[name]
    assert problems.task is not None
    task = answer_task(problems.task)
    assert task.reference(answer) is not None
    assert task.correct(f"So it is \\boxed{{{answer}}}.", answer)
    assert not task.correct("So it is \\boxed{9999}.", answer)


def test_a_row_of_another_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.jsonl line 2 has no options; expected a row of aqua, with question, op"):
        read_problems(file_of(tmp_path, ROWS["aqua"], ROWS["gsm8k"]), benchmark="aqua")


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[[str], Path]:
    """Make a bundle of the stories model with a chat template."""

    def make(template: str) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(STORIES, folder)
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        write_bundle(folder, read_manifest(folder))
        return folder

    return make


WRITING: dict[str, Any] = {"n": 2, "max_new_tokens": 4, "seed": 3}
QUICK = ("-n", "2", "--max-new-tokens", "4", "--seed", "3", "--threads", "1", "--layers", "last:1")
PLAIN = "{% for each in messages %}<{{ each.role }}>{{ each.content }}{% endfor %}<assistant>"
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
FORGETFUL = (
    "{% for each in messages if each.role != 'system' %}<{{ each.role }}>{{ each.content }}{% endfor %}<assistant>"
)
ASKED = "Please reason step by step, and put your final answer within \\boxed{}."
QUESTION = ROWS["gsm8k"]["question"]


def stored(run: Run, model: Path | str, folder: Path, *options: str, name: str = "gsm8k") -> Store:
    """What collect stores for one row of a benchmark."""
    data = file_of(folder, ROWS[name])
    outcome = run("collect", "-m", model, *QUICK, "--data", data, "--benchmark", name, "--out", folder / "s", *options)
    assert outcome.status == 0, outcome.err
    return Store.open(folder / "s")


def tokens_of(model: Path | str, prompt: Any, **options: Any) -> list[tuple[int, ...]]:
    """What a pick writes for a prompt: candidates of a store are those of a pick of the same prompt."""
    with Selector(model, threads=1) as selector:
        return [tuple(each.token_ids) for each in selector.pick(prompt, **WRITING, **options).candidates]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("template", "form", "messages"),
    [
        (PLAIN, "system", [turn("system", ASKED), turn("user", QUESTION)]),
        (REFUSING, "user", [turn("user", f"{QUESTION}\n\n{ASKED}")]),
        (FORGETFUL, "user", [turn("user", f"{QUESTION}\n\n{ASKED}")]),
    ],
    ids=["plain", "refusing", "forgetful"],
)
def test_a_chat_model_is_asked_by_a_system_prompt_or_in_the_users_turn(
    run: Run, tmp_path: Path, bundle: Callable[[str], Path], template: str, form: str, messages: list[dict[str, str]]
) -> None:
    model = bundle(template)
    store = stored(run, model, tmp_path)
    assert store.info.asked == Asked("gsm8k", 0, ASKED, form, "", 0, None)
    assert [each.token_ids for each in store.candidates] == tokens_of(model, messages)


def test_the_wording_can_be_changed(run: Run, tmp_path: Path, bundle: Callable[[str], Path]) -> None:
    model = bundle(PLAIN)
    store = stored(run, model, tmp_path, "--system", "Answer in verse.")
    said = [turn("system", "Answer in verse."), turn("user", QUESTION)]
    assert [each.token_ids for each in store.candidates] == tokens_of(model, said)
    (tmp_path / "bare").mkdir()
    bare = stored(run, model, tmp_path / "bare", "--system", "", "--task", "text")
    assert [each.token_ids for each in bare.candidates] == tokens_of(model, QUESTION)
    assert bare.info.task == "text"
    # Whichever words ask it, it is the same problem.
    assert {each.prompt_hash for each in bare.candidates} == {each.prompt_hash for each in store.candidates}


@pytest.mark.parametrize("raw", [False, True])
def test_a_model_without_a_chat_template_is_shown_examples_and_stopped(
    run: Run, tmp_path: Path, bundle: Callable[[str], Path], raw: bool
) -> None:
    model: Path | str = bundle(PLAIN) if raw else STORIES
    store = stored(run, model, tmp_path, "--shots", "1", *(["--raw"] if raw else []), name="coinflip")
    asked, sampling = store.info.asked, store.info.sampling
    assert asked is not None
    assert (asked.form, asked.shots, len(asked.examples_sha256)) == ("text", 1, 64)
    assert sampling is not None
    assert sampling["stop"] == ["\nQuestion:"]
    prompt = (
        "Please reason step by step, and put your final answer, yes or no, within \\boxed{}.\n\n"
        "Question: A coin is heads up. Wanda flips the coin. Emil does not flip the coin. Is the coin still heads up?\n"
        "Answer: The coin is flipped by Wanda, once. Once is an odd number of flips, so the coin is tails up. The "
        "final answer is \\boxed{no}.\n\n"
        "Question: A coin is heads up. Ann flips the coin. Is the coin still heads up?\nAnswer:"
    )
    assert [each.token_ids for each in store.candidates] == tokens_of(model, prompt, raw=True, stop="\nQuestion:")


@pytest.mark.parametrize("name", sorted(ROWS))
def test_worked_examples_end_in_an_answer_of_their_task(
    tmp_path: Path, bundle: Callable[[str], Path], name: Any
) -> None:
    asked: list[Any] = []

    def grader(problem: Problem, text: str) -> bool:
        asked.append(problem.prompt)
        return True

    problems = read_problems(file_of(tmp_path, ROWS[name]), benchmark=name, shots=4)
    # The examples do not fit into the small model's context: it is shown the first message and the last.
    model = bundle("{{ messages[0].content }}{{ messages[-1].content }}")
    collect(model, problems, tmp_path / "store", n=1, max_new_tokens=1, grader=grader, threads=1)
    (prompt,) = asked
    system, *turns, last = prompt
    assert (system["role"], last) == ("system", turn("user", str(problems.rows[0].question)))
    assert [each["role"] for each in turns] == ["user", "assistant"] * 4
    assert problems.task is not None
    task = answer_task(problems.task)
    for question, answer in zip(turns[::2], turns[1::2], strict=True):
        boxed = re.search(r"The final answer is \$?\\boxed\{(.*)\}\$?\.$", answer["content"])
        assert boxed is not None
        assert task.correct(answer["content"], boxed[1])
        if name in ("aqua", "hellaswag"):
            assert f"\n({boxed[1]}) " in question["content"]


def test_names_of_benchmarks_are_those_of_the_options() -> None:
    assert set(ROWS) == set(get_args(BenchmarkName)) - {"jsonl"}


def test_arrays_marks_and_line_ends_of_other_systems_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    for indent in (None, 4):
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps([ROWS["svamp"], ROWS["svamp"]], indent=indent).encode() + b"\n\n")
        problems = read_problems(path, benchmark="svamp")
        assert [problem.place for problem in problems.rows] == [f"{path} row 1", f"{path} row 2"]
        assert problems.rows[1].answer == "51.0"
    line = json.dumps(ROWS["aqua"]).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line + b"\r\n\r\n \n")
    assert len(read_problems(path, benchmark="aqua").rows) == 2
    assert read_problems(file_of(tmp_path, {"prompt": "1+1", "answer": 2})).rows[0].answer == "2"
    path.write_text(json.dumps([{"prompt": "1+1", "answer": 2}]), encoding="utf-8")
    assert read_problems(path).rows[0].answer == "2"


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("gsm8k", {"answer": "It is 12."}, "answer is 'It is 12.'; expected a solution that ends in #### and a number"),
        ("gsm8k", {"question": "  "}, "has an empty question; expected a row of gsm8k"),
        ("gsm8k", {"question": 5}, "question is 5; expected a text"),
        ("math", {"answer": None, "solution": "It is 3."}, "solution has no .boxed{}; expected the answer in one"),
        ("math", {"answer": ["3"]}, "answer is .*; expected a text or a number"),
        ("aqua", {"options": ["A)1", "C)2"]}, "options is .*; expected texts such as A.12, lettered from A on"),
        ("aqua", {"options": ["4", "5"]}, "options is .*; expected texts such as A.12, lettered from A on"),
        ("aqua", {"options": "A)4"}, "options is 'A.4'; expected a list of texts"),
        ("aqua", {"correct": "F"}, "correct is 'F'; expected one of the letters A, B, C, D, E"),
        ("hellaswag", {"label": 4}, "label is 4; expected the place of an ending, 0 to 3"),
        ("hellaswag", {"label": ""}, "label is ''; expected the place of an ending, 0 to 3"),
        ("hellaswag", {"endings": ["x"]}, "endings has 1 texts; expected 2 to 10"),
        ("hellaswag", {"ctx": None}, "ctx is None; expected a text"),
        ("coinflip", {"answer": "heads"}, "answer is 'heads'; expected yes or no"),
        ("svamp", {"Answer": True}, "Answer is True; expected a text or a number"),
        ("cruxeval", {"input": None}, "input is None; expected a text"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, name: Any, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=f"data.jsonl line 2:? {reason}") as caught:
        read_problems(file_of(tmp_path, ROWS[name], ROWS[name] | change), benchmark=name)
    assert "\n" not in str(caught.value)


VALUES = st.one_of(st.none(), st.booleans(), st.integers(-1, 5), st.text(max_size=8), st.lists(st.text(max_size=4)))


@given(name=st.sampled_from(sorted(ROWS)), data=st.data())
def test_rows_are_read_or_named_whatever_their_fields_hold(
    tmp_path_factory: pytest.TempPathFactory, name: Any, data: st.DataObject
) -> None:
    fields = sorted(ROWS[name])
    changes = data.draw(st.dictionaries(st.sampled_from(fields), VALUES, max_size=2))
    left_out = data.draw(st.sets(st.sampled_from(fields), max_size=1))
    row = {field: value for field, value in (ROWS[name] | changes).items() if field not in left_out}
    path = file_of(tmp_path_factory.mktemp("data"), ROWS[name], row)
    try:
        problem = read_problems(path, benchmark=name).rows[1]
    except DataError as error:
        assert f"{path} line 2" in str(error)  # noqa: PT017
    else:
        assert isinstance(problem.question, str)
        assert problem.question.strip()
        assert isinstance(problem.answer, str)


@given(rows=st.integers(1, 40), seed=st.integers(0, 2**64 - 1), data=st.data())
def test_parts_of_a_shuffled_file_are_the_file(
    tmp_path_factory: pytest.TempPathFactory, rows: int, seed: int, data: st.DataObject
) -> None:
    path = file_of(
        tmp_path_factory.mktemp("data"), *({"prompt": f"{number}+1", "answer": number + 1} for number in range(rows))
    )
    whole = read_problems(path, shuffle=seed)
    cut = data.draw(st.integers(0, rows - 1))
    first, rest = whole.first(cut).rows if cut else (), read_problems(path, shuffle=seed, skip=cut)
    prompts = [problem.prompt for problem in (*first, *rest.rows)]
    assert prompts == [problem.prompt for problem in whole.rows]
    assert sorted(prompts) == sorted(problem.prompt for problem in read_problems(path).rows)
    assert [problem.number for problem in rest.rows] == list(range(rows - cut))
    assert (rest.sha256 == whole.sha256) == (cut == 0)


def test_the_order_of_a_seed_is_kept_from_version_to_version(tmp_path: Path) -> None:
    path = file_of(tmp_path, *({"prompt": str(number), "answer": 1} for number in range(10)))
    assert "".join(str(problem.prompt) for problem in read_problems(path, shuffle=0).rows) == "6421750893"
    assert "".join(str(problem.prompt) for problem in read_problems(path, shuffle=1, skip=2).rows) == "35074982"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--benchmark", "gsm9k"), "benchmark is 'gsm9k'; expected jsonl, gsm8k, math, aqua"),
        (("--benchmark", "gsm8k", "--shots", "5"), "shots is 5; expected an integer from 0 to 4"),
        (("--benchmark", "gsm8k", "--skip", "2"), "skip is 2; expected fewer than the 2 problems"),
        (("--benchmark", "gsm8k", "--skip", "-1"), "skip is -1; expected an integer"),
        (("--shots", "2", "--task", "number"), "shots is 2; expected none without a benchmark"),
        (("--system", "x", "--task", "number"), "system is 'x'; expected none without a benchmark"),
        ((), "--data needs a --task .*--benchmark"),
    ],
)
def test_bad_values_are_one_line_and_status_2(run: Run, tmp_path: Path, options: tuple[str, ...], reason: str) -> None:
    data = file_of(tmp_path, ROWS["gsm8k"], ROWS["gsm8k"])
    outcome = run("collect", "-m", STORIES, *QUICK, "--data", data, "--out", tmp_path / "s", *options)
    assert (outcome.status, outcome.out) == (2, "")
    assert re.search(reason, outcome.err.splitlines()[-1])


def test_a_name_of_the_hub_says_what_it_needs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    asked = ("--benchmark", "gsm8k", "--shots", "0", "--out", tmp_path / "store")
    outcome = run("collect", "-m", STORIES, *QUICK, "--data", "openai/gsm8k:test", *asked)
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.splitlines()[-1] == (
        "error: openai/gsm8k:test is no file here, and reading it as a data set of the hub needs the package "
        "'datasets', which is not installed; run: pip install \"swift-edge[data]\""
    )
    # What is named as a file is one, though it is not there.
    outcome = run("collect", "-m", STORIES, *QUICK, "--data", "openai/gsm8k.jsonl", *asked)
    assert "openai/gsm8k.jsonl cannot be read" in outcome.err


def test_names_of_the_hub_are_split_and_their_rows_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is out of reach of tests: a stand-in notes what the package is asked for."""
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, configuration: str | None = None, split: str | None = None) -> Any:
        asked.append((name, configuration, split))
        if name == "no/where":
            raise ConnectionError("out of reach\nsays the hub")
        rows = [ROWS["gsm8k"], ROWS["gsm8k"] | {"question": "What is 3 times 4?"}]
        return rows if split else {"train": rows, "test": rows} if name == "openai/gsm8k" else {"test": rows}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    problems = read_problems("openai/gsm8k:test", benchmark="gsm8k", skip=1)
    assert [(each.question, each.answer, each.place) for each in problems.rows] == [
        ("What is 3 times 4?", "12", "openai/gsm8k:test row 2")
    ]
    assert len(read_problems("some/one/algebra", benchmark="gsm8k").rows) == 2
    assert asked == [("openai/gsm8k", "main", "test"), ("some/one", "algebra", None)]
    with pytest.raises(DataError, match="openai/gsm8k has the splits train, test; expected one of them, as openai/gsm"):
        read_problems("openai/gsm8k", benchmark="gsm8k")
    with pytest.raises(DataError, match=r"no/where:x cannot be read by datasets \(ConnectionError: out of reach says"):
        read_problems("no/where:x", benchmark="gsm8k")


def test_parquet_is_read_where_datasets_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    rows = [ROWS["aqua"], ROWS["aqua"] | {"correct": "A"}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "aqua.parquet")
    problems = read_problems(tmp_path / "aqua.parquet", benchmark="aqua")
    assert [problem.answer for problem in problems.rows] == ["C", "A"]


@pytest.mark.slow
def test_a_head_says_what_it_was_shown(
    run: Run, tmp_path: Path, make_store: Callable[..., Store], bundle: Callable[[str], Path]
) -> None:
    pytest.importorskip("scipy")
    asked = Asked("gsm8k", 0, ASKED, "system", "", 0, None)
    stories = open_bundle(STORIES).manifest
    size = {"width": stories.architecture.hidden_size, "fingerprint": stories.fingerprint}
    first = make_store(problems=30, seed=1, asked=asked, **size)
    second = make_store(problems=12, seed=2, asked=replace(asked, skip=30), **size)
    other = make_store(problems=10, seed=3, asked=replace(asked, benchmark="svamp", shots=4, form="text"), **size)
    head = tmp_path / "head.npz"
    outcome = run("fit", first.path, second.path, other.path, "--out", head, "--max-iterations", "3")
    assert outcome.status == 0, outcome.err
    said = "gsm8k, 42 problems, zero-shot; svamp, 10 problems, 4-shot, without chat template"
    assert f"the head is shown {said}" in outcome.err.splitlines()
    model = bundle(PLAIN)
    shutil.copy(head, model / "head.npz")
    shown = [line for line in run("inspect", model).out.splitlines() if line.startswith("shown")]
    assert [line.split(maxsplit=1)[1] for line in shown] == [said]
    few = tmp_path / "few.npz"
    outcome = run("fit", first.path, "--out", few, "--max-iterations", "3", "--problems", "20")
    assert load_head(few).summary["shown"][0]["text"] == "gsm8k, 20 problems, zero-shot"


def test_problems_that_two_stores_share_are_one(make_store: Callable[..., Store]) -> None:
    """As where two parts of a file overlap: else one would be trained on and validated on."""
    pytest.importorskip("scipy")

    def hashed(store: Store, first: int) -> Store:
        shards = [
            replace(
                shard,
                candidates=tuple(replace(each, prompt_hash=f"{first + each.problem:08x}") for each in shard.candidates),
            )
            for shard in store.shards
        ]
        return replace(store, shards=tuple(shards))

    stores = [hashed(make_store(problems=30, seed=1), 0), hashed(make_store(problems=30, seed=2), 20)]
    head = fit_head(stores, FitOptions(max_iterations=2))
    assert sum(head.summary["problems"].values()) == 50
    assert head.summary["candidates"] == 2 * 30 * 6


@pytest.mark.slow
def test_eval_reads_a_benchmark_and_says_so(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data = file_of(tmp_path, ROWS["coinflip"], ROWS["coinflip"] | {"question": "A coin is heads up. Is it?"})
    options = ("-n", "1,2", "--max-new-tokens", "4", "--threads", "1", "--shots", "0", "--shuffle", "5", "--skip", "1")
    outcome = run(
        "eval", "-m", STORIES, *options, "--data", data, "--benchmark", "coinflip", "--out", tmp_path / "results"
    )
    assert outcome.status == 0, outcome.err
    assert "\ncoinflip, 1 problem, zero-shot, without chat template, 2 candidates each" in outcome.out
    results = json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8"))
    assert results["run"]["task"] == "yes-no"
    asked = results["run"]["data"]["asked"]
    assert (asked["benchmark"], asked["shuffle"], asked["skip"]) == ("coinflip", 5, 1)


def test_coin_flips_are_written_after_their_definition(tmp_path: Path) -> None:
    script = ROOT / "tests" / "bench" / "coin_flips.py"
    for name, seed in (("one", "0"), ("two", "0"), ("three", "1")):
        subprocess.run([sys.executable, script, tmp_path / name, "--rows", "40", "--seed", seed], check=True)
    one, two, three = ((tmp_path / name).read_text(encoding="utf-8") for name in ("one", "two", "three"))
    assert one == two != three
    problems = read_problems(tmp_path / "one", benchmark="coinflip").rows
    assert len({problem.question for problem in problems}) == 40
    for problem in problems:
        start, *deeds, end = re.split(r"(?<=[.?]) ", str(problem.question))
        assert (start, end) == ("A coin is heads up.", "Is the coin still heads up?")
        assert len({deed.split()[0] for deed in deeds}) == len(deeds) == 4
        flips = sum(re.fullmatch(r"[A-Z][a-z]+ flips the coin\.", deed) is not None for deed in deeds)
        assert flips + sum(deed.endswith(" does not flip the coin.") for deed in deeds) == 4
        assert problem.answer == ("no" if flips % 2 else "yes")


def test_a_test_does_not_learn_from_its_own_problems(run: Run, tmp_path: Path) -> None:
    """Though its part of the file, and so the hash of its data, is another."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("scipy")
    store = stored(run, STORIES, tmp_path, "--shots", "0", name="coinflip")
    data = file_of(tmp_path, ROWS["coinflip"], ROWS["coinflip"] | {"question": "A coin is heads up. Is it?"})
    options = ("--benchmark", "coinflip", "--shots", "0", "--shuffle", "1", "--max-new-tokens", "4")
    outcome = run("eval", "-m", STORIES, *options, "--data", data, "--train", store.path, "--out", tmp_path / "results")
    assert (outcome.status, outcome.out) == (1, "")
    assert "was collected on 1 of the problems of the test; expected others" in outcome.err.splitlines()[-1]
