"""One page that shows what a pick was made from: every candidate's tokens, coloured by reward and weighted by gate.

A selection in, HTML out: a single file that loads nothing and runs nothing, so that it can be kept, mailed and opened
anywhere.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from swift_edge.bundle.tokenizer import Tokenizer
from swift_edge.engine.model import Prompt
from swift_edge.errors import InvalidOptionError, OutputExistsError
from swift_edge.results import Candidate, Selection, alike
from swift_edge.scoring.head import RunningScore
from swift_edge.system.files import kind_at, write_whole

STEPS: Final = 4
"""Shades of reward on either side of zero."""
TAIL: Final = 0.02
"""Share of the rewards that may lie beyond the last shade: one odd token does not make all others pale."""

_CURVE = (220, 44)
"""Width and height of a curve in pixels."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token as the page shows it."""

    token_id: int
    """Its id."""
    text: str
    """What the text grew by; empty where it left none, or where its character is completed by a later token."""
    gate: float | None = None
    """Its gate; None where it was not scored."""
    reward: float | None = None
    """Its reward; None where it was not scored."""
    score: float = math.nan
    """The candidate's score up to this token."""
    cut_off: bool = False
    """Whether its text comes with or after a stop string, so that the response ends before it."""


def explain_page(prompt: Prompt, selection: Selection, tokenizer: Tokenizer) -> str:
    """Write the page of a selection.

    Gates and rewards are shown where a head scored; a selection by a signal has none, and the page says so.
    """
    tokens = {candidate.index: tokens_of(candidate, tokenizer) for candidate in selection.ranked}
    ranks = {candidate.index: rank for rank, candidate in enumerate(selection.ranked, start=1)}
    scale = _Scale.of(tokens.values())
    title = f"Candidate {_place(selection.best, selection)} is picked"
    lines = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><main><h1>{title}</h1>",
        "<h2>Question</h2>",
        *_question(prompt),
        "<h2>Answer</h2>",
        f'<div class="plain answer" dir="auto">{_plain(selection.best.text)}</div>',
        *_abstained(selection),
        *_answers(selection),
        f"<h2>Candidates</h2><p>{_plain(_ranked_by(selection))}</p>",
        *_legend(scale),
        *(_folded(group, tokens, ranks, scale, selection) for group in alike(selection.ranked)),
        *(f'<p class="note">Warning: {_plain(warning)}</p>' for warning in selection.warnings),
        f'<p class="note">{_plain(_facts(selection))}</p>',
        "</main></body></html>\n",
    ]
    return "\n".join(lines)


def tokens_of(candidate: Candidate, tokenizer: Tokenizer) -> list[Token]:
    """The tokens of a candidate with their text, gate, reward and running score.

    All texts joined are the text of the candidate, and after it what a stop string cut off: that was scored, too.
    """
    stream = tokenizer.stream()
    texts = [stream.push(token_id) for token_id in candidate.token_ids]
    texts[-1] += stream.finish()
    # The last token may not have been fed; fewer scores than that mean a head that does not count the EOS ids.
    scores = _scores(candidate)
    fed = candidate.n_tokens - candidate.unscored_tokens
    uncounted = tokenizer.eos_ids if len(scores) < fed else ()
    remaining, running, length = iter(scores), RunningScore(), 0
    tokens = []
    for token_id, text in zip(candidate.token_ids, texts, strict=True):
        gate, reward = (None, None) if token_id in uncounted else next(remaining, (None, None))
        if gate is not None and reward is not None:
            running.add(gate, reward)
        length += len(text)
        cut_off = candidate.finish_reason == "stop" and bool(text) and length > len(candidate.text)
        tokens.append(Token(token_id, text, gate, reward, running.score, cut_off))
    return tokens


def require_page_path(path: Path, *, force: bool = False) -> None:
    """Find out before anything is computed whether a page can be written: a device or a pipe takes it, too.

    Raises `InvalidOptionError` for a place that takes none, and `OutputExistsError` for a file unless `force` is set.
    """
    there = kind_at(path)
    if there == "other" or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "is neither a file nor a pipe"
        description = what if there == "other" else f"lies in {path.parent}, which is no folder"
        raise InvalidOptionError(f"the page {path} {description}; expected a file to write in a folder that exists")
    if there == "file" and not force:
        raise OutputExistsError(f"the page {path} exists already; name another file, or replace it with --force")


