"""Who belongs to a run: founders, whom a quorum of them admitted, and whom a quorum revoked.

Theory of operation.  `Membership` is a value that every member holds and merges with its neighbours'
(`admission`).  Its records form a join-semilattice: merging is commutative, associative and idempotent, so
members who have seen the same records, in any order and however often, hold the same value and digest.

  * A founder is a member without a certificate.
  * A certificate counts with the signatures of at least `quorum` founders; quorum > founders / 2, so two
    halves of a partition cannot both admit or revoke, and a minority can do neither.  With fewer it is kept
    and passed on, so that founders who sign at different times and places add up.
  * A revocation counts with the votes of a quorum, beats every certificate, and is final within the run: who
    lost a key comes back as a new member under a new one.  Fewer votes are kept and passed on, too.
  * An amendment counts with the signatures of a quorum, likewise; see `amendments`.
  * A succession puts a new key in the place of an old one, which is refused from then on; see `successions`.
  * First use: a ticket presented in a lobby must be used by `use_by`, judged by the clock of the node it is
    presented to.  That node then carries the certificate in its roster, and a certificate out of a member's
    roster is not asked for its `use_by` again.  A member could so lend its roster to a stale ticket; a quorum
    has signed that ticket all the same, and `expires_at` ends it.
  * Membership ends at `expires_at` by each node's own clock, unless a later certificate has arrived.  What
    has expired stays in the value: forgetting by the clock would make equal members differ.

A revoked founder is no member; its signatures still count, because dropping them would make the outcome
depend on the order of arrival.  Alone it is no quorum, unless it is the only founder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from p2pfl import encoding
from p2pfl.errors import ConfigError, RemoteError, StoreError
from p2pfl.ids import PeerId, RunId, public_key_of
from p2pfl.trust import amendments as terms
from p2pfl.trust.amendments import (
    MAX_AMENDMENT_BYTES,
    Amendment,
    decode_amendment,
    encode_amendment,
    in_force,
)
from p2pfl.trust.certificates import (
    MAX_CERTIFICATE_BYTES,
    MAX_REVOCATION_BYTES,
    MAX_SIGNATURES,
    Certificate,
    Revocation,
    decode_certificate,
    decode_revocation,
    encode_certificate,
    encode_revocation,
    has_signed,
    order_of,
)
from p2pfl.trust.identity import PUBLIC_KEY_BYTES
from p2pfl.trust.successions import (
    MAX_SUCCESSION_BYTES,
    Succession,
    decode_succession,
    encode_succession,
)

__all__ = [
    "MAX_MEMBERS",
    "Membership",
    "Records",
    "Standing",
    "amended",
    "batches",
    "certificate_of",
    "check_root",
    "digest",
    "from_bytes",
    "genesis",
    "is_replaced",
    "is_revoked",
    "key_of",
    "members",
    "passed",
    "predecessors",
    "signatures_missing",
    "standing",
    "successor_of",
    "to_bytes",
]

# Certificates, and revocations, of one run; a roster of this size has about 2 MB.
MAX_MEMBERS = 4096
# Records of one kind, those with and those short of a quorum together.
_MAX_RECORDS = 2 * MAX_MEMBERS
_MAX_STATE_BYTES = MAX_MEMBERS * (MAX_CERTIFICATE_BYTES + 2 * MAX_REVOCATION_BYTES)

Standing: TypeAlias = Literal["member", "stranger", "revoked", "expired"]


class Records(NamedTuple):
    """Signed records of a run, each in its own encoding: what a roster message carries."""

    certificates: tuple[bytes, ...] = ()
    revocations: tuple[bytes, ...] = ()
    successions: tuple[bytes, ...] = ()
    amendments: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What one member knows of its run's membership.  Make it by `genesis`, which checks the root.

    certificates: the one that counts of each subject.   pending: those short of a quorum, by the SHA-256 of
    their content.   revocations: with or short of a quorum.   amendments: likewise, by the SHA-256 of their
    content.   successions: by old key, what `_with_succession` keeps of each.
    """

    run: RunId
    founders: tuple[PeerId, ...]
    quorum: int
    certificates: Mapping[PeerId, Certificate] = field(default_factory=dict)
    pending: Mapping[bytes, Certificate] = field(default_factory=dict)
    revocations: Mapping[PeerId, Revocation] = field(default_factory=dict)
    amendments: Mapping[bytes, Amendment] = field(default_factory=dict)
    successions: Mapping[PeerId, tuple[Succession, ...]] = field(default_factory=dict)


