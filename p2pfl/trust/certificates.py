"""Certificates and revocations: what founders sign, and its canonical bytes.

A certificate says that a key is a member of one run; all who sign it sign the same content, so it can be
passed from founder to founder until it has a quorum.  A revocation is a set of votes, each signed over the
voter's own words, so that founders who act without knowing of each other still add up.

Both are certificates bound to keys, not secrets: who finds or steals one can do nothing with it.

Reading checks form and limits only; `admission` checks signatures, because it knows the founders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from p2pfl import encoding
from p2pfl.encoding import MAX_COUNTER
from p2pfl.errors import ConfigError, LocalError, RemoteError
from p2pfl.ids import PeerId, RunId
from p2pfl.trust.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, verify

__all__ = [
    "CERTIFICATE_DOMAIN",
    "REVOCATION_DOMAIN",
    "MAX_CERTIFICATE_BYTES",
    "MAX_REVOCATION_BYTES",
    "MAX_SIGNATURES",
    "USE_WITHIN_S",
    "LASTS_S",
    "Certificate",
    "Vote",
    "Revocation",
    "issue_certificate",
    "countersign",
    "encode_certificate",
    "decode_certificate",
    "has_signed",
    "join_certificates",
    "order_of",
    "issue_revocation",
    "encode_revocation",
    "decode_revocation",
    "has_voted",
    "join_revocations",
]

CERTIFICATE_DOMAIN = b"p2pfl-certificate/1"
REVOCATION_DOMAIN = b"p2pfl-revocation/1"
# A quorum of 15 decides for up to 29 founders; with more, a certificate would not fit its limit.
MAX_SIGNATURES = 15
# Name, labels, times and keys: about 210 bytes are in use, the rest is room for labels.
_MAX_CONTENT_BYTES = 532
# Content and MAX_SIGNATURES of 98 bytes each, half of what the lobby reads of a stranger.
MAX_CERTIFICATE_BYTES = 2048
# MAX_SIGNATURES votes of at most 173 bytes; a record of a roster may have 4 KiB.
MAX_REVOCATION_BYTES = 3072
# Seven days from invitation to first use, 90 days of membership before a renewal, unless said otherwise.
USE_WITHIN_S = 7 * 86_400
LASTS_S = 90 * 86_400
_MAX_NAME_BYTES = 64
_MAX_LABEL_BYTES = 32
_MAX_LABELS = 8
_MAX_REASON_BYTES = 64
_NONCE_BYTES = 16

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """That `subject` is a member of `run`, under the signatures of founders.

    name: what people call it.   labels: what shapes the plan, such as a group or a role.
    issued_at, use_by, expires_at: seconds since 1970; see `admission.admit` for what they mean.
    recovery: the key that may name another in the subject's place (`successions`), None for none.
    """

    run: RunId
    subject: PeerId
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    issued_at: int
    use_by: int
    expires_at: int
    nonce: bytes
    recovery: PeerId | None = None
    signatures: Mapping[PeerId, bytes] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        """The bytes that every signature is over, after CERTIFICATE_DOMAIN."""
        return encoding.pack(
            {
                1: encoding.hash_of(self.run),
                2: encoding.key_of(self.subject),
                3: self.name,
                4: dict(sorted(self.labels.items())),
                5: self.issued_at,
                6: self.use_by,
                7: self.expires_at,
                8: self.nonce,
                9: b"" if self.recovery is None else encoding.key_of(self.recovery),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One founder's word that a key is to be revoked, why, and since when (seconds since 1970)."""

    reason: str
    issued_at: int
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """The votes to revoke `subject` in `run`; a quorum of them is final."""

    run: RunId
    subject: PeerId
    votes: Mapping[PeerId, Vote]


def issue_certificate(
    founder: Identity,
    *,
    run: RunId,
    subject: PeerId,
    name: str = "",
    labels: Mapping[str, str] | None = None,
    now: float,
    nonce: bytes,
    recovery: PeerId | None = None,
    use_within_s: float = USE_WITHIN_S,
    lasts_s: float = LASTS_S,
) -> Certificate:
    """A certificate with the first founder's signature.   nonce: 16 random bytes.

    Raises ConfigError when a name or label is too long, or a time makes no sense.
    """
    certificate = Certificate(
        run=run,
        subject=subject,
        name=name,
        labels=dict(sorted((labels or {}).items())),
        issued_at=int(now),
        use_by=int(now + use_within_s),
        expires_at=int(now + lasts_s),
        nonce=nonce,
        recovery=recovery,
    )
    signed = countersign(certificate, founder)
    try:
        decode_certificate(encode_certificate(signed))
    except RemoteError as error:
        raise ConfigError(f"this certificate cannot be issued: {error}") from error
    return signed


