"""The strict subset of MessagePack in which p2pfl sends, signs and stores, and the checks of its fields.

A document is one map whose keys are integers in rising order, exactly the ones its reader expects, some of
them only where they are needed.  Values
are integers, float64, booleans, UTF-8 text, binary, arrays, and maps whose keys are integers or texts in
rising order; no extension types, no nil (no field check passes it), at most `MAX_DEPTH` levels.  Bytes are
canonical: reading packs again what was read and compares, so one document has one sequence of bytes, and a
signature or a hash means one thing.  That is 2 of the 16 us that reading a header takes.

Whatever the bytes, reading gives values within the limits or RemoteError, and allocates no more than a small
multiple of the bytes that are there: a declared length is compared with a limit before anything is allocated
for it.  A field check takes `what` the field is, as its error calls it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping
from typing import Any

import msgpack

from p2pfl.errors import ConfigError, LocalError, RemoteError
from p2pfl.ids import PeerId, RunId, peer_id_of, public_key_of

__all__ = [
    "MAX_DEPTH",
    "MAX_ITEMS",
    "MAX_COUNTER",
    "MAX_RANDOM",
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
    "exact",
    "digest",
    "items",
    "rows",
    "peer",
    "key_of",
    "run",
    "hash_of",
]

# Levels of nesting, the document itself being the first; the deepest document in use has three.
MAX_DEPTH = 4
# Entries of one array or map.  The parser allocates an array at its declared length, up to 1,024 nested ones
# at once: with 256 a nesting bomb stays under 4 MiB (measured, by its test); eight bytes an entry would make
# 64 Ki entries 512 MiB.
MAX_ITEMS = 256
# Rounds, times and sequence numbers: the integers that a float64, and so JavaScript, holds exactly.
MAX_COUNTER = 2**53 - 1
# Incarnations and boot sessions are random 64-bit numbers.
MAX_RANDOM = 2**64 - 1
# SHA-256, everywhere a document names something by its hash.
DIGEST_BYTES = 32

# Ed25519, RFC 8032.
_PUBLIC_KEY_BYTES = 32
_WORD_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.+")


def pack(document: Mapping[int, object]) -> bytes:
    """`document` as MessagePack with its keys in rising order; NumPy integers become integers.

    Maps inside it are the caller's to sort.   Raises LocalError on what MessagePack cannot hold.

    >>> pack({2: b"x", 1: 7}).hex()
    '82010702c40178'
    """
    try:
        ordered = {key: document[key] for key in sorted(document)}
        packed: bytes = msgpack.packb(ordered, use_bin_type=True, default=operator.index)
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalError(f"a document holds a value that cannot be sent: {error}") from error
    return packed


def unpack(
    data: bytes | memoryview,
    what: str,
    *,
    keys: Collection[int],
    optional: Collection[int] = (),
    limit: int,
    max_items: int = MAX_ITEMS,
) -> dict[int, Any]:
    """The document in `data`, which has the keys `keys`, any of `optional`, and no others.

    limit: the most bytes it may have.   max_items: entries of an array or map, more than usual only for what
    this node itself wrote to its disk.   Raises RemoteError, naming `what`.
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
            max_array_len=max_items,
            max_map_len=max_items,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteError(f"{what} is not MessagePack as the protocol has it: {str(error)[:200]}") from error
    if type(document) is not dict:
        raise RemoteError(f"{what} is not a map")
    if list(document) != list(keys) and document.keys() - set(optional) != set(keys):
        odd = sorted(str(key)[:20] for key in (document.keys() - set(optional)) ^ set(keys))
        raise RemoteError(f"{what} misses or has too many keys: {odd[:8]}; check both sides' releases")
    if not _is_within(document, MAX_DEPTH):
        raise RemoteError(f"{what} is nested deeper than {MAX_DEPTH} levels")
    if msgpack.packb(document, use_bin_type=True) != data:
        raise RemoteError(f"{what} is not canonical: a number or a length has a longer form than it needs")
    return document


def integer(value: object, what: str, *, most: int) -> int:
    """`value` as an integer in 0..most.  Raises RemoteError."""
    if type(value) is not int or not 0 <= value <= most:
        raise RemoteError(f"{what} is {_shown(value)}, expected an integer in 0..{most}")
    return value


def number(value: object, what: str, *, least: float = -math.inf, is_finite: bool = True) -> float:
    """`value` as a float64 of at least `least`, finite unless said otherwise.  Raises RemoteError.

    An integer is refused.   NaN passes only where neither bound is asked for.
    """
    if type(value) is not float or value < least or (is_finite and not math.isfinite(value)):
        bound = f" of {least:g} or more" if math.isfinite(least) else ""
        raise RemoteError(f"{what} is {_shown(value)}, expected a {'finite ' * is_finite}float64{bound}")
    return value


