"""Amendments: what founders sign to change the terms of a run that is under way.

An amendment is bound to the run, has a number, its *epoch*, and takes effect at a *fence*: the round with
that number, far enough ahead for everybody to have heard.  All who sign sign the same content.  A founder
signs one amendment an epoch (`voting`), and a quorum is more than half of the founders, so at most one of
an epoch comes to count; epochs may be skipped, so founders who disagree are not stuck with one number.

What a change means is not known here: keys and values are text, the values JSON.  Reading checks form and
limits only; `admission` checks signatures, because it knows the founders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from p2pfl import encoding
from p2pfl.encoding import MAX_COUNTER
from p2pfl.errors import ConfigError, LocalError, RemoteError
from p2pfl.ids import PeerId, RunId
from p2pfl.trust.certificates import MAX_SIGNATURES
from p2pfl.trust.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, verify

__all__ = [
    "AMENDMENT_DOMAIN",
    "MAX_AMENDMENT_BYTES",
    "Amendment",
    "countersign_amendment",
    "decode_amendment",
    "encode_amendment",
    "has_endorsed",
    "in_force",
    "issue_amendment",
    "join_amendments",
    "key_of",
]

AMENDMENT_DOMAIN = b"p2pfl-amendment/1"
# Content and MAX_SIGNATURES of 98 bytes each; a record of a roster may have 4 KiB.
MAX_AMENDMENT_BYTES = 3072
_MAX_CONTENT_BYTES = 1536
_MAX_CHANGES = 16
_MAX_KEY_BYTES = 64
_MAX_VALUE_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Amendment:
    """New terms of `run` from round `at_round` on, under the signatures of founders.

    changes: dotted keys of the agreement to JSON.   at_round: a round's number as headers have it.
    issued_at: seconds since 1970.
    """

    run: RunId
    epoch: int
    at_round: int
    changes: Mapping[str, str]
    issued_at: int
    signatures: Mapping[PeerId, bytes] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        """The bytes that every signature is over, after AMENDMENT_DOMAIN."""
        return encoding.pack(
            {
                1: encoding.hash_of(self.run),
                2: self.epoch,
                3: self.at_round,
                4: dict(sorted(self.changes.items())),
                5: self.issued_at,
            }
        )


def issue_amendment(
    founder: Identity, *, run: RunId, epoch: int, at_round: int, changes: Mapping[str, str], now: float
) -> Amendment:
    """An amendment with the first founder's signature.  Raises ConfigError when it cannot be encoded."""
    amendment = Amendment(run=run, epoch=epoch, at_round=at_round, changes=changes, issued_at=int(now))
    try:
        signed = countersign_amendment(amendment, founder)
        decode_amendment(encode_amendment(signed))
    except (RemoteError, LocalError) as error:
        raise ConfigError(f"this amendment cannot be issued: {error}") from error
    return signed


def countersign_amendment(amendment: Amendment, founder: Identity) -> Amendment:
    """`amendment` with `founder`'s signature added."""
    signature = founder.sign(AMENDMENT_DOMAIN, amendment.content)
    return replace(amendment, signatures=_first({**amendment.signatures, founder.peer_id: signature}))


def encode_amendment(amendment: Amendment) -> bytes:
    """The canonical bytes: content and signatures, the latter in the order of the founders' keys."""
    signatures = sorted((encoding.key_of(f), s) for f, s in amendment.signatures.items())
    return encoding.pack({1: amendment.content, 2: [key + signature for key, signature in signatures]})


def decode_amendment(data: bytes) -> Amendment:
    """The amendment in `data`, its form checked and its signatures not.  Raises RemoteError."""
    outer = encoding.unpack(data, "an amendment", keys=(1, 2), limit=MAX_AMENDMENT_BYTES)
    content = encoding.blob(outer[1], "an amendment's content", most_bytes=_MAX_CONTENT_BYTES)
    inner = encoding.unpack(content, "an amendment's content", keys=range(1, 6), limit=_MAX_CONTENT_BYTES)
    size = PUBLIC_KEY_BYTES + SIGNATURE_BYTES
    signed = [
        encoding.exact(entry, "an amendment's signature", size_bytes=size)
        for entry in encoding.items(outer[2], "an amendment's signatures", least=1, most=MAX_SIGNATURES)
    ]
    amendment = Amendment(
        run=encoding.run(inner[1], "an amendment's run"),
        epoch=encoding.integer(inner[2], "an amendment's epoch", most=MAX_COUNTER),
        at_round=encoding.integer(inner[3], "an amendment's fence", most=MAX_COUNTER),
        changes=_changes(inner[4]),
        issued_at=encoding.integer(inner[5], "an amendment's time of issue", most=MAX_COUNTER),
        signatures={
            encoding.peer(entry[:PUBLIC_KEY_BYTES], "a founder"): entry[PUBLIC_KEY_BYTES:] for entry in signed
        },
    )
    if amendment.epoch < 1:
        raise RemoteError("an amendment has epoch 0, which is the agreement itself")
    if encode_amendment(amendment) != data:
        raise RemoteError("an amendment's signatures are not one of each founder in the order of their keys")
    return amendment


def has_endorsed(amendment: Amendment, founder: PeerId) -> bool:
    """Whether `founder`'s signature is on it and verifies."""
    signature = amendment.signatures.get(founder, b"")
    return verify(founder, AMENDMENT_DOMAIN, amendment.content, signature)


def join_amendments(left: Amendment, right: Amendment) -> Amendment:
    """The signatures of two that have the same content.  Commutative, associative, idempotent."""
    merged = dict(left.signatures)
    for founder, signature in right.signatures.items():
        merged[founder] = min(signature, merged.get(founder, signature))
    return replace(left, signatures=_first(merged))


def key_of(amendment: Amendment) -> bytes:
    """SHA-256 of the content: what tells amendments apart."""
    return hashlib.sha256(amendment.content).digest()


def in_force(passed: Iterable[Amendment], number: int) -> tuple[Amendment, ...]:
    """Those of `passed` that count in round `number`, by epoch; the last one's epoch is the round's.

    An amendment whose fence is not before that of every later epoch never counts: its hour had passed
    before it was signed.
    """
    counting: list[Amendment] = []
    for amendment in sorted(passed, key=lambda a: a.epoch, reverse=True):
        if not counting or amendment.at_round < counting[-1].at_round:
            counting.append(amendment)
    return tuple(a for a in reversed(counting) if a.at_round <= number)


def _changes(value: object) -> dict[str, str]:
    if type(value) is not dict or not 0 < len(value) <= _MAX_CHANGES:
        raise RemoteError(f"an amendment's changes are not a map of 1 to {_MAX_CHANGES}")
    return {
        encoding.printable(key, "a changed key", most_bytes=_MAX_KEY_BYTES): encoding.printable(
            item, "a changed value", most_bytes=_MAX_VALUE_BYTES
        )
        for key, item in value.items()
    }


def _first(signed: Mapping[PeerId, bytes]) -> dict[PeerId, bytes]:
    # The smallest of a union: whatever the order of merging, the same ones remain.
    return {founder: signed[founder] for founder in sorted(signed)[:MAX_SIGNATURES]}
