"""Successions: one key names another in its place, without asking the founders.

A succession is signed by the new key and by the old one, or instead of the old one by the recovery key that
the certificate names: an offline key, for the day on which the old one is lost or stolen.  The new key is a
member by the old one's certificate until it is renewed under its own name; the old key is refused for good.

Two successions that the old key signed contradict each other: the key is in two hands.  Then neither counts,
and the old key is refused all the same, until the recovery key or a quorum of founders decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from p2pfl import encoding
from p2pfl.encoding import MAX_COUNTER
from p2pfl.errors import ConfigError, RemoteError
from p2pfl.ids import PeerId, RunId
from p2pfl.trust.certificates import (
    MAX_CERTIFICATE_BYTES,
    Certificate,
    decode_certificate,
    encode_certificate,
)
from p2pfl.trust.identity import SIGNATURE_BYTES, Identity, verify

__all__ = [
    "MAX_CHAIN",
    "MAX_PETITION_BYTES",
    "MAX_SUCCESSION_BYTES",
    "SUCCESSION_DOMAIN",
    "Petition",
    "Succession",
    "decode_petition",
    "decode_succession",
    "encode_petition",
    "encode_succession",
    "is_signed",
    "issue_succession",
    "subject_of",
]

SUCCESSION_DOMAIN = b"p2pfl-succession/1"
# Three keys, a run, a time and two signatures: 287 bytes at most.
MAX_SUCCESSION_BYTES = 320
# Keys that may follow each other under one certificate; with it they fit what the lobby reads of a stranger.
# A renewal under the last name begins a new count.
MAX_CHAIN = 6
_MAX_CONTENT_BYTES = 160
# What the lobby reads of a stranger.
MAX_PETITION_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Succession:
    """That `new` stands in `old`'s place in `run`; `signer` is `old` itself, or its recovery key.

    issued_at: seconds since 1970.
    """

    run: RunId
    old: PeerId
    new: PeerId
    signer: PeerId
    issued_at: int
    signature: bytes = b""
    consent: bytes = b""

    @property
    def content(self) -> bytes:
        """What `signer` (signature) and `new` (consent) sign, after SUCCESSION_DOMAIN."""
        return encoding.pack(
            {
                1: encoding.hash_of(self.run),
                2: encoding.key_of(self.old),
                3: encoding.key_of(self.new),
                4: encoding.key_of(self.signer),
                5: self.issued_at,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Petition:
    """By what a key asks to be let in: a certificate, and the keys that followed each other under it."""

    certificate: Certificate
    successions: tuple[Succession, ...] = ()


def issue_succession(signer: Identity, new: Identity, *, run: RunId, old: PeerId, now: float) -> Succession:
    """`new` in the place of `old`.  Raises ConfigError when they are one key."""
    if new.peer_id == old:
        raise ConfigError(f"{old} cannot succeed itself; make another key")
    draft = Succession(run=run, old=old, new=new.peer_id, signer=signer.peer_id, issued_at=int(now))
    return replace(
        draft,
        signature=signer.sign(SUCCESSION_DOMAIN, draft.content),
        consent=new.sign(SUCCESSION_DOMAIN, draft.content),
    )


def encode_succession(succession: Succession) -> bytes:
    """The canonical bytes."""
    return encoding.pack({1: succession.content, 2: succession.signature, 3: succession.consent})


def decode_succession(data: bytes) -> Succession:
    """The succession in `data`, its form checked and its signatures not.  Raises RemoteError."""
    outer = encoding.unpack(data, "a succession", keys=(1, 2, 3), limit=MAX_SUCCESSION_BYTES)
    content = encoding.blob(outer[1], "a succession's content", most_bytes=_MAX_CONTENT_BYTES)
    inner = encoding.unpack(content, "a succession's content", keys=range(1, 6), limit=_MAX_CONTENT_BYTES)
    succession = Succession(
        run=encoding.run(inner[1], "a succession's run"),
        old=encoding.peer(inner[2], "a succession's old key"),
        new=encoding.peer(inner[3], "a succession's new key"),
        signer=encoding.peer(inner[4], "a succession's signer"),
        issued_at=encoding.integer(inner[5], "a succession's time of issue", most=MAX_COUNTER),
        signature=encoding.exact(outer[2], "a succession's signature", size_bytes=SIGNATURE_BYTES),
        consent=encoding.exact(outer[3], "a succession's consent", size_bytes=SIGNATURE_BYTES),
    )
    if succession.old == succession.new:
        raise RemoteError("a succession names one key twice")
    return succession


def is_signed(succession: Succession) -> bool:
    """Whether both signatures verify; whether the signer may sign is for the membership to say."""
    content = succession.content
    return verify(succession.signer, SUCCESSION_DOMAIN, content, succession.signature) and verify(
        succession.new, SUCCESSION_DOMAIN, content, succession.consent
    )


def subject_of(petition: Petition) -> PeerId:
    """The key it lets in.  Raises RemoteError when the successions are no chain from the certificate."""
    name = petition.certificate.subject
    for one in petition.successions:
        if one.old != name:
            raise RemoteError("its successions do not follow each other")
        name = one.new
    return name


def encode_petition(petition: Petition) -> bytes:
    """The one frame that a stranger presents."""
    chain = [encode_succession(one) for one in petition.successions]
    return encoding.pack({1: encode_certificate(petition.certificate), 2: chain})


def decode_petition(data: bytes) -> Petition:
    """The petition in `data`, its form checked and its signatures not.  Raises RemoteError."""
    document = encoding.unpack(data, "a petition", keys=(1, 2), limit=MAX_PETITION_BYTES)
    certificate = encoding.blob(document[1], "its certificate", most_bytes=MAX_CERTIFICATE_BYTES)
    chain = encoding.items(document[2], "its successions", most=MAX_CHAIN)
    petition = Petition(
        certificate=decode_certificate(certificate),
        successions=tuple(
            decode_succession(encoding.blob(entry, "a succession", most_bytes=MAX_SUCCESSION_BYTES))
            for entry in chain
        ),
    )
    subject_of(petition)
    return petition
