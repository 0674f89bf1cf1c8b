"""A store of candidates: opened, gone on with, fitted to and recalibrated on."""

import shutil
import warnings

import promise
from fixtures import FIT
from folders import scratch, unpack, write

from swift_edge.scoring import save_head
from swift_edge.training import Store, StoreWriter, fit_head, read_info, recalibrate


def target(data: bytes) -> None:
    with scratch() as folder:
        path = folder / "store"
        path.mkdir()
        write(unpack(data), path)
        store = promise.kept(lambda: Store.open(path))
        if store is not None and sum(map(len, (shard.positions for shard in store.shards))) < 5000:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of overflows in numbers that an input brought
                head = promise.kept(lambda: fit_head(store, FIT))
                if head is not None:
                    promise.kept(lambda: save_head(folder / "head.npz", head))
                    promise.kept(lambda: recalibrate(head, store))
        info = promise.kept(lambda: read_info(path))
        if info is not None:
            shutil.copytree(path, folder / "copy")
            promise.kept(lambda: _go_on(folder / "copy", info))
        promise.check_no_leftovers(folder) if not any(b"partial" in name.encode() for name in unpack(data)) else None


def _go_on(path, info) -> None:  # type: ignore[no-untyped-def]
    with StoreWriter(path, info) as writer:
        writer.close()
