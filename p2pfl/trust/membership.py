"""Who belongs to a run: founders, whom a quorum of them admitted, and whom a quorum revoked.

Theory of operation.  `Membership` is a value that every member holds and merges with its neighbours'.
Certificates and revocations form a join-semilattice: merging is commutative, associative and idempotent, so
members who have seen the same records, in any order and however often, hold the same value and digest.

  * A founder is a member without a certificate.
  * A certificate counts with the signatures of at least `quorum` founders; quorum > founders / 2, so two
    halves of a partition cannot both admit or revoke, and a minority can do neither.
  * A revocation counts with the votes of a quorum, beats every certificate, and is final within the run: who
    lost a key comes back as a new member under a new one.  Fewer votes are kept and passed on, so that
    founders who vote at different times and places add up.
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
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from p2pfl import encoding
from p2pfl.errors import ConfigError, RefusedError, RemoteError, StoreError
from p2pfl.ids import PeerId, RunId, public_key_of, short
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
    has_voted,
    join_certificates,
    join_revocations,
)
from p2pfl.trust.identity import PUBLIC_KEY_BYTES

__all__ = [
    "MAX_MEMBERS",
    "MAX_PENDING",
    "Membership",
    "Standing",
    "check_root",
    "genesis",
    "standing",
    "members",
    "is_revoked",
    "signatures_missing",
    "petition",
    "admit",
    "revoke",
    "merge",
    "batches",
    "digest",
    "to_bytes",
    "from_bytes",
]

# Certificates, and revocations, of one run; a roster of this size has about 2 MB.
MAX_MEMBERS = 4096
# Revocations short of a quorum that one founder may have open, so that none can fill the value with them.
MAX_PENDING = 32
# Revocations with and short of a quorum together.
_MAX_RECORDS = 2 * MAX_MEMBERS
_MAX_STATE_BYTES = MAX_MEMBERS * (MAX_CERTIFICATE_BYTES + 2 * MAX_REVOCATION_BYTES)

Standing: TypeAlias = Literal["member", "stranger", "revoked", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What one member knows of its run's membership.  Make it by `genesis`, which checks the root.

    certificates: the one that counts of each subject.   revocations: with or short of a quorum.
    """

    run: RunId
    founders: tuple[PeerId, ...]
    quorum: int
    certificates: Mapping[PeerId, Certificate] = field(default_factory=dict)
    revocations: Mapping[PeerId, Revocation] = field(default_factory=dict)


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
    """What `peer` is in the run at `now` (seconds since 1970).  O(founders)."""
    if is_revoked(state, peer):
        return "revoked"
    if peer in state.founders:
        return "member"
    certificate = state.certificates.get(peer)
    if certificate is None:
        return "stranger"
    return "member" if now < certificate.expires_at else "expired"


def members(state: Membership, now: float) -> tuple[PeerId, ...]:
    """All members at `now`, in PeerId order."""
    names = set(state.founders) | set(state.certificates)
    return tuple(sorted(name for name in names if standing(state, name, now) == "member"))


def is_revoked(state: Membership, peer: PeerId) -> bool:
    """Whether a quorum has revoked `peer`."""
    revocation = state.revocations.get(peer)
    return revocation is not None and len(revocation.votes) >= state.quorum


def signatures_missing(state: Membership, certificate: Certificate) -> int:
    """How many more founders must sign before `certificate` admits; 0 when it does."""
    signed = sum(has_signed(certificate, f) for f in certificate.signatures if f in state.founders)
    return max(0, state.quorum - signed)


def petition(state: Membership, peer: PeerId, frame: bytes, now: float) -> tuple[Membership, bool]:
    """`state` after the one frame that a stranger may send in the lobby: an encoded certificate of its own.

    peer: the key that the connection proved, so a stolen ticket is of no use.   Raises RefusedError, whose
    message may be sent back, on anything but a certificate that admits `peer`.
    """
    try:
        certificate = decode_certificate(frame)
    except RemoteError as error:
        raise RefusedError(str(error), peer) from error
    if certificate.subject != peer:
        raise RefusedError("this ticket is for another key; ask for one for yours", peer)
    return admit(state, certificate, now)


