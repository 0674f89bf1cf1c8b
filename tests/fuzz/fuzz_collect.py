"""`collect` into a folder that holds something already: a part of a store, its timings, or anything else."""

import functools

import promise
from fixtures import ADDITION
from folders import scratch, unpack, write

from swift_edge.engine import OpenedModel
from swift_edge.training import Store, collect

SUMS = {"task": "number", "n": 2, "max_new_tokens": 3, "limit": 4}


@functools.cache
def opened() -> OpenedModel:
    return OpenedModel.open(ADDITION, threads=1)


def target(data: bytes) -> None:
    files = unpack(data)
    problems = files.pop("problems.jsonl", b'{"prompt": "331970", "answer": 1301}\n')
    with scratch() as folder:
        store = folder / "store"
        store.mkdir()
        write(files, store)
        (folder / "problems.jsonl").write_bytes(problems)
        collected = promise.kept(lambda: collect(opened(), folder / "problems.jsonl", store, **SUMS))
        if collected is not None:
            promise.require(Store.open(store).complete, "collect ended, and its store is not complete")
            promise.check_no_leftovers(folder)
            again = collect(opened(), folder / "problems.jsonl", store, **SUMS)
            promise.require(again.new_tokens == 0, "a complete store is left alone")
