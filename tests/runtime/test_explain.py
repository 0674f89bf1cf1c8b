"""The page of a pick: complete, harmless whatever the texts hold, and true to the numbers of the selection."""

import itertools
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swift_edge import Selection, Selector
from swift_edge.bundle import Tokenizer, open_bundle
from swift_edge.cli import selecting
from swift_edge.errors import InvalidOptionError
from swift_edge.explain import explain_page, require_page_path, tokens_of, write_page
from swift_edge.scoring import Head

ROOT = Path(__file__).parents[2]
SMALL_STEPS = Path(__file__).parents[2] / "models" / "small-steps"
STORIES = str(ROOT / "models" / "stories260k")
ADDITION = str(ROOT / "tests" / "data" / "addition-gpt2-h1_l1")
HOSTILE = "<script>alert(\"1\")</script>\n\t&amp; caf\u00e9 \u2615  'x' --> \x00\r\n"


class Page(HTMLParser):
    """What a browser makes of a page: the elements, and per candidate the tokens with their texts and titles."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.page = page
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.candidates: list[list[tuple[str, str, str]]] = []
        self.text = ""
        self._depth = 0
        self.feed(page)
        self.close()
        assert self._depth == 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += attrs
        values = dict(attrs)
        if tag == "p" and (values.get("class") or "").startswith("text"):
            self.candidates.append([])
        if tag == "span" and self.candidates and self._depth == 0 and "title" in values:
            self.candidates[-1].append((values["class"] or "", values["title"] or "", ""))
            self._depth = 1
        elif tag == "span" and self._depth:
            self._depth += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "span" and self._depth:
            self._depth -= 1

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._depth:
            classes, title, text = self.candidates[-1][-1]
            self.candidates[-1][-1] = classes, title, text + data


@pytest.fixture(scope="module")
def stories(stories_head: Head) -> Selector:
    return Selector(STORIES, head=stories_head, threads=1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(open_bundle(STORIES))


@pytest.fixture(scope="module")
def selection(stories: Selector) -> Selection:
    return stories.pick("Once upon a time", n=4, max_new_tokens=40, seed=3)


def pictured(text: str) -> str:
    """A text as it is shown: HTML has no NUL."""
    return text.replace("\0", "\u2400")


def test_tokens_join_to_the_text_in_the_order_of_the_ranking(selection: Selection, tokenizer: Tokenizer) -> None:
    page = Page(explain_page("Once upon a time", selection, tokenizer))
    assert len(page.candidates) == 4
    for candidate, tokens in zip(selection.ranked, page.candidates, strict=True):
        assert "".join(text for _, _, text in tokens) == candidate.text
        assert len(tokens) == candidate.n_tokens
        assert f"candidate {candidate.index + 1} of 4" in page.text
        assert f"score {candidate.score:.4f}" in page.text
    assert page.elements.count("polyline") == 4
    assert page.page.count('class="badge"') == 1
    assert page.page.index('class="badge"') < page.page.index("2. candidate")


def test_titles_hold_the_numbers_and_the_last_score_is_the_candidates(
    selection: Selection, tokenizer: Tokenizer
) -> None:
    page = Page(explain_page("Once upon a time", selection, tokenizer))
    for candidate, tokens in zip(selection.ranked, page.candidates, strict=True):
        assert candidate.gates is not None
        assert candidate.rewards is not None
        for place, (_, title, _) in enumerate(tokens):
            assert title.startswith(f"token {candidate.token_ids[place]}, ")
            assert f"gate {candidate.gates[place]:.3g}, reward {candidate.rewards[place]:+.3g}" in title
        assert tokens[-1][1].endswith(f"score so far {candidate.score:.4f}")


def test_colours_follow_the_sign_and_the_size_of_the_reward(selection: Selection, tokenizer: Tokenizer) -> None:
    page = Page(explain_page("Once upon a time", selection, tokenizer))
    seen: dict[int, list[float]] = {}
    for candidate, tokens in zip(selection.ranked, page.candidates, strict=True):
        assert candidate.rewards is not None
        for reward, (classes, _, _) in zip(candidate.rewards, tokens, strict=True):
            shade = re.search(r"\b([pn])(\d)\b", classes)
            assert shade is not None
            seen.setdefault(int(shade[2]) * (1 if shade[1] == "p" else -1), []).append(float(reward))
    shades = sorted(seen)
    assert max(map(abs, shades)) == 4
    for lower, upper in itertools.pairwise(shades):
        assert max(seen[lower]) <= min(seen[upper])
    assert max(seen[-1]) < 0 < min(seen[1])


def test_lines_are_as_thick_as_gates(selection: Selection, tokenizer: Tokenizer) -> None:
    page = explain_page("Once upon a time", selection, tokenizer)
    thickness = [float(each) for each in re.findall(r'style="--g:([^"]+)" title=', page)]
    gates = np.concatenate([candidate.gates for candidate in selection.ranked if candidate.gates is not None])
    np.testing.assert_allclose(thickness, gates / gates.max(), rtol=0.06)


def test_hostile_texts_stay_text(stories: Selector, tokenizer: Tokenizer) -> None:
    ranked = stories.score("Once", [HOSTILE, HOSTILE * 2])
    ranked = replace(ranked, bundle='<img src="x">', warnings=("<i>",), head="</style><script>")
    page = Page(explain_page(HOSTILE, ranked, tokenizer))
    assert not {"script", "img", "i", "link"} & set(page.elements)
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    for candidate, tokens in zip(ranked.ranked, page.candidates, strict=True):
        assert "".join(text for _, _, text in tokens) == pictured(candidate.text)
    assert pictured(HOSTILE) in page.text


def test_blanks_can_be_seen(stories: Selector, tokenizer: Tokenizer) -> None:
    page = explain_page("Once", stories.score("Once", ["one\n\n\ttwo   three"]), tokenizer)
    assert page.count('data-mark="\u21b5">\n</span>') == 2
    assert page.count('data-mark="\u21e5">\t</span>') == 1
    assert page.count('data-mark="\u00b7"> </span>') >= 1


def test_a_character_of_several_tokens_comes_with_the_last_of_them(stories: Selector, tokenizer: Tokenizer) -> None:
    (tokens,) = Page(explain_page("Once", stories.score("Once", ["a\u2615"]), tokenizer)).candidates
    written = [text for _, _, text in tokens]
    assert "\u2615" in written
    assert written.count("") >= 2
    assert [("empty" in classes) for classes, _, _ in tokens] == [not text for text in written]


def test_a_pick_by_a_signal_has_no_colours_and_says_so(tokenizer: Tokenizer) -> None:
    picked = Selector(STORIES, threads=1).pick("Once", n=2, max_new_tokens=8, signal="self_certainty")
    page = Page(explain_page("Once", picked, tokenizer))
    assert "self_certainty" in page.text
    assert "none of them is coloured" in page.text
    assert {classes for tokens in page.candidates for classes, _, _ in tokens} == {"t"}
    assert "svg" not in page.elements
    assert "reward" not in page.text.replace("neither reward nor gate", "")


def test_a_token_that_was_not_fed_is_not_coloured() -> None:
    manifest = open_bundle(ADDITION).manifest
    width = manifest.architecture.hidden_size
    weight = np.random.default_rng(0).normal(size=(2, width)).astype(np.float32)
    head = Head(weight, np.zeros(2, np.float32), layers=(1,), fingerprint=manifest.fingerprint)
    picked = Selector(ADDITION, head=head, threads=1).pick("331970", n=2, max_new_tokens=4)
    page = Page(explain_page("331970", picked, Tokenizer(open_bundle(ADDITION))))
    for tokens in page.candidates:
        assert [title.endswith("not scored") for _, title, _ in tokens] == [False, False, False, True]
    assert page.text.count("last token unscored") == 2


def test_a_head_that_does_not_count_the_end_leaves_it_out(stories_head: Head, tokenizer: Tokenizer) -> None:
    head = replace(stories_head, includes_eos=False)
    eos = tokenizer.end_of_turn
    assert eos is not None
    picked = Selector(STORIES, head=head, threads=1).pick("Once upon a time", n=1, max_new_tokens=500, seed=2)
    (candidate,) = picked.candidates
    if candidate.token_ids[-1] != eos:
        # The end may not come by itself: then it comes from outside, in the middle for once.
        text = tokenizer.decode_response(candidate.token_ids[:5])
        candidate = Selector(STORIES, head=head, threads=1).score("Once upon a time", [text]).best
        candidate = replace(candidate, token_ids=(*candidate.token_ids[:2], eos, *candidate.token_ids[2:]))
    tokens = tokens_of(candidate, tokenizer)
    assert [token.reward is None for token in tokens] == [token.token_id == eos for token in tokens]
    assert any(token.reward is None for token in tokens)
    assert tokens[-1].score == candidate.score


def test_what_a_stop_string_cut_off_is_marked(stories: Selector, tokenizer: Tokenizer) -> None:
    picked = stories.pick("Once upon a time", n=1, max_new_tokens=60, stop=["."], seed=3)
    assert picked.best.finish_reason == "stop"
    tokens = tokens_of(picked.best, tokenizer)
    assert [token.cut_off for token in tokens] == [False] * (len(tokens) - 1) + [True]
    assert "".join(token.text for token in tokens if not token.cut_off) == picked.best.text
    assert "cut off by a stop string" in explain_page("Once", picked, tokenizer)


def test_messages_are_a_question_too(selection: Selection, tokenizer: Tokenizer) -> None:
    page = Page(explain_page([{"role": "user", "content": "a < b?"}], selection, tokenizer))
    assert "user\na < b?" in page.text


def test_a_probability_is_shown_with_the_pick(selection: Selection, tokenizer: Tokenizer) -> None:
    assert "P(correct)" not in explain_page("Once", selection, tokenizer)
    assert explain_page("Once", replace(selection, p_correct=0.625), tokenizer).count("P(correct) 0.62") == 1


def test_a_page_is_written_whole_and_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, "one")
    write_page(path, "two \u2615\n")
    assert path.read_bytes() == "two \u2615\n".encode()
    with pytest.raises(UnicodeEncodeError):
        write_page(path, "\ud800")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    assert path.read_bytes() == "two \u2615\n".encode()


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    require_page_path(tmp_path / "page.html")
    with pytest.raises(InvalidOptionError, match="which is no folder"):
        require_page_path(tmp_path / "absent" / "page.html")
    with pytest.raises(InvalidOptionError, match="is a folder"):
        require_page_path(tmp_path)


@pytest.mark.parametrize(
    "arguments", [("pick", "Once upon a time", "-n", "2", "--max-new-tokens", "6"), ("score", "Once", " a dog", " xq")]
)
def test_both_commands_write_a_page(run: Callable[..., Any], arguments: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    command = [*arguments, "-m", STORIES, "--threads", "1"]
    plain = run(*command)
    outcome = run(*command, "--explain", path)
    assert (outcome.status, outcome.out) == (0, plain.out)
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.candidates) == 2
    assert outcome.out.removesuffix("\n") in page.text
    refused = run(*command, "--explain", tmp_path / "absent" / "page.html")
    assert (refused.status, refused.out) == (2, "")
    assert refused.err.startswith("error: the page ")
    assert refused.err.count("\n") == 1


def test_a_page_is_written_by_the_tokenizer_that_was_checked(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its file was read a second time after the pick, whatever it held by then."""
    bundle = tmp_path / "bundle"
    shutil.copytree(STORIES, bundle)
    command = ("pick", "Once upon a time", "-n", "2", "--max-new-tokens", "6", "-m", bundle, "--threads", "1")
    assert run(*command, "--explain", tmp_path / "one.html").status == 0
    show = selecting.show

    def changing(*arguments: Any) -> None:
        show(*arguments)
        (bundle / "tokenizer.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(selecting, "show", changing)
    outcome = run(*command, "--explain", tmp_path / "another.html")
    assert outcome.status == 0, outcome.err
    pages = [Page((tmp_path / name).read_text(encoding="utf-8")) for name in ("one.html", "another.html")]
    assert pages[0].candidates == pages[1].candidates


QUESTION = (
    "One day Theo owns 29 carrots. Theo has 4 carrots more than Odette. As it happens, Odette got 8 fewer carrots than "
    "Teresa. What number of carrots does Teresa have?"
)


def test_candidates_are_counted_from_one_answers_are_listed_and_equal_ones_fold() -> None:
    solver = Selector(SMALL_STEPS, threads=1)
    selection = solver.pick(QUESTION, n=8, max_new_tokens=96)
    page = Page(explain_page(QUESTION, selection, Tokenizer(solver.bundle)))
    assert f"<h1>Candidate {selection.best.index + 1} of 8 is picked</h1>" in page.page
    for answer in selection.answers:
        numbers = ", ".join(str(index + 1) for index in answer.candidates)
        listed = f"{answer.support} of 8 whole candidates, P(right) {answer.posterior:.2f} ({numbers})"
        assert listed in page.page
    texts = Counter(each.text for each in selection.candidates)
    assert page.elements.count("details") == sum(count > 1 for count in texts.values()) > 0
    # Nothing is lost: those behind a line that opens are there in full.
    assert len(page.candidates) == 8
    shown = page.page
    while "<details>" in shown:
        shown = shown[: shown.index("<details>")] + shown[shown.index("</details>") + len("</details>") :]
    assert shown.count('<section class="candidate') == len(texts)
    for text, count in texts.items():
        _, *others = (each.index + 1 for each in selection.ranked if each.text == text)
        if others:
            say = "candidates {} say" if count > 2 else "candidate {} says"
            assert f"x{count}: {say.format(', '.join(map(str, others)))} the same" in page.page


def test_the_page_says_that_it_abstained() -> None:
    solver = Selector(SMALL_STEPS, threads=1)
    selection = solver.pick(QUESTION, n=2, max_new_tokens=12, min_confidence=0.9)
    page = explain_page(QUESTION, selection, Tokenizer(solver.bundle))
    assert "Abstained: " in page
    assert "all 2 candidates were cut off" in page