def write_page(path: Path, page: str) -> None:
    """Write a page whole, or leave what was there; into a device or a pipe, as it comes."""
    write_whole(path, page.encode())


@dataclass(frozen=True, slots=True)
class _Scale:
    """What the strongest colour, the thickest line and the ends of the curves stand for: the same in all candidates."""

    reward: float
    """Distance from zero of the last shade."""
    gate: float
    """The greatest gate."""
    low: float
    """Score at the lower end of the curves."""
    high: float
    """Score at their upper end."""
    longest: int
    """Tokens along the curves."""

    @classmethod
    def of(cls, candidates: Collection[Sequence[Token]]) -> "_Scale | None":
        """Fit the scale to what there is; None without a scored token."""
        scored = [token for tokens in candidates for token in tokens if token.reward is not None]
        if not scored:
            return None
        reward = _quantile([abs(token.reward or 0.0) for token in scored], 1 - TAIL)
        low, high = (_quantile([token.score for token in scored], share) for share in (TAIL, 1 - TAIL))
        gate = max(token.gate or 0.0 for token in scored)
        return cls(reward or 1.0, gate or 1.0, low, high, max(map(len, candidates)))

    def shade(self, reward: float) -> int:
        """-STEPS to STEPS; 0 is about zero."""
        return max(-STEPS, min(STEPS, round(STEPS * reward / self.reward)))

    def height(self, score: float) -> float:
        """Place of a score between the lower end of the curves, 0, and the upper one, 1."""
        return min(1.0, max(0.0, (score - self.low) / (self.high - self.low))) if self.high > self.low else 0.5


def _scores(candidate: Candidate) -> list[tuple[float, float]]:
    """Gate and reward of every token that was scored."""
    if candidate.gates is None or candidate.rewards is None:
        return []
    return list(zip(candidate.gates.tolist(), candidate.rewards.tolist(), strict=True))


def _question(prompt: Prompt) -> Iterator[str]:
    if isinstance(prompt, str):
        yield f'<div class="plain" dir="auto">{_plain(prompt)}</div>'
        return
    for message in prompt:
        yield f'<div class="plain" dir="auto"><b>{_plain(message["role"])}</b>\n{_plain(message["content"])}</div>'


def _ranked_by(selection: Selection) -> str:
    if selection.signal is None:
        return f"Scored by {selection.head}, picked by the strategy {selection.strategy}."
    return (
        f"Ranked by {selection.signal}, a signal that needs no head: tokens have neither reward nor gate, "
        "so none of them is coloured."
    )


def _legend(scale: _Scale | None) -> Iterator[str]:
    if scale is None:
        return
    shades = "".join(f'<span class="t {_shade(step)}">&nbsp;</span>' for step in range(-STEPS, STEPS + 1))
    lines = " ".join(f'<span class="t" style="--g:{share}">{share * scale.gate:.2g}</span>' for share in (0.1, 0.5, 1))
    yield (
        f'<div class="legend"><span>reward {-scale.reward:+.2g} {shades} {scale.reward:+.2g}</span>'
        f"<span>gate {lines}</span></div>"
        '<p class="note">A token is coloured by its reward, and its line is as thick as its gate. The score is the '
        "mean of the rewards, weighted by the gates; the curve shows it after each token. Point at a token for its "
        "numbers.</p>"
    )


def _place(candidate: Candidate, selection: Selection) -> str:
    return f"{candidate.number} of {len(selection.candidates)}"


def _abstained(selection: Selection) -> Iterator[str]:
    if selection.abstained:
        yield '<p class="note">Abstained: the pick is not known to be as likely right as was asked for.</p>'


def _answers(selection: Selection) -> Iterator[str]:
    """What the candidates answer, with the candidates that say so and how likely it is to be right."""
    if not selection.answers:
        return
    whole = sum(each.is_whole for each in selection.candidates)
    yield "<h2>What the candidates answer</h2><ul>"
    for answer in selection.answers:
        names = ", ".join(str(selection.candidates[index].number) for index in answer.candidates)
        chance = "" if answer.posterior is None else f", P(right) {answer.posterior:.2f}"
        badge = ' <span class="badge">picked</span>' if selection.best.index in answer.candidates else ""
        yield (
            f'<li><span class="said" dir="auto">{_plain(answer.text)}</span>{badge}: {answer.support} of {whole} whole '
            f"{'candidate' if whole == 1 else 'candidates'}{chance} ({names})</li>"
        )
    yield "</ul>"