def countersign(certificate: Certificate, founder: Identity) -> Certificate:
    """`certificate` with `founder`'s signature added.  Raises ConfigError when it cannot be encoded."""
    try:
        signature = founder.sign(CERTIFICATE_DOMAIN, certificate.content)
    except LocalError as error:
        raise ConfigError(f"this certificate cannot be issued: {error}") from error
    return replace(certificate, signatures=_first({**certificate.signatures, founder.peer_id: signature}))


def encode_certificate(certificate: Certificate) -> bytes:
    """The canonical bytes: content and signatures, the latter in the order of the founders' keys.

    Raises LocalError when it names no peer or run.
    """
    signatures = sorted((encoding.key_of(f), s) for f, s in certificate.signatures.items())
    return encoding.pack({1: certificate.content, 2: [key + signature for key, signature in signatures]})


def decode_certificate(data: bytes) -> Certificate:
    """The certificate in `data`, its form checked and its signatures not.  Raises RemoteError."""
    outer = encoding.unpack(data, "a certificate", keys=(1, 2), limit=MAX_CERTIFICATE_BYTES)
    content = encoding.blob(outer[1], "a certificate's content", most_bytes=_MAX_CONTENT_BYTES)
    inner = encoding.unpack(content, "a certificate's content", keys=range(1, 10), limit=_MAX_CONTENT_BYTES)
    certificate = Certificate(
        run=encoding.run(inner[1], "a certificate's run"),
        subject=encoding.peer(inner[2], "a certificate's subject"),
        name=encoding.printable(inner[3], "a certificate's name", most_bytes=_MAX_NAME_BYTES),
        labels=_labels(inner[4]),
        issued_at=encoding.integer(inner[5], "a certificate's time of issue", most=MAX_COUNTER),
        use_by=encoding.integer(inner[6], "a certificate's last time of use", most=MAX_COUNTER),
        expires_at=encoding.integer(inner[7], "a certificate's end", most=MAX_COUNTER),
        nonce=encoding.exact(inner[8], "a certificate's nonce", size_bytes=_NONCE_BYTES),
        recovery=None if inner[9] == b"" else encoding.peer(inner[9], "a certificate's recovery key"),
        signatures=_signatures(outer[2]),
    )
    if not certificate.issued_at <= certificate.use_by <= certificate.expires_at:
        raise RemoteError("a certificate is to be used before it is issued, or after it expires")
    if encode_certificate(certificate) != data:
        raise RemoteError("a certificate's signatures are not one of each founder in the order of their keys")
    return certificate


def has_signed(certificate: Certificate, founder: PeerId) -> bool:
    """Whether `founder`'s signature is on it and verifies."""
    signature = certificate.signatures.get(founder, b"")
    return verify(founder, CERTIFICATE_DOMAIN, certificate.content, signature)


def join_certificates(left: Certificate, right: Certificate) -> Certificate:
    """The one that counts of two for the same subject: that which expires last, then the one issued last.

    The same content twice is one certificate with the signatures of both.  Commutative, associative,
    idempotent, so the order in which rosters arrive does not matter.
    """
    if left.content == right.content:
        merged = dict(left.signatures)
        for founder, signature in right.signatures.items():
            merged[founder] = min(signature, merged.get(founder, signature))
        return replace(left, signatures=_first(merged))
    return max(left, right, key=order_of)


def order_of(certificate: Certificate) -> tuple[int, int, bytes]:
    """What decides between certificates of one subject: the greatest counts."""
    return certificate.expires_at, certificate.issued_at, certificate.content


def issue_revocation(
    founder: Identity, *, run: RunId, subject: PeerId, reason: str, now: float
) -> Revocation:
    """A revocation with this founder's vote.  Raises ConfigError when the reason exceeds 64 bytes."""
    try:
        content = _vote_content(run, subject, reason, int(now))
        vote = Vote(reason=reason, issued_at=int(now), signature=founder.sign(REVOCATION_DOMAIN, content))
        revocation = Revocation(run=run, subject=subject, votes={founder.peer_id: vote})
        decode_revocation(encode_revocation(revocation))
    except (LocalError, RemoteError) as error:
        raise ConfigError(f"this revocation cannot be issued: {error}") from error
    return revocation


