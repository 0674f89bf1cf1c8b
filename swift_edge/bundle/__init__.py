"""A bundle: a folder with everything that running a model takes. Read, checked and written.

    from swift_edge.bundle import open_bundle
    open_bundle("models/small-steps").manifest.architecture.layers

This package is a door: users and tests import its names from here, so that the files behind it can change. The runtime
itself imports a name from the file where it lives, which keeps the imports readable as a graph.
"""

from swift_edge.bundle.folder import open_bundle, read_manifest, staging_folder, write_bundle
from swift_edge.bundle.manifest import (
    Architecture,
    Bundle,
    FileRecord,
    Graph,
    HiddenStates,
    Manifest,
    Precision,
    Tokens,
    file_inside,
)
from swift_edge.bundle.tokenizer import Message, Tokenizer

__all__ = [
    "Architecture",
    "Bundle",
    "FileRecord",
    "Graph",
    "HiddenStates",
    "Manifest",
    "Message",
    "Precision",
    "Tokenizer",
    "Tokens",
    "file_inside",
    "open_bundle",
    "read_manifest",
    "staging_folder",
    "write_bundle",
]
