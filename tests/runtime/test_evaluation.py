"""A test from end to end: what it reads of a store, what it writes, its ablations, and what it refuses."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swift_edge.answers import answer_task
from swift_edge.bundle import open_bundle
from swift_edge.engine import OpenedModel, TokenStatistics
from swift_edge.errors import (
    DataError,
    EngineClosedError,
    HeadMismatchError,
    InvalidOptionError,
    MissingExtraError,
    StoreError,
)
from swift_edge.evaluation import (
    Ablations,
    Sampled,
    Variant,
    evaluate,
    fit_options_of,
    markdown,
    stored_scores,
    variants,
)
from swift_edge.options import CollectOptions
from swift_edge.scoring import Calibration, Head, save_head
from swift_edge.training import FitOptions, Store, collect

ROOT = Path(__file__).parents[2]
ADDITION = ROOT / "tests" / "data" / "addition-gpt2-h1_l1"
WRITING = CollectOptions(max_new_tokens=4)
CALIBRATION = Calibration(slope=0.8, intercept=-0.2, base_rate=0.4, error=0.1, candidates=80, problems=10)


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty sums, of two kinds."""
    return write_sums(tmp_path_factory.mktemp("data") / "test.jsonl", 40, seed=0)


def write_sums(path: Path, count: int, seed: int) -> Path:
    random = np.random.default_rng(seed)
    with path.open("w") as file:
        for a, b in random.integers(100, 1000, (count, 2)).tolist():
            kind = "large" if a + b > 999 else "small"
            file.write(json.dumps({"prompt": f"{a}{b}", "answer": f"{a + b:04}", "family": kind}) + "\n")
    return path


@pytest.fixture(scope="module")
def head() -> Head:
    manifest = open_bundle(ADDITION).manifest
    inputs = 2 * manifest.architecture.hidden_size + 2
    weight = np.random.default_rng(0).normal(0, 0.05, (2, inputs)).astype(np.float32)
    weight[1, -2] = 1.0
    return Head(
        weight,
        np.zeros(2, np.float32),
        layers=(0, 1),
        token_statistics=("logprob", "entropy"),
        fingerprint=manifest.fingerprint,
        precision="fp32",
        calibration=CALIBRATION,
    )