def encode_revocation(revocation: Revocation) -> bytes:
    """The canonical bytes: run, subject, and the votes in the order of the founders' keys.

    Raises LocalError when it names no peer or run.
    """
    votes = sorted((encoding.key_of(founder), vote) for founder, vote in _pairs(revocation))
    return encoding.pack(
        {
            1: encoding.hash_of(revocation.run),
            2: encoding.key_of(revocation.subject),
            3: [[key, *vote] for key, vote in votes],
        }
    )


def decode_revocation(data: bytes) -> Revocation:
    """The revocation in `data`, its form checked and its signatures not.  Raises RemoteError."""
    document = encoding.unpack(data, "a revocation", keys=(1, 2, 3), limit=MAX_REVOCATION_BYTES)
    votes: dict[PeerId, Vote] = {}
    for entry in encoding.items(document[3], "a revocation's votes", least=1, most=MAX_SIGNATURES):
        founder, reason, issued_at, signature = encoding.items(entry, "a vote", least=4, most=4)
        votes[encoding.peer(founder, "a vote's founder")] = Vote(
            reason=encoding.printable(reason, "a vote's reason", most_bytes=_MAX_REASON_BYTES),
            issued_at=encoding.integer(issued_at, "a vote's time of issue", most=MAX_COUNTER),
            signature=encoding.exact(signature, "a vote's signature", size_bytes=SIGNATURE_BYTES),
        )
    revocation = Revocation(
        run=encoding.run(document[1], "a revocation's run"),
        subject=encoding.peer(document[2], "a revocation's subject"),
        votes=votes,
    )
    if encode_revocation(revocation) != data:
        raise RemoteError("a revocation's votes are not one of each founder in the order of their keys")
    return revocation


def has_voted(revocation: Revocation, founder: PeerId) -> bool:
    """Whether `founder`'s vote is in it and its signature verifies."""
    if (vote := revocation.votes.get(founder)) is None:
        return False
    content = _vote_content(revocation.run, revocation.subject, vote.reason, vote.issued_at)
    return verify(founder, REVOCATION_DOMAIN, content, vote.signature)


def join_revocations(left: Revocation, right: Revocation) -> Revocation:
    """All votes of two revocations of one subject; of one founder's two votes, the earlier.

    Commutative, associative, idempotent.
    """
    merged = dict(left.votes)
    for founder, vote in right.votes.items():
        merged[founder] = min(vote, merged.get(founder, vote), key=_vote_order)
    return replace(left, votes=_first(merged))


def _vote_content(run: RunId, subject: PeerId, reason: str, issued_at: int) -> bytes:
    return encoding.pack({1: encoding.hash_of(run), 2: encoding.key_of(subject), 3: reason, 4: issued_at})


def _vote_order(vote: Vote) -> tuple[int, str, bytes]:
    return vote.issued_at, vote.reason, vote.signature


def _pairs(revocation: Revocation) -> list[tuple[PeerId, tuple[str, int, bytes]]]:
    return [(f, (v.reason, v.issued_at, v.signature)) for f, v in revocation.votes.items()]


def _first(signed: Mapping[PeerId, _T]) -> dict[PeerId, _T]:
    # The smallest MAX_SIGNATURES of a union: whatever the order of merging, the same ones remain.
    return {founder: signed[founder] for founder in sorted(signed)[:MAX_SIGNATURES]}


def _signatures(value: object) -> dict[PeerId, bytes]:
    size = PUBLIC_KEY_BYTES + SIGNATURE_BYTES
    entries = encoding.items(value, "a certificate's signatures", least=1, most=MAX_SIGNATURES)
    signed = [encoding.exact(entry, "a certificate's signature", size_bytes=size) for entry in entries]
    return {
        encoding.peer(entry[:PUBLIC_KEY_BYTES], "a founder"): entry[PUBLIC_KEY_BYTES:] for entry in signed
    }


def _labels(value: object) -> dict[str, str]:
    if type(value) is not dict or len(value) > _MAX_LABELS:
        raise RemoteError(f"a certificate's labels are not a map of at most {_MAX_LABELS}")
    return {
        encoding.printable(key, "a label", most_bytes=_MAX_LABEL_BYTES): encoding.printable(
            item, "a label", most_bytes=_MAX_LABEL_BYTES
        )
        for key, item in value.items()
    }
