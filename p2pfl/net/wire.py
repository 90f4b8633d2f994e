"""The strict subset of MessagePack that travels between peers, and the checks of its fields.

A document is one map whose keys are integers in rising order, exactly the ones its reader expects; so there
are no duplicate keys and one order only.  Values are integers, float64, booleans, UTF-8 text, binary, arrays
and maps with rising integer keys: no nil, no extension types, at most `MAX_DEPTH` levels.  Whatever the
bytes, reading gives values within the limits or RemoteError, and allocates no more than a small multiple of
the bytes that are there: a declared length is compared with a limit before anything is allocated for it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping
from typing import Any

import msgpack

from p2pfl.errors import LocalError, RemoteError

__all__ = [
    "MAX_DEPTH",
    "MAX_ITEMS",
    "DIGEST_BYTES",
    "pack",
    "unpack",
    "integer",
    "number",
    "flag",
    "text",
    "printable",
    "word",
    "blob",
    "digest",
    "items",
]

# Levels of nesting, the document itself being the first; the deepest document in use has three.
MAX_DEPTH = 4
# Entries of one array or map.  The parser allocates an array at its declared length, up to 1,024 nested ones
# at once: 256 keeps a nesting bomb under 4 MiB where 64 Ki entries would make it 500 MiB (both measured).
MAX_ITEMS = 256
# SHA-256, everywhere a document names something by its hash.
DIGEST_BYTES = 32

_WORD_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.+")


def pack(document: Mapping[int, object]) -> bytes:
    """`document` as MessagePack with its keys in rising order; NumPy integers become integers.

    Raises LocalError on what cannot travel.
    """
    try:
        ordered = {key: document[key] for key in sorted(document)}
        packed: bytes = msgpack.packb(ordered, use_bin_type=True, default=operator.index)
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalError(f"a message holds a value that cannot be sent: {error}") from error
    return packed


def unpack(data: bytes | memoryview, what: str, *, keys: Collection[int], limit: int) -> dict[int, Any]:
    """The document in `data`, which has exactly the keys `keys`.

    limit: the most bytes it may have.   Raises RemoteError, naming `what`.
    """
    if len(data) > limit:
        raise RemoteError(f"{what} has {len(data)} bytes, the limit is {limit}")
    try:
        document = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            object_pairs_hook=_rising,
            ext_hook=_refuse_extension,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise RemoteError(f"{what} is not MessagePack as the protocol has it: {str(error)[:200]}") from error
    if type(document) is not dict:
        raise RemoteError(f"{what} is not a map")
    if document.keys() != set(keys):
        odd = sorted(document.keys() ^ set(keys))
        raise RemoteError(f"{what} misses or has too many keys: {odd[:8]}; check both sides' versions")
    if not _is_within(document, MAX_DEPTH):
        raise RemoteError(f"{what} is nested deeper than {MAX_DEPTH} levels")
    return document


def integer(value: object, what: str, *, most: int) -> int:
    """`value` as an integer in 0..most.  Raises RemoteError."""
    if type(value) is not int or not 0 <= value <= most:
        raise RemoteError(f"{what} is {_shown(value)}, expected an integer in 0..{most}")
    return value


def number(value: object, what: str, *, is_finite: bool = True) -> float:
    """`value` as a float64, finite unless said otherwise.  An integer is refused.  Raises RemoteError."""
    if type(value) is not float or (is_finite and not math.isfinite(value)):
        raise RemoteError(f"{what} is {_shown(value)}, expected a {'finite ' if is_finite else ''}float64")
    return value


def flag(value: object, what: str) -> bool:
    """`value` as a boolean.  Raises RemoteError."""
    if type(value) is not bool:
        raise RemoteError(f"{what} is {_shown(value)}, expected a boolean")
    return value


def text(value: object, what: str, *, most_bytes: int) -> str:
    """`value` as text whose UTF-8 form has at most `most_bytes`.  Raises RemoteError."""
    if type(value) is not str or len(value.encode()) > most_bytes:
        raise RemoteError(f"{what} is {_shown(value)}, expected text of at most {most_bytes} bytes")
    return value


def printable(value: object, what: str, *, most_bytes: int) -> str:
    """`value` as text without control characters, safe to show on a terminal.  Raises RemoteError."""
    found = text(value, what, most_bytes=most_bytes)
    if not found.isprintable():
        raise RemoteError(f"{what} has characters that cannot be printed")
    return found


def word(value: object, what: str, *, most_bytes: int) -> str:
    """`value` as a non-empty word of a-z, 0-9 and -_.+, safe to log and to compare.  Raises RemoteError."""
    found = text(value, what, most_bytes=most_bytes)
    if not found or not _WORD_CHARACTERS.issuperset(found):
        raise RemoteError(f"{what} is {_shown(value)}, expected lowercase letters, digits and -_.+")
    return found


def blob(value: object, what: str, *, most_bytes: int) -> bytes:
    """`value` as binary of at most `most_bytes`.  Raises RemoteError."""
    if type(value) is not bytes or len(value) > most_bytes:
        raise RemoteError(f"{what} is {_shown(value)}, expected at most {most_bytes} binary bytes")
    return value


def digest(value: object, what: str, *, may_be_empty: bool = True) -> bytes:
    """`value` as a SHA-256, or as nothing when that is allowed.  Raises RemoteError."""
    found = blob(value, what, most_bytes=DIGEST_BYTES)
    if len(found) != DIGEST_BYTES and not (may_be_empty and not found):
        raise RemoteError(f"{what} has {len(found)} bytes, expected {DIGEST_BYTES}")
    return found


def items(value: object, what: str, *, most: int) -> list[Any]:
    """`value` as an array of at most `most` entries.  Raises RemoteError."""
    if type(value) is not list or len(value) > most:
        raise RemoteError(f"{what} is {_shown(value)}, expected an array of at most {most}")
    return value


def _rising(pairs: list[tuple[Any, Any]]) -> dict[int, Any]:
    last = -1
    for key, _ in pairs:
        if type(key) is not int or key <= last:
            raise ValueError("map keys must be integers >= 0 in rising order")
        last = key
    return dict(pairs)


def _refuse_extension(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code} ({len(data)} bytes)")


def _is_within(value: object, levels: int) -> bool:
    if isinstance(value, dict):
        return levels > 0 and all(_is_within(inner, levels - 1) for inner in value.values())
    if isinstance(value, list):
        return levels > 0 and all(_is_within(inner, levels - 1) for inner in value)
    return True


def _shown(value: object) -> str:
    match value:
        case bytes() | str():
            return f"{type(value).__name__} of {len(value)}"
        case list() | dict():
            return f"{type(value).__name__} of {len(value)} entries"
        case _:
            return f"{value!r:.40}"