@pytest.fixture(scope="module")
def head_file(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("head") / "head.npz"
    save_head(path, head)
    return path


@pytest.fixture(scope="module")
def store(problems: Path, head: Head, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four candidates each, with features and the head's live scores."""
    folder = tmp_path_factory.mktemp("store") / "store"
    collect(ADDITION, problems, folder, n=4, task="exact", heads={"default": head}, max_new_tokens=4, threads=1)
    return Store.open(folder)


def test_candidates_of_a_store_are_read_as_they_are(store: Store, head: Head) -> None:
    found = Sampled.read(store, answer_task("exact"), {"default": head})
    assert found.correct.shape == (40, 4)
    for candidate in store.candidates:
        place = candidate.problem, candidate.index
        assert found.correct[place] == candidate.correct
        assert found.n_tokens[place] == candidate.n_tokens
        assert found.mean_logprob[place] == candidate.mean_logprob
        assert found.self_certainty[place] == candidate.self_certainty
        assert found.heads["default"].scores[place] == candidate.scores["default"]
        same = [other for other in store.candidates[candidate.problem * 4 :][:4] if other.answer == candidate.answer]
        assert (found.answers[candidate.problem] == found.answers[place]).sum() == len(same)
    probability = found.heads["default"].probabilities
    assert probability is not None
    assert probability[3, 2] == pytest.approx(CALIBRATION.chance(found.heads["default"].scores[3, 2]))
    np.testing.assert_array_equal(found.heads["default"].votes, probability)


def test_a_candidate_without_an_answer_is_in_no_group(store: Store) -> None:
    candidates = tuple(replace(each, answer=None if each.index == 2 else each.answer) for each in store.candidates)
    found = Sampled.read(replace(store, candidates=candidates), answer_task("exact"), {})
    assert set(found.answers[:, 2]) == {-1}
    assert found.answers[:, :2].min() == 0


def test_a_store_that_is_not_whole_is_refused(store: Store) -> None:
    for broken in (store.candidates[:-4], store.candidates[:-1], store.candidates[1:]):
        with pytest.raises(StoreError, match="expected all problems"):
            Sampled.read(replace(store, candidates=broken), answer_task("exact"), {})


def test_stored_features_give_the_scores_of_the_decode_loop(store: Store, head: Head) -> None:
    live = np.array([candidate.scores["default"] for candidate in store.candidates])
    found = stored_scores(store, head)
    np.testing.assert_allclose(found, live, atol=2e-3)  # float16
    np.testing.assert_allclose(stored_scores(store, head, tokens_at_once=7), found, rtol=1e-9)
    # Reading fewer layers than the store holds.
    partial = replace(head, weight=head.weight[:, head.state_width :], layers=(1,))
    assert np.isfinite(stored_scores(store, partial)).all()
    assert np.abs(stored_scores(store, partial) - found).max() > 0.01


def test_tokens_that_a_head_does_not_count_leave_its_stored_scores_alone(store: Store, head: Head) -> None:
    shard = store.shards[0]
    ended = replace(store, info=replace(store.info, eos_ids=(int(shard.token_ids[0]),)))
    found = stored_scores(ended, replace(head, includes_eos=False))
    kept = shard.token_ids[: shard.starts[1]] != shard.token_ids[0]
    assert 0 < kept.sum() < len(kept)
    states = shard.states[: len(kept)][kept].transpose(1, 0, 2)
    logprob, entropy, _ = shard.statistics[: len(kept)][kept].T.astype(np.float64)
    gates, rewards = head.evaluate(states, TokenStatistics(logprob, entropy))
    assert found[0] == pytest.approx(np.average(rewards, weights=gates))
    np.testing.assert_array_equal(stored_scores(ended, head), stored_scores(store, head))
    everything = replace(store, info=replace(store.info, eos_ids=tuple(np.unique(shard.token_ids).tolist())))
    assert np.isnan(stored_scores(everything, replace(head, includes_eos=False))).all()


def run(problems: Path, out: Path, model: Path | OpenedModel = ADDITION, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"task": "exact", "sizes": (1, 2, 4), "writing": WRITING, "threads": 1, "resamples": 200}
    return evaluate(model, problems, out, **defaults | options)


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in results.items() if name != "timings"}


def columns_agree(text: str) -> None:
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


class TestEvaluate:
    @pytest.fixture(autouse=True)
    def drawing(self) -> None:
        pytest.importorskip("matplotlib")

    @pytest.mark.slow
    def test_everything_is_written_and_the_same_again(self, problems: Path, head_file: Path, tmp_path: Path) -> None:
        heads = {"default": head_file, "twin": head_file}
        results = run(problems, tmp_path / "one", heads=heads)
        names = {"accuracy.png", "accuracy.svg", "calibration.png", "calibration.svg", "candidates"}
        assert {file.name for file in (tmp_path / "one").iterdir()} == {"results.json", "results.md"} | names
        written = (tmp_path / "one" / "results.json").read_text(encoding="utf-8")
        assert json.loads(written) == results
        again = run(problems, tmp_path / "two", heads=heads)
        assert without_times(again) == without_times(results)
        for name in ("accuracy", "calibration"):
            for form, begin in (("png", b"\x89PNG"), ("svg", b"<?xml")):
                data = (tmp_path / "one" / f"{name}.{form}").read_bytes()
                assert data.startswith(begin)
                assert data == (tmp_path / "two" / f"{name}.{form}").read_bytes()
        assert 0.2 < results["accuracy"]["pass@1"]["4"]["value"] < 0.6
        assert results["accuracy"]["default"] == results["accuracy"]["twin"]
        assert set(results["difference"]["default"]["twin"]["4"].values()) == {0.0}
        assert {name: set(each) for name, each in results["families"].items()} == {"family": {"large", "small"}}
        assert results["usage"]["completion_tokens"] == 40 * 4 * 4
        assert results["usage"]["prompt_tokens"] == 40 * 6
        assert results["timings"]["total_s"] > results["timings"]["decode_s"] > 0
        told = results["run"]
        assert told["heads"]["default"]["calibrated"]
        assert told["data"]["name"] == "test.jsonl"
        assert told["sampling"]["temperature"] == 1.0
        assert told["machine"]["cores"] >= 1
        assert len(told["heads"]["twin"]["sha256"]) == len(told["data"]["sha256"]) == 64

    def test_the_tables_hold_the_figures(self, problems: Path, head_file: Path, tmp_path: Path) -> None:
        results = run(problems, tmp_path, heads={"default": head_file})
        text = markdown(results)
        assert (tmp_path / "results.md").read_text(encoding="utf-8") == text
        columns_agree(text)
        for name, figures in results["accuracy"].items():
            line = next(line for line in text.splitlines() if line.startswith(f"| {name} | "))
            for size in ("1", "2", "4"):
                assert f"{figures[size]['value']:z.3f}" in line
        assert "| family | problems | pass@1 |" in text
        assert "| large | 28 | " in text
        assert "+" not in text[text.index("| family |") :].splitlines()[0]
        assert "all subsets of the candidates" in text
        assert "with the mean log-probability" in text

    @pytest.mark.slow
    def test_a_finished_test_is_not_written_again(self, problems: Path, tmp_path: Path) -> None:
        results = run(problems, tmp_path)
        closed = OpenedModel.open(ADDITION, threads=1)
        closed.engine.close()  # writes nothing any more
        with pytest.raises(EngineClosedError):
            run(problems, tmp_path / "other", closed)
        again = run(problems, tmp_path, closed, sizes=(4, 2))
        assert again["accuracy"]["oracle"]["4"] == results["accuracy"]["oracle"]["4"]
        with pytest.raises(StoreError, match="--force"):
            run(problems, tmp_path, sizes=(1, 2))
        with pytest.raises(StoreError, match="seed"):
            run(problems, tmp_path, writing=replace(WRITING, seed=1))

    @pytest.mark.slow
    def test_an_external_file_is_combined_and_named(self, problems: Path, head_file: Path, tmp_path: Path) -> None:
        run(problems, tmp_path / "out", heads={"default": head_file})
        scores = tmp_path / "scores.jsonl"
        rows = [
            {"problem": each.problem, "index": each.index, "score": float(each.correct)}
            for each in Store.open(tmp_path / "out" / "candidates").candidates
        ]
        scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
        results = run(problems, tmp_path / "out", heads={"default": head_file}, external=scores)
        for size, figure in results["accuracy"]["external"].items():
            assert figure["value"] == pytest.approx(results["accuracy"]["oracle"][size]["value"])
        assert results["accuracy"]["default+external scaling"]["4"]["value"] > 0.5
        assert results["run"]["external"]["file"] == str(scores)
        assert "the score of the external file" in markdown(results)

    def test_nothing_but_wrong_candidates_still_give_a_result(self, problems: Path, head: Head, tmp_path: Path) -> None:
        data = tmp_path / "data.jsonl"
        rows = [json.loads(line) | {"answer": "none"} for line in problems.read_text().splitlines()[:5]]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        save_head(tmp_path / "head.npz", head)
        results = run(data, tmp_path / "out", heads={"default": tmp_path / "head.npz"}, sizes=(2,))
        assert {figures["2"]["value"] for figures in results["accuracy"].values()} == {0.0}
        assert results["auroc"]["default"] == {"value": None, "low": None, "high": None}
        assert "all candidates are wrong" in results["notes"][0]

    def test_the_first_problems_only(self, problems: Path, tmp_path: Path) -> None:
        results = run(problems, tmp_path, limit=5)
        assert results["problems"] == 5
        assert results["run"]["data"]["limit"] == 5

    @pytest.mark.slow
    def test_a_head_that_has_seen_the_test_is_named(self, problems: Path, head: Head, tmp_path: Path) -> None:
        sha256 = run(problems, tmp_path / "one")["run"]["data"]["sha256"]
        save_head(tmp_path / "head.npz", replace(head, summary={"data_sha256": [sha256]}))
        results = run(problems, tmp_path / "two", heads={"seen": tmp_path / "head.npz"})
        assert [note for note in results["notes"] if "the head seen was fitted" in note]
        assert "too good" in markdown(results)

    def test_what_cannot_be_is_refused_before_anything_is_written(
        self, problems: Path, head: Head, head_file: Path, tmp_path: Path
    ) -> None:
        save_head(tmp_path / "other.npz", replace(head, fingerprint="ab" * 32))
        (tmp_path / "scores.jsonl").write_text('{"problem": 0, "index": 0, "score": 1}\n')
        for options, error, hint in (
            ({"sizes": (0, 2)}, InvalidOptionError, "at least 1"),
            ({"sizes": ()}, InvalidOptionError, "such as 1,8"),
            ({"task": "sums"}, InvalidOptionError, "sums"),
            ({"heads": {"majority": head_file}}, InvalidOptionError, "majority"),
            ({"heads": {"a vote": head_file}}, InvalidOptionError, "a vote"),
            ({"heads": {"x": tmp_path / "other.npz"}}, HeadMismatchError, "weights"),
            ({"external": tmp_path / "scores.jsonl"}, DataError, "and 158 more"),
            ({"limit": 0}, InvalidOptionError, "limit"),
        ):
            with pytest.raises(error, match=hint):
                run(problems, tmp_path / "out", **options)
            assert not (tmp_path / "out").exists()

    def test_what_could_not_be_written_is_refused_before_anything_is_computed(
        self, problems: Path, tmp_path: Path
    ) -> None:
        rows = [json.loads(line) for line in problems.read_text(encoding="utf-8").splitlines()[:2]]
        rows[1]["family"] = "\ud800"
        data = tmp_path / "data.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with pytest.raises(DataError, match=r"data.jsonl line 2: family has half a character \(U\+D800\)"):
            run(data, tmp_path / "out")
        for score in ("1" * 400, "1e999", "NaN", "1e200", '"1"', "null"):
            scores = tmp_path / "scores.jsonl"
            scores.write_text(f'{{"problem": 0, "index": 0, "score": {score}}}\n', encoding="utf-8")
            with pytest.raises(DataError, match=r"scores.jsonl line 1 has .*a finite score"):
                run(problems, tmp_path / "out", external=scores)
        assert not (tmp_path / "out").exists()

    def test_files_whose_names_are_no_text_leave_results_that_are_whole(self, problems: Path, tmp_path: Path) -> None:
        data = tmp_path / "caf\udce9.jsonl"
        data.write_bytes(problems.read_bytes())
        run(data, tmp_path / "out", limit=3)
        written = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
        assert written["run"]["data"]["name"] == "caf?.jsonl"
        assert (tmp_path / "out" / "results.md").is_file()

    def test_without_matplotlib_nothing_begins(
        self, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingExtraError, match=r"swift-edge\[eval\]"):
            run(problems, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    data = write_sums(folder / "train.jsonl", 30, seed=1)
    collect(ADDITION, data, folder / "store", n=4, task="exact", max_new_tokens=4, threads=1)
    collect(ADDITION, data, folder / "logits", n=4, task="exact", max_new_tokens=4, threads=1, feature="logits")
    return folder


class TestAblations:
    QUICK = FitOptions(weight_decay=0.1, max_iterations=4, prefixes=1)

    @pytest.fixture(autouse=True)
    def packages(self) -> None:
        pytest.importorskip("matplotlib")
        pytest.importorskip("scipy")

    def test_variants_change_one_choice_each(self, train: Path) -> None:
        found = list(variants(Store.open(train / "store"), self.QUICK))
        assert found[0].options == self.QUICK
        by_group: dict[str, list[Variant]] = {}
        for each in found:
            by_group.setdefault(each.group, []).append(each)
        assert [each.options.layers for each in by_group["layers"]] == [(1,), (0, 1)]
        assert {each.options.loss for each in by_group["loss"]} == {"bce", "hinge", "pairwise", "infonca", "nca"}
        assert [each.options.problems for each in by_group["training problems"]] == [4, 8, 15]
        assert not by_group["gate"][0].options.gate
        assert by_group["token statistics"][0].options.token_statistics == ()
        assert len({(each.group, each.name) for each in found}) == len(found)

    @pytest.mark.slow
    def test_every_kind_is_measured_on_the_same_candidates(
        self, problems: Path, head_file: Path, train: Path, tmp_path: Path
    ) -> None:
        chosen = [Variant("gate", "on", self.QUICK), Variant("gate", "off", replace(self.QUICK, gate=False))]
        what = Ablations(
            train / "store",
            train / "logits",
            {"same": ADDITION},
            recalibration_data=train / "train.jsonl",
            recalibration_problems=20,
            options=self.QUICK,
            variants=(*chosen, chosen[0]),
        )
        lines: list[str] = []
        results = run(
            problems, tmp_path, heads={"default": head_file}, ablations=what, report=lines.append, sizes=(1, 4)
        )
        rows = {(row["group"], row["variant"]): row for row in results["ablations"]}
        names = [("", "default"), ("gate", "on"), ("gate", "off"), ("feature", "logits")]
        assert list(rows) == [*names, ("same", "as it is"), ("same", "recalibrated")]
        assert len([line for line in lines if line.startswith("fitting gate")]) == 2
        tested = rows["", "default"]
        assert tested["accuracy"] == results["accuracy"]["default"]["4"]
        assert tested["vote"] == results["accuracy"]["default vote"]["4"]
        assert tested["auroc"] == results["auroc"]["default"]
        assert tested["difference"] is None
        # The same bundle under another name writes the same candidates, and a curve that rises keeps their order.
        same = rows["same", "as it is"]
        assert (same["accuracy"], same["vote"]) == (tested["accuracy"], tested["vote"])
        assert set(same["difference"].values()) == {0.0}
        assert rows["same", "recalibrated"]["accuracy"] == tested["accuracy"]
        assert {row["pass@1"]["value"] for row in rows.values()} == {results["accuracy"]["pass@1"]["4"]["value"]}
        for row in rows.values():
            if row["difference"]:
                expected = row["accuracy"]["value"] - tested["accuracy"]["value"]
                assert row["difference"]["value"] == pytest.approx(expected)
        assert rows["feature", "logits"]["inputs"] == open_bundle(ADDITION).manifest.architecture.vocab_size + 2
        assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == results
        assert "## Ablations at N = 4" in (tmp_path / "results.md").read_text(encoding="utf-8")
        columns_agree((tmp_path / "results.md").read_text(encoding="utf-8"))
        # The features stay when the test is judged again without ablations.
        again = run(problems, tmp_path, heads={"default": head_file}, sizes=(1, 4))
        assert again["accuracy"] == results["accuracy"]
        assert Store.open(tmp_path / "candidates").info.feature == "hidden"

    def test_what_does_not_fit_is_refused_before_anything_is_written(
        self, problems: Path, head_file: Path, train: Path, store: Store, tmp_path: Path
    ) -> None:
        stories = ROOT / "models" / "stories260k"
        for what, error, hint in (
            (Ablations(train / "logits"), StoreError, "expected a store of hidden"),
            (Ablations(None, train / "store"), StoreError, "expected a store of logits"),
            (Ablations(store.path), StoreError, "problems of the test"),
            (Ablations(tmp_path), StoreError, "no store.json"),
            (Ablations(others={"stories": stories}), InvalidOptionError, "other weights"),
            (Ablations(recalibration_data=train / "train.jsonl"), InvalidOptionError, "--other"),
            (Ablations(others={"same": ADDITION}, recalibration_data=problems), InvalidOptionError, "of the test"),
        ):
            with pytest.raises(error, match=hint):
                run(problems, tmp_path / "out", heads={"default": head_file}, ablations=what)
            assert not (tmp_path / "out").exists()
        with pytest.raises(InvalidOptionError, match="no head"):
            run(problems, tmp_path / "out", ablations=Ablations(others={"same": ADDITION}))

    def test_options_are_those_that_the_head_was_fitted_with(self, head: Head) -> None:
        told = {"loss": "hinge", "layers": [0, 1], "token_statistics": ["entropy"], "prefixes": 0}
        options = fit_options_of(replace(head, summary={"options": told}))
        assert options == FitOptions(loss="hinge", layers=(0, 1), token_statistics=("entropy",), prefixes=0)
        for unknown in ({}, {"options": None}, {"options": {"speed": 3}}, {"options": {"loss": "guess"}}):
            assert fit_options_of(replace(head, summary=unknown)) == FitOptions()
        assert fit_options_of(None) == FitOptions()
