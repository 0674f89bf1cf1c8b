"""Every error that swift-edge raises on purpose; each also inherits the builtin that it refines.

    SwiftEdgeError
    ├── BundleError                  a folder that cannot be used as a bundle
    │   ├── UnknownFolderError         (FileNotFoundError)  no folder there, or nothing in it that is recognised
    │   ├── MissingFileError           (FileNotFoundError)  the manifest lists a file that is not there
    │   ├── ManifestError              (ValueError)         a manifest or configuration that does not read
    │   ├── NewerFormatError           (ValueError)         written for a later swift-edge
    │   ├── DamagedFileError           (ValueError)         size or SHA-256 differ from the manifest
    │   ├── UnsafePathError            (ValueError)         a file that lies outside the folder
    │   └── OutputExistsError          (FileExistsError)    the place to write to is taken
    ├── HeadFileError                (ValueError)   a head file that does not read
    ├── HeadMismatchError            (ValueError)   a head for another model
    ├── DataError                    (ValueError)   a data file, or a row of it, that cannot be used
    ├── StoreError                   (ValueError)   a store of features that does not read, or does not fit
    ├── TrainingError                (RuntimeError) data that nothing can be learned from
    ├── InvalidOptionError           (ValueError)   an option out of its range, or two that exclude each other
    ├── PromptError                  (ValueError)   a prompt that cannot be answered
    │   ├── EmptyPromptError
    │   ├── PromptTooLongError
    │   └── TemplateError              the chat template refused the messages, or does not run
    ├── TokenizerError               (ValueError)   a tokenizer that does not read or does not belong to the model
    ├── LogitsError                  (FloatingPointError) logits without a distribution
    ├── ProviderError                (RuntimeError) an execution provider that the session did not get
    ├── DeviceError                  (RuntimeError) a small graph that failed on its device
    ├── MemoryLimitError             (MemoryError)  more memory wanted than there is
    ├── DeviceMemoryError            (MemoryError)  more memory wanted than a device has left
    ├── EngineClosedError            (RuntimeError) a request of a model that was closed
    ├── EngineFailedError            (RuntimeError) something broke that took every request along
    ├── RequestCancelledError        (RuntimeError) the result of a request that was cancelled
    ├── BusyEngineError              (RuntimeError) steps that were to be timed alone, and were not
    ├── QueueTimeoutError            (TimeoutError) a request that got no row in its time
    ├── DiskSpaceError               (OSError)      more disk wanted than there is
    ├── PlaceInUseError              (BlockingIOError) somebody else is writing to the same place
    ├── MissingExtraError            (ImportError)  a package of an optional extra is absent
    └── ExportError                  (RuntimeError) a model that could not be made into a bundle
        ├── UnsupportedModelError
        └── ParityError                the graph does not compute what the model computes

A message is one line: what was found, what was expected, the way out. A class whose message always has the same shape
builds it; the others take the text. All of them survive pickling, so they cross process pools.
"""

from pathlib import Path
from typing import Any

GIB = 1024**3
MIB = 1024**2
LONGEST_MESSAGE = 2000
"""Characters of a message; of a longer one the beginning and the end stay: what was found, and the way out."""


def one_line(error: BaseException) -> str:
    """What an exception says, in one line of 300 characters at most."""
    return " ".join(str(error).split())[:300]


def shortened(line: str) -> str:
    """A line of at most `LONGEST_MESSAGE` characters: of a longer one the middle is left out."""
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:1300]} [...] {line[-600:]}"


def size_text(size: int) -> str:
    """Write a number of bytes for people: `size_text(3 * 2**30)` is `"3.00 GiB"`."""
    if size >= GIB:
        return f"{size / GIB:.2f} GiB"
    if size >= MIB:
        return f"{size / MIB:.1f} MiB"
    return f"{size} bytes"


