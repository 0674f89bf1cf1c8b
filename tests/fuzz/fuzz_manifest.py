"""A bundle's folder, opened and shown: the manifest, the names and hashes in it, a template, a head beside it."""

import shutil

import promise
from folders import scratch, unpack, write

from swift_edge.bundle import open_bundle, staging_folder, write_bundle


def target(data: bytes) -> None:
    with scratch() as folder:
        bundle = folder / "bundle"
        bundle.mkdir()
        # What the seeds' manifest gives sizes and hashes of; an input may bring its own.
        write({"model.onnx": b"graph", "tokenizer.json": b"{}"} | unpack(data), bundle)
        shown = promise.command("inspect", str(bundle))
        line = promise.command("inspect", "--json", str(bundle))
        promise.require(shown.status == line.status, f"inspect ends with {shown.status}, --json with {line.status}")
        promise.require((shown.status == 0) == bool(shown.out), "inspect prints a table exactly where it succeeds")
        opened = promise.kept(lambda: open_bundle(bundle))
        # It shows the head, too, which opening a bundle does not read.
        promise.require(opened is not None or shown.status != 0, "inspect shows what open_bundle refuses")
        if opened is None:
            return
        # What was read can be written: the exporter does so.
        with staging_folder(folder / "copy") as staging:
            for name in ("model.onnx", "tokenizer.json"):
                shutil.copy(bundle / name, staging / name)
            written = write_bundle(staging, opened.manifest)
        promise.require(open_bundle(folder / "copy").manifest == written, "a manifest changes when it is written")
        promise.check_no_leftovers(folder)