def _folded(
    group: Sequence[Candidate],
    tokens: Mapping[int, Sequence[Token]],
    ranks: Mapping[int, int],
    scale: _Scale | None,
    selection: Selection,
) -> str:
    """Candidates that say the same: the best of them, and the others behind a line that opens."""
    first, *others = (_candidate(each, tokens[each.index], ranks[each.index], scale, selection) for each in group)
    if not others:
        return first
    numbers = ", ".join(str(each.number) for each in group[1:])
    return (
        f"{first}<details><summary>x{len(group)}: candidate{'s' if others[1:] else ''} {numbers} "
        f"sa{'y' if others[1:] else 'ys'} the same</summary>{''.join(others)}</details>"
    )


def _candidate(
    candidate: Candidate, tokens: Sequence[Token], rank: int, scale: _Scale | None, selection: Selection
) -> str:
    picked = candidate.index == selection.best.index
    facts = [f"score {candidate.score:.4f}"]
    if picked and selection.p_correct is not None:
        facts.append(f"P(correct) {selection.p_correct:.2f}")
    elif picked and selection.signal is None and candidate.is_foreign:
        facts.append("P(correct) unknown, foreign to the head")
    facts += [f"{candidate.n_tokens} tokens", candidate.dropped_because or candidate.finish_reason]
    if scale is not None and candidate.unscored_tokens:
        facts.append("context full, last token unscored")
    badge = ' <span class="badge">picked</span>' if picked else ""
    marks = "".join(_token(token, scale) for token in tokens)
    return (
        f'<section class="{"candidate picked" if picked else "candidate"}"><header><div><b>{rank}. candidate '
        f"{_place(candidate, selection)}</b>{badge}<br>{_plain(', '.join(facts))}</div>{_curve(tokens, scale)}</header>"
        f'<p class="{"text scored" if scale else "text"}" dir="auto">{marks}</p></section>'
    )


def _token(token: Token, scale: _Scale | None) -> str:
    facts, classes, style = f"token {token.token_id}", "t", ""
    if scale is not None and token.gate is not None and token.reward is not None:
        facts += f", gate {token.gate:.3g}, reward {token.reward:+.3g}, score so far {token.score:.4f}"
        classes += f" {_shade(scale.shade(token.reward))}"
        style = f' style="--g:{token.gate / scale.gate:.2g}"'
    elif scale is not None:
        facts += ", not scored"
    if token.cut_off:
        facts, classes = f"{facts}, cut off by a stop string", f"{classes} cut"
    # Marks are drawn by the style sheet, so that text that is copied is the text.
    classes += "" if token.text else " empty"
    return f'<span class="{classes}"{style} title="{facts}">{_visible(token.text)}</span>'


def _curve(tokens: Sequence[Token], scale: _Scale | None) -> str:
    """The running score as a small drawing, with a line at zero where that is in sight."""
    places = [(place, token.score) for place, token in enumerate(tokens, 1) if token.reward is not None]
    if scale is None or not places:
        return ""
    width, height = _CURVE

    def point(place: int, score: float) -> tuple[float, float]:
        return 3 + (width - 6) * place / scale.longest, 3 + (height - 6) * (1 - scale.height(score))

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in itertools.starmap(point, places))
    x, y = point(*places[-1])
    zero = point(0, 0.0)[1]
    axis = (
        f'<line class="zero" x1="0" x2="{width}" y1="{zero:.1f}" y2="{zero:.1f}"/>'
        if scale.low < 0 < scale.high
        else ""
    )
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="score after each token, at last {places[-1][1]:.4f}">{axis}'
        f'<polyline points="{line}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/></svg>'
    )


