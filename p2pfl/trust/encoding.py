"""Canonical MessagePack: one sequence of bytes for one value, so that a signature or a hash means one thing.

A document is a map with integer keys in rising order.  Reading re-encodes what was read and compares, which
refuses duplicate or unsorted keys, padded integers and anything else that has two spellings.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

import msgpack

from p2pfl.errors import ConfigError
from p2pfl.ids import PeerId, peer_id_of, public_key_of

__all__ = ["MAX_INTEGER", "pack", "unpack", "integer", "number", "text", "blob", "peer", "key_of"]

# The largest integer of MessagePack; incarnations and boot sessions use all of it.
MAX_INTEGER = 2**64 - 1
# A parser allocates an array at its declared length: 64 entries keep a nesting bomb small, and the only
# larger arrays (a node's own roster on its own disk) say so.
_MAX_ITEMS = 64


def pack(document: Mapping[int, object]) -> bytes:
    """`document` in its canonical bytes.  Raises ValueError on what MessagePack cannot hold."""
    try:
        ordered = {key: document[key] for key in sorted(document)}
        packed: bytes = msgpack.packb(ordered, use_bin_type=True, default=operator.index)
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error
    return packed


def unpack(data: bytes, *, keys: Collection[int], limit: int, max_items: int = _MAX_ITEMS) -> dict[int, Any]:
    """The document in `data`, which has exactly `keys` and at most `limit` bytes.  Raises ValueError."""
    if len(data) > limit:
        raise ValueError(f"{len(data)} bytes, the limit is {limit}")
    try:
        document = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            ext_hook=_refuse_extension,
            max_array_len=max_items,
            max_map_len=max_items,
            max_ext_len=0,
        )
        if type(document) is not dict or document.keys() != set(keys):
            raise ValueError("not a map with the expected keys; check both sides' releases")
        repeated = msgpack.packb(document, use_bin_type=True)
    except (msgpack.UnpackException, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not MessagePack: {str(error)[:100]}") from error
    # `True` and `1.0` are equal to the key 1, and have other bytes.
    if (
        repeated != data
        or any(type(key) is not int for key in document)
        or list(document) != sorted(document)
    ):
        raise ValueError("not in canonical form")
    return document


def integer(value: object, what: str, *, most: int = MAX_INTEGER) -> int:
    """`value` as an integer in 0..most.  Raises ValueError."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{what} is not an integer in 0..{most}")
    return value


def number(value: object, what: str) -> float:
    """`value` as a finite float64, zero or more.  Raises ValueError."""
    if type(value) is not float or not 0 <= value < float("inf"):
        raise ValueError(f"{what} is not a finite float64 of zero or more")
    return value


def text(value: object, what: str, *, most_bytes: int) -> str:
    """`value` as printable text of at most `most_bytes` in UTF-8.  Raises ValueError."""
    if type(value) is not str or len(value.encode()) > most_bytes or not value.isprintable():
        raise ValueError(f"{what} is not printable text of at most {most_bytes} bytes")
    return value


def blob(value: object, what: str, *, least: int, most: int) -> bytes:
    """`value` as binary of `least` to `most` bytes.  Raises ValueError."""
    if type(value) is not bytes or not least <= len(value) <= most:
        raise ValueError(f"{what} is not {least}..{most} binary bytes")
    return value


def peer(value: object, what: str) -> PeerId:
    """`value`, a 32-byte public key, as a PeerId.  Raises ValueError."""
    return peer_id_of(blob(value, what, least=32, most=32))


def key_of(peer_id: PeerId) -> bytes:
    """The 32-byte public key in `peer_id`.  Raises ValueError."""
    try:
        return public_key_of(peer_id)
    except ConfigError as error:
        raise ValueError(str(error)) from error


def _refuse_extension(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code} ({len(data)} bytes)")
