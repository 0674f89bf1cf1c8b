"""Prompts, options and given answers of picks, on a real model that stays open: every pick ends in a pick or a line."""

import functools
import json

import promise
from fixtures import STORIES
from folders import unpack

from swift_edge import PickOptions, Selection, Selector

LONG_RUN = {"n": 16, "max_n": 16, "max_new_tokens": 8, "budget_tokens": 64}
"""A sound option can ask for an hour's work: from 1 over this up to `ABSURD`, it is taken down to this."""
ABSURD = 10**6


@functools.cache
def selector() -> Selector:
    return Selector(STORIES, threads=1)


def target(data: bytes) -> None:
    for name, content in unpack(data).items():
        try:
            request = json.loads(content)
        except (ValueError, RecursionError):
            continue
        if not isinstance(request, dict):
            continue
        prompt, texts, options = (request.get(key) for key in ("prompt", "texts", "options"))
        if name == "score.json":
            selection = promise.kept(lambda p=prompt, t=texts, r=request: selector().score(p, t, raw=r.get("raw")))
        elif name == "many.json":
            _pick_many(prompt, options)
            continue
        else:
            known = promise.kept(lambda o=options: PickOptions.from_dict(_shortened(o)))
            if known is None:
                continue
            selection = promise.kept(lambda p=prompt, k=known: selector().pick(p, options=k))
        if selection is not None:
            _check(selection)


def _pick_many(prompts: object, options: object) -> None:
    if not isinstance(prompts, list):
        return
    known = promise.kept(lambda: PickOptions.from_dict(_shortened(options)))
    if known is not None:
        for selection in promise.kept(lambda: list(selector().pick_many(prompts[:4], options=known))) or ():
            _check(selection)


def _shortened(options: object) -> object:
    if not isinstance(options, dict):
        return options
    return {"max_new_tokens": 4, "n": 2} | {
        name: LONG_RUN[name] if name in LONG_RUN and type(value) is int and LONG_RUN[name] < value < ABSURD else value
        for name, value in options.items()
    }


def _check(selection: Selection) -> None:
    document = json.loads(json.dumps(selection.to_dict(), allow_nan=False))
    promise.require(document["best"] == selection.best.index, "the document names another candidate")
    promise.require(
        sorted(document["ranked"]) == list(range(len(document["candidates"]))), "the ranking is no permutation"
    )
    chance = selection.p_correct
    promise.require(chance is None or 0 <= chance <= 1, f"P(correct) is {chance}")