class SwiftEdgeError(Exception):
    """Base of all errors; `str(error)` is one line."""

    def __init__(self, message: str, *arguments: object) -> None:
        """Take the finished message; `arguments` are those of a leaf that builds its message itself."""
        # Texts from elsewhere (a template's complaint, a library's error) may bring line ends along, and any length.
        super().__init__(shortened(" ".join(line.strip() for line in message.splitlines())))
        self._arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the call that made it."""
        return type(self), self._arguments or (str(self),)


class BundleError(SwiftEdgeError):
    """A folder cannot be used as a bundle."""


class UnknownFolderError(BundleError, FileNotFoundError):
    """There is no folder, or nothing in it says what it is."""


class MissingFileError(BundleError, FileNotFoundError):
    """The manifest lists a file that is not in the folder."""

    def __init__(self, folder: Path, name: str) -> None:
        """Name the folder and the missing file."""
        super().__init__(
            f"{folder} lists the file {name!r}, but it is not there; the bundle is incomplete: export or copy it again",
            folder,
            name,
        )


class ManifestError(BundleError, ValueError):
    """A manifest, or another configuration file of the folder, does not read."""


class NewerFormatError(BundleError, ValueError):
    """The bundle was written for a later swift-edge."""

    def __init__(self, path: Path, version: int, supported: int) -> None:
        """Name the manifest and both format versions."""
        super().__init__(
            f"{path} has format version {version}, this swift-edge reads up to version {supported}; "
            "run: pip install --upgrade swift-edge",
            path,
            version,
            supported,
        )


class DamagedFileError(BundleError, ValueError):
    """The size or the SHA-256 of a file differs from the manifest."""

    def __init__(self, path: Path, quantity: str, actual: str, expected: str) -> None:
        """Name the file, what was measured (`size`, `SHA-256`), and both values."""
        super().__init__(
            f"{path} has {quantity} {actual}, its manifest says {expected}; "
            "the file is damaged or was changed: export or copy the bundle again",
            path,
            quantity,
            actual,
            expected,
        )


class UnsafePathError(BundleError, ValueError):
    """A file of the bundle lies outside its folder."""

    def __init__(self, folder: Path, name: str, reason: str) -> None:
        """Name the folder, the file as it was given, and why it is refused (`which ...`)."""
        super().__init__(
            f"{folder} names the file {name!r}, {reason}; expected a file inside the folder: "
            "copy the files themselves into the bundle, or get it from a source you trust",
            folder,
            name,
            reason,
        )


class OutputExistsError(BundleError, FileExistsError):
    """The place to write to is taken."""


class HeadFileError(SwiftEdgeError, ValueError):
    """A head file does not read."""


class HeadMismatchError(SwiftEdgeError, ValueError):
    """A head was trained for another model, or reads states that the bundle does not have."""


class DataError(SwiftEdgeError, ValueError):
    """A data file, or a row of it, cannot be used."""


class StoreError(SwiftEdgeError, ValueError):
    """A store of features does not read, or does not fit what is asked of it."""


class TrainingError(SwiftEdgeError, RuntimeError):
    """Nothing can be learned from the data as it is."""


class InvalidOptionError(SwiftEdgeError, ValueError):
    """An option is out of its range, or two options exclude each other."""


class PromptError(SwiftEdgeError, ValueError):
    """A prompt cannot be answered."""


class EmptyPromptError(PromptError):
    """The prompt has no text, or no token."""


class PromptTooLongError(PromptError):
    """The prompt does not fit into the context, or leaves no room for an answer."""

    def __init__(self, prompt_tokens: int, context_length: int, nbytes: int | None = None) -> None:
        """Take both numbers of tokens; with `nbytes`, it was refused by its length, and has at least so many tokens."""
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length
        self.nbytes = nbytes
        known = "" if nbytes is None else f"{nbytes} bytes or more, which are at least "
        super().__init__(
            f"the prompt has {known}{prompt_tokens} tokens, but the model's context holds {context_length} "
            "with the answer included; shorten the prompt or use a bundle with a longer context",
            prompt_tokens,
            context_length,
            nbytes,
        )


class TemplateError(PromptError):
    """The chat template refused the messages, or does not run."""


class TokenizerError(SwiftEdgeError, ValueError):
    """The tokenizer does not read, or does not belong to the model."""


class LogitsError(SwiftEdgeError, FloatingPointError):
    """The model's logits have no distribution: NaN, +inf, or nothing but -inf."""


class ProviderError(SwiftEdgeError, RuntimeError):
    """The session did not get an execution provider that was asked for."""


class DeviceError(SwiftEdgeError, RuntimeError):
    """A small graph, which moves rows or looks through them, failed on its device."""