def _facts(selection: Selection) -> str:
    usage, timings = selection.usage, selection.timings
    seed = "" if selection.seed is None else f"seed {selection.seed}; "
    return (
        f"Bundle {selection.bundle}; {seed}{usage.prompt_tokens} prompt tokens and {usage.completion_tokens} response "
        f"tokens; {timings.total_s:.2f} s, of which {timings.head_s:.3f} s for the head."
    )


def _plain(text: str) -> str:
    """Escape a text."""
    return escape(text.translate(_PICTURES)).replace("\r", "&#13;")


def _visible(text: str) -> str:
    """Escape the text of a token, and mark blanks that nobody would see; the marks are no part of the text."""
    marks = _MARKS | ({" ": _BLANK} if text.isspace() else {})
    return "".join(
        f'<span class="mark" data-mark="{marks[char]}">{_plain(char)}</span>' if char in marks else _plain(char)
        for char in text
    )


def _shade(step: int) -> str:
    return f"{'n' if step < 0 else 'p'}{abs(step)}"


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


_MARKS: Final = {"\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d"}
"""What makes line ends and tabs visible, by the character."""
_BLANK: Final = "\u00b7"
"""What makes other blanks visible, in a token that has nothing else."""
_PICTURES: Final = {code: 0x2400 + code for code in range(32) if chr(code) not in _MARKS} | {127: 0x2421}
"""HTML has no place for control characters: their pictures stand for them."""

# Whatever the texts hold, nothing is loaded and nothing is run.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"

# Colours are blue and orange-red, which nobody takes for each other, on paper and on a dark screen.
_STYLE: Final = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1d21; --soft: #5b6068; --rule: #d5d8dd; --accent: #1f5f99;
  --p1: #dceaf4; --p2: #b6d5ea; --p3: #8cbfe0; --p4: #67a9cf;
  --n1: #fde3d8; --n2: #f9c4ab; --n3: #f4a582; --n4: #ef8a62 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171b; --ink: #eceef1; --soft: #a3a9b2; --rule: #363b43; --accent: #7db8e8;
  --p1: #1d2c3a; --p2: #1f415c; --p3: #22577f; --p4: #266da2;
  --n1: #3b2620; --n2: #5b3226; --n3: #7e3f2c; --n4: #a14d34 } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem }
h1 { font-size: 1.4rem; margin: 0 0 1rem } h2 { font-size: 1.05rem; margin: 1.5rem 0 .4rem }
.plain { white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid var(--rule); padding: .1rem .8rem }
.answer { border-color: var(--accent) }
.note { color: var(--soft); font-size: .85rem }
.legend { display: flex; flex-wrap: wrap; gap: .4rem 2rem; font-size: .85rem }
.candidate { border: 1px solid var(--rule); border-radius: 6px; padding: .7rem 1rem; margin: .8rem 0 }
.picked { border: 2px solid var(--accent) }
.badge { background: var(--accent); color: var(--paper); border-radius: 4px; padding: 0 .4rem; font-size: .8rem }
header { display: flex; justify-content: space-between; gap: 1rem; font-size: .9rem }
.text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 2.1; margin: .5rem 0 0 }
.t { padding: 1px 0 6px; box-shadow: inset 0 calc(var(--g, 0) * -5px) 0 var(--ink);
  -webkit-box-decoration-break: clone; box-decoration-break: clone }
.legend .t { padding: 1px .3rem 6px; margin: 0 1px }
.scored .t { margin-right: 1px } .cut { text-decoration: line-through; opacity: .6 }
.t:hover { outline: 1px solid var(--ink) }
.p1 { background: var(--p1) } .p2 { background: var(--p2) } .p3 { background: var(--p3) } .p4 { background: var(--p4) }
.n1 { background: var(--n1) } .n2 { background: var(--n2) } .n3 { background: var(--n3) } .n4 { background: var(--n4) }
.mark::before { content: attr(data-mark); opacity: .6 } .empty::before { content: "\\25AA"; opacity: .6 }
details { margin: -.4rem 0 .8rem 1rem } summary { color: var(--soft); font-size: .85rem; cursor: pointer }
.said { white-space: pre-wrap; overflow-wrap: anywhere; font-weight: 600 }
svg { flex: none; overflow: visible } polyline { fill: none; stroke: var(--accent); stroke-width: 1.5 }
circle { fill: var(--accent) } .zero { stroke: var(--rule) }
"""
