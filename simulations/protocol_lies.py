"""Lies about what surrounds a model: its weight, its shape, its number, its size, and who was told what.

weight-lie multiplies a share and its weight by lambda: the model x / w stays what it was and counts for more,
since only the sender knows how much there was.   wrong-shape sends one parameter too many.   replay says the
last messages of the edge again after each new one, bit for bit (byzantine.py).   bomb announces a body of a
terabyte.   equivocation tells every other peer -x, and signs a second statement of the round for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from p2pfl.events import Message
from p2pfl.mass import pack, unpack
from p2pfl.net.messages import MAX_VECTOR_BYTES
from p2pfl.trust import audit
from p2pfl.trust.audit import RoundStatement

from .attacks import AttackOptions

__all__ = ["forged", "stories", "version", "with_body"]

# What a weight-lie multiplies by, unless the options say otherwise.
_LAMBDA = 1e6


def forged(attack: AttackOptions, message: Message, *, k: int, position: int) -> Message:
    """What goes out instead of `message`, a SHARE or STATE with `k` statistics, to the peer at `position`."""
    body, header = message.body, message.header
    assert isinstance(body, np.ndarray)
    match attack.kind:
        case "weight-lie" if header.weights:
            factor = _LAMBDA if attack.weight is None else attack.weight
            lied = Message(
                header=msgspec.structs.replace(header, weights=(factor * header.weights[0],)), body=body
            )
            return with_body(lied, _scaled(body, factor, k))
        case "wrong-shape":
            return with_body(message, np.concatenate([body, np.zeros(4, np.uint8)]))
        case "bomb":
            # A terabyte that takes no memory here: one zero, again and again.
            vast = np.broadcast_to(np.uint8(0), MAX_VECTOR_BYTES)
            header = msgspec.structs.replace(header, size=MAX_VECTOR_BYTES, raw_size=MAX_VECTOR_BYTES)
            return Message(header=header, body=vast)
        case "equivocation" if version(position):
            return with_body(message, _scaled(body, -1.0, k))
    return message


def stories(attack: AttackOptions, statement: RoundStatement, before: Sequence[bytes]) -> list[bytes]:
    """The contents that a round's statement goes out with: by `version`, where there are two.

    before: what `stories` gave for the round before; each story is a chain of its own.
    """
    contents = [audit.encode_statement(statement)]
    if attack.kind == "equivocation":
        prev = hashlib.sha256(before[1]).digest() if len(before) > 1 else statement.prev
        digest = hashlib.sha256(statement.model_digest).digest()
        contents.append(audit.encode_statement(replace(statement, prev=prev, model_digest=digest)))
    return contents


def version(position: int) -> int:
    """Which of an equivocator's two stories the peer at `position` of the roster hears."""
    return position % 2


def with_body(message: Message, body: NDArray[np.uint8]) -> Message:
    """`message` with another body, and a header that fits it."""
    digest = hashlib.sha256(body.data).digest()
    header = msgspec.structs.replace(message.header, size=body.nbytes, raw_size=body.nbytes, digest=digest)
    return Message(header=header, body=body)


def _scaled(body: NDArray[np.uint8], factor: float, k: int) -> NDArray[np.uint8]:
    part = unpack(body, 1.0, k)
    with np.errstate(all="ignore"):
        x = (part.x.astype(np.float64) * factor).astype(np.float32)
        return pack(replace(part, x=x, s=part.s * factor))