def key_of(certificate: Certificate) -> bytes:
    """SHA-256 of a certificate's content: what tells those short of a quorum apart."""
    return hashlib.sha256(certificate.content).digest()


def check_root(founders: Iterable[PeerId], quorum: int) -> None:
    """Raises ConfigError unless these founders and this quorum can be the root of a run."""
    names = list(founders)
    if not names:
        raise ConfigError("trust.founders is empty: nobody could admit anybody; name at least one founder")
    for founder in names:
        public_key_of(founder)
    if len(set(names)) != len(names):
        raise ConfigError("trust.founders names one founder twice; remove one of them")
    if not len(names) / 2 < quorum <= len(names):
        raise ConfigError(
            f"trust.quorum is {quorum} of {len(names)} founders, expected {len(names) // 2 + 1} to"
            f" {len(names)}: with half or fewer, two sides of a partition could decide against each other"
        )
    if quorum > MAX_SIGNATURES:
        raise ConfigError(
            f"trust.quorum is {quorum}, the most is {MAX_SIGNATURES}; name fewer founders and admit the rest"
        )


def genesis(run: RunId, founders: Iterable[PeerId], quorum: int) -> Membership:
    """The membership of a run that has only its founders.  Raises ConfigError."""
    names = tuple(sorted(founders))
    check_root(names, quorum)
    return Membership(run=run, founders=names, quorum=quorum)


def standing(state: Membership, peer: PeerId, now: float) -> Standing:
    """What `peer` is in the run at `now` (seconds since 1970).  O(founders + successions)."""
    # Asked of every message; most runs revoke and replace nobody.
    if (state.revocations or state.successions) and (is_revoked(state, peer) or is_replaced(state, peer)):
        return "revoked"
    if peer in state.founders:
        return "member"
    certificate = certificate_of(state, peer)
    if certificate is None:
        return "stranger"
    return "member" if now < certificate.expires_at else "expired"


def members(state: Membership, now: float) -> tuple[PeerId, ...]:
    """All members at `now`, in PeerId order."""
    names = {*state.founders, *state.certificates}
    names.update(one.new for kept in state.successions.values() for one in kept)
    return tuple(sorted(name for name in names if standing(state, name, now) == "member"))


def is_revoked(state: Membership, peer: PeerId) -> bool:
    """Whether a quorum has revoked `peer`."""
    revocation = state.revocations.get(peer)
    return revocation is not None and len(revocation.votes) >= state.quorum


def is_replaced(state: Membership, peer: PeerId) -> bool:
    """Whether another key stands, or several claim to stand, in `peer`'s place."""
    return peer in state.successions


def successor_of(state: Membership, peer: PeerId) -> PeerId | None:
    """The key that stands in `peer`'s place; None when there is none, or two that contradict each other."""
    kept = state.successions.get(peer, ())
    chosen = [one for one in kept if one.signer != peer] or list(kept)
    return chosen[0].new if len(chosen) == 1 else None


def predecessors(state: Membership, peer: PeerId) -> tuple[PeerId, ...]:
    """The keys that `peer` stands in the place of, itself left out; the nearest first."""
    found: list[PeerId] = []
    names = [peer]
    while names and state.successions:
        names = [
            old
            for old in sorted(state.successions)
            if successor_of(state, old) in names and old not in found and old != peer
        ]
        found += names
    return tuple(found)


def certificate_of(state: Membership, peer: PeerId) -> Certificate | None:
    """The certificate by which `peer` is a member: its own, or that of the key it stands in the place of."""
    if (own := state.certificates.get(peer)) is not None or not state.successions:
        return own
    inherited = [c for old in predecessors(state, peer) if (c := state.certificates.get(old)) is not None]
    return max(inherited, key=order_of, default=None)


def signatures_missing(state: Membership, certificate: Certificate) -> int:
    """How many more founders must sign before `certificate` admits; 0 when it does."""
    signed = sum(has_signed(certificate, f) for f in certificate.signatures if f in state.founders)
    return max(0, state.quorum - signed)


def passed(state: Membership) -> tuple[Amendment, ...]:
    """The amendments that a quorum has signed, by epoch.

    Two of one epoch take founders who sign both; everybody then takes the one whose content is greater.
    """
    found = [a for a in state.amendments.values() if len(a.signatures) >= state.quorum]
    by_epoch = {a.epoch: a for a in sorted(found, key=lambda a: a.content)}
    return tuple(by_epoch[epoch] for epoch in sorted(by_epoch))