def admit(state: Membership, certificate: Certificate, now: float) -> tuple[Membership, bool]:
    """`state` with a certificate that was presented by its subject, and whether that changed it.

    Raises RefusedError, with the reason, when it does not admit or is used too late.
    """
    subject = certificate.subject
    held = state.certificates.get(subject)
    is_known = held is not None and held.content == certificate.content
    if now >= certificate.expires_at:
        raise RefusedError(f"the certificate of {short(subject)} has expired; ask for a new one", subject)
    if now > certificate.use_by and not is_known:
        raise RefusedError(f"the ticket of {short(subject)} was not used in time; ask for a new one", subject)
    try:
        merged = _with_certificate(state, encode_certificate(certificate), now)
    except RemoteError as error:
        raise RefusedError(str(error), subject) from error
    return merged, merged is not state


def revoke(state: Membership, revocation: Revocation) -> tuple[Membership, bool]:
    """`state` with the votes of `revocation`, and whether that changed it.  Raises RefusedError.

    Unlike a certificate, a revocation has no hour before or after which it is void.
    """
    try:
        merged = _with_revocation(state, encode_revocation(revocation))
    except RemoteError as error:
        raise RefusedError(str(error), revocation.subject) from error
    return merged, merged is not state


def merge(
    state: Membership, certificates: Iterable[bytes], revocations: Iterable[bytes], now: float
) -> tuple[Membership, bool, tuple[str, ...]]:
    """`state` with the records of a member's roster, whether that changed it, and what was wrong with others.

    Wrong is what no honest member passes on: malformed, falsely signed, short of a quorum, of another run.
    What an honest one may still hold, the certificate of a peer that was revoked or one too many for this
    node, is left out without a word.   A record that is held already costs no verification, one with a false
    signature costs one.   Never raises.
    `now` only decides which expired certificate makes room when MAX_MEMBERS are held.
    """
    rejected: list[str] = []
    merged = state
    for data in revocations:
        try:
            merged = _with_revocation(merged, data)
        except RefusedError:
            continue
        except RemoteError as error:
            rejected.append(str(error))
    for data in certificates:
        try:
            merged = _with_certificate(merged, data, now)
        except RefusedError:
            continue
        except RemoteError as error:
            rejected.append(str(error))
    return merged, merged is not state, tuple(rejected)


def batches(
    state: Membership, *, max_bytes: int = 48 * 1024, max_records: int = 192
) -> list[tuple[tuple[bytes, ...], tuple[bytes, ...]]]:
    """All records as (certificates, revocations), split so that each batch fits one roster message.

    Revocations come first, because they are what must not wait.  Empty when there are none.
    """
    rows = [(1, encode_revocation(state.revocations[name])) for name in sorted(state.revocations)]
    rows += [(0, encode_certificate(state.certificates[name])) for name in sorted(state.certificates)]
    found: list[tuple[list[bytes], list[bytes]]] = []
    room = records = 0
    for column, data in rows:
        if len(data) > room or records == 0:
            found.append(([], []))
            room, records = max_bytes, max_records
        found[-1][column].append(data)
        room, records = room - len(data), records - 1
    return [(tuple(left), tuple(right)) for left, right in found]


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
            4: [encode_certificate(state.certificates[name]) for name in sorted(state.certificates)],
            5: [encode_revocation(state.revocations[name]) for name in sorted(state.revocations)],
        }
    )


