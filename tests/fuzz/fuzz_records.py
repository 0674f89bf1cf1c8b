"""Records that are read from JSON: what is read can be written, and is read back the same."""

import json
from pathlib import Path

import promise
from folders import unpack

from swift_edge import PickOptions
from swift_edge.bundle import Manifest
from swift_edge.options import CollectOptions
from swift_edge.training import StoreInfo

WHERE = Path("file")


def target(data: bytes) -> None:
    for name, content in unpack(data).items():
        text = content.decode("utf-8", "replace")
        if name == "manifest.json":
            manifest = promise.kept(lambda text=text: Manifest.from_json(text, WHERE))
            if manifest is not None:
                again = Manifest.from_json(manifest.to_json(), WHERE)
                promise.require(again == manifest, "a manifest changes when it is written")
        elif name == "store.json":
            info = promise.kept(lambda text=text: StoreInfo.from_json(text, WHERE))
            if info is not None:
                again = StoreInfo.from_json(info.to_json(), WHERE)
                promise.require(again.difference(info) is None, "settings change when they are written")
        else:
            try:
                document = json.loads(text)
            except (ValueError, RecursionError):
                continue
            _read(name, document)


def _read(name: str, document: object) -> None:
    if name == "pick.json":
        options = promise.kept(lambda: PickOptions.from_dict(document))  # type: ignore[arg-type]
        if options is not None:
            promise.require(PickOptions.from_dict(options.to_dict()) == options, "options change when they are written")
    elif name == "collect.json" and isinstance(document, dict):
        named = {key: value for key, value in document.items() if key in CollectOptions.__dataclass_fields__}
        promise.kept(lambda: CollectOptions.of(None, named))