def amended(state: Membership, number: int) -> tuple[Amendment, ...]:
    """The amendments that count in round `number`, by epoch."""
    return in_force(passed(state), number)


def batches(state: Membership, *, max_bytes: int = 48 * 1024, max_records: int = 192) -> list[Records]:
    """All records, split so that each batch fits one roster message.  Empty when there are none.

    Revocations come first, because they are what must not wait; certificates before the successions that
    follow from them.
    """
    rows = [(1, encode_revocation(state.revocations[name])) for name in sorted(state.revocations)]
    rows += [(0, data) for data in _certificates(state)]
    rows += [(2, data) for data in _successions(state)]
    rows += [(3, encode_amendment(state.amendments[key])) for key in sorted(state.amendments)]
    found: list[tuple[list[bytes], ...]] = []
    room = records = 0
    for column, data in rows:
        if len(data) > room or records == 0:
            found.append(([], [], [], []))
            room, records = max_bytes, max_records
        found[-1][column].append(data)
        room, records = room - len(data), records - 1
    return [Records(*map(tuple, columns)) for columns in found]


def digest(state: Membership) -> bytes:
    """SHA-256 of the root and every record: equal for members who have seen the same.  O(records)."""
    return hashlib.sha256(to_bytes(state)).digest()


def to_bytes(state: Membership) -> bytes:
    """The canonical bytes of `state`, for this node's own disk."""
    return encoding.pack(
        {
            1: encoding.hash_of(state.run),
            2: b"".join(encoding.key_of(founder) for founder in state.founders),
            3: state.quorum,
            4: _certificates(state),
            5: [encode_revocation(state.revocations[name]) for name in sorted(state.revocations)],
            6: _successions(state),
            7: [encode_amendment(state.amendments[key]) for key in sorted(state.amendments)],
        }
    )


def from_bytes(data: bytes) -> Membership:
    """What `to_bytes` wrote.  Signatures were verified before it was written, and are not again.

    Raises StoreError.
    """
    try:
        document = encoding.unpack(
            data, "its document", keys=range(1, 8), limit=_MAX_STATE_BYTES, max_items=_MAX_RECORDS
        )
        founders = encoding.rows(document[2], "its founders", size_bytes=PUBLIC_KEY_BYTES, most=MAX_MEMBERS)
        quorum = encoding.integer(document[3], "its quorum", most=MAX_MEMBERS)
        held = [
            decode_certificate(entry)
            for entry in _blobs(document[4], "a certificate", most_bytes=MAX_CERTIFICATE_BYTES)
        ]
        revocations = [
            decode_revocation(entry)
            for entry in _blobs(document[5], "a revocation", most_bytes=MAX_REVOCATION_BYTES)
        ]
        kept: dict[PeerId, tuple[Succession, ...]] = {}
        for entry in _blobs(document[6], "a succession", most_bytes=MAX_SUCCESSION_BYTES):
            one = decode_succession(entry)
            kept[one.old] = (*kept.get(one.old, ()), one)
        amendments = [
            decode_amendment(entry)
            for entry in _blobs(document[7], "an amendment", most_bytes=MAX_AMENDMENT_BYTES)
        ]
        return Membership(
            run=encoding.run(document[1], "its run"),
            founders=tuple(encoding.peer(key, "a founder") for key in founders),
            quorum=quorum,
            certificates={c.subject: c for c in held if len(c.signatures) >= quorum},
            pending={key_of(c): c for c in held if len(c.signatures) < quorum},
            revocations={r.subject: r for r in revocations},
            successions=kept,
            amendments={terms.key_of(a): a for a in amendments},
        )
    except RemoteError as error:
        raise StoreError(f"the stored membership is damaged: {error}; run `p2pfl node restore`") from error


def _certificates(state: Membership) -> list[bytes]:
    counting = [encode_certificate(state.certificates[name]) for name in sorted(state.certificates)]
    return counting + [encode_certificate(state.pending[key]) for key in sorted(state.pending)]


def _successions(state: Membership) -> list[bytes]:
    # In the order in which they were made, so that a reader meets a key before the one that follows it.
    kept = [one for old in sorted(state.successions) for one in state.successions[old]]
    return [encode_succession(one) for one in sorted(kept, key=lambda s: (s.issued_at, s.content))]


def _blobs(value: object, what: str, *, most_bytes: int) -> list[bytes]:
    entries = encoding.items(value, what, most=_MAX_RECORDS)
    return [encoding.blob(entry, what, most_bytes=most_bytes) for entry in entries]