def from_bytes(data: bytes) -> Membership:
    """What `to_bytes` wrote.  Signatures were verified before it was written, and are not again.

    Raises StoreError.
    """
    try:
        document = encoding.unpack(
            data, "its document", keys=range(1, 6), limit=_MAX_STATE_BYTES, max_items=_MAX_RECORDS
        )
        founders = encoding.rows(document[2], "its founders", size_bytes=PUBLIC_KEY_BYTES, most=MAX_MEMBERS)
        certificates = [
            decode_certificate(encoding.blob(entry, "a certificate", most_bytes=MAX_CERTIFICATE_BYTES))
            for entry in encoding.items(document[4], "its certificates", most=_MAX_RECORDS)
        ]
        revocations = [
            decode_revocation(encoding.blob(entry, "a revocation", most_bytes=MAX_REVOCATION_BYTES))
            for entry in encoding.items(document[5], "its revocations", most=_MAX_RECORDS)
        ]
        return Membership(
            run=encoding.run(document[1], "its run"),
            founders=tuple(encoding.peer(key, "a founder") for key in founders),
            quorum=encoding.integer(document[3], "its quorum", most=MAX_MEMBERS),
            certificates={c.subject: c for c in certificates},
            revocations={r.subject: r for r in revocations},
        )
    except RemoteError as error:
        raise StoreError(f"the stored membership is damaged: {error}; run `p2pfl node restore`") from error


def _check_signers(state: Membership, run: RunId, signers: Iterable[PeerId], what: str) -> None:
    if run != state.run:
        raise RemoteError(f"{what} is of run {short(run)}, this is {short(state.run)}")
    for name in signers:
        if name not in state.founders:
            raise RemoteError(f"{what} is signed by {short(name)}, who is no founder")


def _with_revocation(state: Membership, data: bytes) -> Membership:
    new = decode_revocation(data)
    subject, what = new.subject, f"the revocation of {short(new.subject)}"
    _check_signers(state, new.run, new.votes, what)
    held = state.revocations.get(subject)
    fresh = [name for name in new.votes if held is None or held.votes.get(name) != new.votes[name]]
    for name in fresh:
        if not has_voted(new, name):
            raise RemoteError(f"{what} has a false signature of {short(name)}")
    joined = new if held is None else join_revocations(held, new)
    if joined == held:
        return state
    if held is None and not _has_room(state, joined):
        raise RefusedError(f"{what} is one too many: its voters have {MAX_PENDING} open, or the run is full")
    revocations = {**state.revocations, subject: joined}
    certificates = state.certificates
    if len(joined.votes) >= state.quorum and subject in certificates:
        certificates = {name: c for name, c in certificates.items() if name != subject}
    return replace(state, certificates=certificates, revocations=revocations)


def _has_room(state: Membership, revocation: Revocation) -> bool:
    pending = [r for r in state.revocations.values() if len(r.votes) < state.quorum]
    if len(revocation.votes) >= state.quorum:
        return len(state.revocations) - len(pending) < MAX_MEMBERS
    return any(sum(name in r.votes for r in pending) < MAX_PENDING for name in revocation.votes)


def _with_certificate(state: Membership, data: bytes, now: float) -> Membership:
    new = decode_certificate(data)
    subject, what = new.subject, f"the certificate of {short(new.subject)}"
    if is_revoked(state, subject):
        raise RefusedError(f"{what} was revoked, for good; a new key can be a new member")
    _check_signers(state, new.run, new.signatures, what)
    if len(new.signatures) < state.quorum:
        raise RemoteError(f"{what} has {len(new.signatures)} of {state.quorum} founders' signatures")
    held = state.certificates.get(subject)
    is_same = held is not None and held.content == new.content
    for name in new.signatures:
        if is_same and held is not None and held.signatures.get(name) == new.signatures[name]:
            continue
        if not has_signed(new, name):
            raise RemoteError(f"{what} has a false signature of {short(name)}")
    joined = new if held is None else join_certificates(held, new)
    if joined == held:
        return state
    certificates = dict(state.certificates)
    if held is None and len(certificates) >= MAX_MEMBERS:
        oldest = min(certificates.values(), key=lambda c: (c.expires_at, c.subject))
        if now < oldest.expires_at:
            raise RefusedError(f"{what} is one too many: the run has {MAX_MEMBERS} members")
        del certificates[oldest.subject]
    certificates[subject] = joined
    return replace(state, certificates=certificates)
