"""Keys and values of the beginnings of prompts, kept between picks: what many prompts share is read once.

Prompts are cut into blocks of `BLOCK_TOKENS` tokens and read block by block, cached or not: results do not depend on
earlier requests.
"""

import hashlib
import threading
from collections import OrderedDict
from typing import Any, Final

from numpy.typing import NDArray

from swift_edge.arrays import Ids
from swift_edge.engine.kv_cache import KVCache

BLOCK_TOKENS: Final = 128
"""Tokens of a block: with short ones a prompt takes more runs of the graph, with long ones prompts share less."""

_Block = tuple[list[NDArray[Any]], list[NDArray[Any]]]  # keys and values of every layer, [h, BLOCK_TOKENS, k]


class PrefixCache:
    """The blocks used last, within `limit` bytes; shared between threads.

    >>> prefixes = PrefixCache(limit=256 * 2**20)
    >>> prefixes.restore(cache, prompt_ids)  # tokens that need not be read again
    """

    def __init__(self, limit: int) -> None:
        """Start without blocks."""
        self.nbytes = 0
        """Bytes of the blocks that are kept."""
        self._limit = limit
        self._lock = threading.Lock()
        self._blocks: OrderedDict[bytes, _Block] = (
            OrderedDict()
        )  # by all tokens up to the block's end, used last at end

    def restore(self, cache: KVCache, prompt_ids: Ids) -> int:
        """Put the cached blocks of a prompt, int64 `[p]`, into an empty cache; returns the tokens of its only row.

        The prompt's last token is left to be read: its logits are not kept.
        """
        blocks: list[_Block] = []
        names = _names(prompt_ids)
        with self._lock:
            for name in names:
                if name not in self._blocks:
                    break
                blocks.append(self._blocks[name])
            # The first block counts as used last: without it, those behind it are useless.
            for name in reversed(names[: len(blocks)]):
                self._blocks.move_to_end(name)
        tokens = len(blocks) * BLOCK_TOKENS
        if blocks:
            cache.append_empty()
            cache.reserve(1, tokens)
            for number, block in enumerate(blocks):
                place = slice(number * BLOCK_TOKENS, (number + 1) * BLOCK_TOKENS)
                for mine, theirs in zip((cache.keys, cache.values), block, strict=True):
                    for layer, array in enumerate(theirs):
                        mine[layer][0, :, place] = array
            cache.lengths[0] = tokens
        return tokens

    def keep(self, cache: KVCache, prompt_ids: Ids) -> None:
        """Keep the whole blocks of a prompt, int64 `[p]`, that has been read into the only row of `cache`."""
        names = _names(prompt_ids)
        with self._lock:
            for number, name in reversed(list(enumerate(names))):
                if name in self._blocks:
                    self._blocks.move_to_end(name)
                    continue
                place = slice(number * BLOCK_TOKENS, (number + 1) * BLOCK_TOKENS)
                block = (
                    [array[0, :, place].copy() for array in cache.keys],
                    [array[0, :, place].copy() for array in cache.values],
                )
                self._blocks[name] = block
                self.nbytes += _nbytes(block)
            while self.nbytes > self._limit:
                _, block = self._blocks.popitem(last=False)
                self.nbytes -= _nbytes(block)


def _names(prompt_ids: Ids) -> list[bytes]:
    """A name for every whole block before the last token: a hash of all tokens up to the block's end."""
    digest = hashlib.blake2b(digest_size=16)
    names = []
    for end in range(BLOCK_TOKENS, len(prompt_ids), BLOCK_TOKENS):
        digest.update(prompt_ids[end - BLOCK_TOKENS : end].astype("<i8").tobytes())
        names.append(digest.digest())
    return names


def _nbytes(block: _Block) -> int:
    return sum(array.nbytes for arrays in block for array in arrays)