def flag(value: object, what: str) -> bool:
    """`value` as a boolean.  Raises RemoteError."""
    if type(value) is not bool:
        raise RemoteError(f"{what} is {_shown(value)}, expected a boolean")
    return value


def text(value: object, what: str, *, most_bytes: int) -> str:
    """`value` as text whose UTF-8 form has at most `most_bytes`.  Raises RemoteError."""
    # What was read is UTF-8.  Half of a surrogate pair, in our own caller's text, is for `pack` to refuse.
    if type(value) is not str or len(value.encode(errors="replace")) > most_bytes:
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


def blob(value: object, what: str, *, most_bytes: int, least_bytes: int = 0) -> bytes:
    """`value` as binary of `least_bytes` to `most_bytes`.  Raises RemoteError."""
    if type(value) is not bytes or not least_bytes <= len(value) <= most_bytes:
        amount = _amount(least_bytes, most_bytes)
        raise RemoteError(f"{what} is {_shown(value)}, expected {amount} binary bytes")
    return value


def exact(value: object, what: str, *, size_bytes: int) -> bytes:
    """`value` as binary of exactly `size_bytes`.  Raises RemoteError."""
    return blob(value, what, least_bytes=size_bytes, most_bytes=size_bytes)


def digest(value: object, what: str, *, may_be_empty: bool = False) -> bytes:
    """`value` as a SHA-256, or as nothing when that is allowed.  Raises RemoteError."""
    return b"" if may_be_empty and value == b"" else exact(value, what, size_bytes=DIGEST_BYTES)


def items(value: object, what: str, *, most: int, least: int = 0) -> list[Any]:
    """`value` as an array of `least` to `most` entries.  Raises RemoteError."""
    if type(value) is not list or not least <= len(value) <= most:
        raise RemoteError(f"{what} is {_shown(value)}, expected an array of {_amount(least, most)}")
    return value


def rows(value: object, what: str, *, size_bytes: int, most: int) -> list[bytes]:
    """`value`, binary of at most `most` rows of `size_bytes` each, cut into them.  Raises RemoteError."""
    joined = blob(value, what, most_bytes=most * size_bytes)
    if len(joined) % size_bytes:
        raise RemoteError(f"{what} has {len(joined)} bytes, expected a multiple of {size_bytes}")
    return [joined[start : start + size_bytes] for start in range(0, len(joined), size_bytes)]


def peer(value: object, what: str) -> PeerId:
    """`value`, a 32-byte public key, as a PeerId.  Raises RemoteError."""
    return peer_id_of(exact(value, what, size_bytes=_PUBLIC_KEY_BYTES))


def key_of(peer_id: PeerId) -> bytes:
    """The 32-byte public key in `peer_id`, as documents name a peer.  Raises LocalError."""
    try:
        return public_key_of(peer_id)
    except ConfigError as error:
        raise LocalError(f"a document names no peer: {error}") from error


def run(value: object, what: str) -> RunId:
    """`value`, 32 bytes of SHA-256, as a RunId.  Raises RemoteError."""
    return RunId(exact(value, what, size_bytes=DIGEST_BYTES).hex())


def hash_of(run_id: RunId) -> bytes:
    """The 32 bytes of `run_id`, as documents name a run.  Raises LocalError."""
    try:
        return bytes.fromhex(run_id)
    except ValueError as error:
        raise LocalError(f"a document names no run: {run_id[:80]!r}") from error


def _rising(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    before = -1
    for key, _ in pairs:
        if type(key) is not int or key <= before:
            break
        before = key
    else:
        return dict(pairs)
    keys = [key for key, _ in pairs]
    # Types are compared first: True and 1.0 are equal to the key 1, and a list cannot be in a set.
    kinds = {type(key) for key in keys}
    if kinds not in (set(), {int}, {str}) or keys != sorted(set(keys)) or (kinds == {int} and keys[0] < 0):
        raise ValueError("map keys must be integers >= 0, or texts, in rising order")
    return dict(pairs)


def _refuse_extension(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code} ({len(data)} bytes)")


def _is_within(value: dict[Any, Any] | list[Any], levels: int) -> bool:
    if levels <= 0:
        return False
    for inner in value.values() if type(value) is dict else value:
        if type(inner) in (dict, list) and not _is_within(inner, levels - 1):
            return False
    return True


def _amount(least: int, most: int) -> str:
    if least == most:
        return str(most)
    return f"{least} to {most}" if least else f"at most {most}"


def _shown(value: object) -> str:
    match value:
        case bytes():
            return f"{len(value)} bytes"
        case str():
            return f"text of {len(value)} characters"
        case list() | dict():
            return f"{type(value).__name__} of {len(value)} entries"
        case _:
            return f"{value!r:.40}"