class MemoryLimitError(SwiftEdgeError, MemoryError):
    """More memory is wanted than there is; `needed` and `available` are bytes, None where they are not known."""

    def __init__(self, what: str, needed: int | None, available: int | None, way_out: str) -> None:
        """Name what needs the memory, both sizes in bytes, and what to do about it.

        Without sizes, the system refused more memory on the way.
        """
        self.needed = needed
        self.available = available
        known = needed is not None and available is not None
        amount = f"{size_text(needed or 0)} of memory, {size_text(available or 0)} are free" if known else ""
        super().__init__(
            f"{what} needs {amount or 'more memory than the system gives this process'}; {way_out}",
            what,
            needed,
            available,
            way_out,
        )


def out_of_memory(
    what: str, way_out: str = "ask for fewer candidates or fewer tokens, or free some memory"
) -> MemoryLimitError:
    """The error of work that the system refused more memory for on the way."""
    return MemoryLimitError(what, None, None, way_out)


class DeviceMemoryError(SwiftEdgeError, MemoryError):
    """More memory is wanted than a device has left; `needed` are bytes, where that is known. What is left is not."""

    def __init__(self, device: str, needed: int | None, reason: str) -> None:
        """Name the device, the size in bytes, and what onnxruntime said."""
        self.needed = needed
        amount = "more" if needed is None else size_text(needed)
        elsewhere = "" if device == "cpu" else ", or leave providers out"
        super().__init__(
            f"{amount} of {device} memory is needed in one piece, and onnxruntime did not get it: "
            f"{reason}; ask for fewer candidates or fewer tokens{elsewhere}",
            device,
            needed,
            reason,
        )


class EngineClosedError(SwiftEdgeError, RuntimeError):
    """A request of a model that has been closed, or that is closed while it is under way."""

    def __init__(self) -> None:
        """Say how to go on."""
        super().__init__("the model is closed; open it again, or keep it open until every answer is there")


class EngineFailedError(SwiftEdgeError, RuntimeError):
    """Something broke that took every request in flight along; the engine has begun anew."""

    def __init__(self, reason: str) -> None:
        """Say what broke."""
        super().__init__(
            f"the engine failed, and every request in flight with it: {reason}; ask again, and report it if it fails "
            "again",
            reason,
        )


class RequestCancelledError(SwiftEdgeError, RuntimeError):
    """A request that was cancelled before it was done."""

    def __init__(self) -> None:
        """Say how to go on."""
        super().__init__("the request was cancelled before it was done; submit it again for a result")


class BusyEngineError(SwiftEdgeError, RuntimeError):
    """Steps were to be timed while nothing else is at work, and something was."""

    def __init__(self) -> None:
        """Say how to go on."""
        super().__init__("other requests were at work while steps were timed; time them when nothing else is")


class QueueTimeoutError(SwiftEdgeError, TimeoutError):
    """A request that was given no row before its deadline."""

    def __init__(self) -> None:
        """Say how to go on."""
        super().__init__("no row became free before the deadline; ask again later, or for a later deadline")


class DiskSpaceError(SwiftEdgeError, OSError):
    """More disk space is wanted than there is; `needed` (where it is known) and `available` are bytes."""

    def __init__(self, what: str, path: Path, needed: int | None, available: int) -> None:
        """Name what needs the space, where, and both sizes; without `needed` the disk filled up on the way."""
        self.needed = needed
        self.available = available
        amount = "more than there is" if needed is None else size_text(needed)
        super().__init__(
            f"{what} needs {amount} on the disk of {path}, {size_text(available)} are free; "
            "free some space or write to another disk",
            what,
            path,
            needed,
            available,
        )


class PlaceInUseError(SwiftEdgeError, BlockingIOError):
    """Another process, or another thread of this one, is writing to the same place."""

    def __init__(self, place: Path, holder: str) -> None:
        """Name the place and who holds it (`process 7 on host since 2026-01-31 09:00:00`)."""
        super().__init__(
            f"{place} is being written by {holder}; expected nobody else there: wait until that has ended, end it, or "
            "name another place with --out",
            place,
            holder,
        )


class MissingExtraError(SwiftEdgeError, ImportError):
    """A package that belongs to an optional extra is not installed."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        """Name what was asked for, the absent package, and the extra that brings it."""
        super().__init__(
            f'{what} needs the package {package!r}, which is not installed; run: pip install "swift-edge[{extra}]"',
            what,
            package,
            extra,
        )


class ExportError(SwiftEdgeError, RuntimeError):
    """A model could not be made into a bundle."""


class UnsupportedModelError(ExportError):
    """The model computes something that the graph cannot express."""


class ParityError(ExportError):
    """The exported graph does not compute what the model computes."""
