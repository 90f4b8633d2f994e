"""How records enter a membership: each is checked by itself, and joined with what is held.

Whoever brings a record, it counts by its signatures alone.  What is held already costs no verification,
what has a false signature costs one, and what one founder or one member can fill is limited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeAlias

from p2pfl.errors import RefusedError, RemoteError
from p2pfl.ids import PeerId, RunId, short
from p2pfl.trust import amendments as terms
from p2pfl.trust.amendments import decode_amendment, encode_amendment, has_endorsed, join_amendments
from p2pfl.trust.certificates import (
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
    order_of,
)
from p2pfl.trust.membership import (
    MAX_MEMBERS,
    Membership,
    Records,
    is_revoked,
    key_of,
    predecessors,
)
from p2pfl.trust.successions import (
    MAX_CHAIN,
    Succession,
    decode_petition,
    decode_succession,
    encode_succession,
    is_signed,
    subject_of,
)

__all__ = ["MAX_INVITED", "MAX_PENDING", "admit", "amend", "merge", "petition", "revoke", "succeed"]

# Revocations, and amendments, short of a quorum that one founder may have open, so that none can fill the
# value with them.
MAX_PENDING = 32
# Certificates short of a quorum of one founder: a consortium of this size, invited or renewed at once.
MAX_INVITED = 256
# Amendments with a quorum: a run whose terms change more often needs another agreement.
MAX_AMENDMENTS = 256


def petition(state: Membership, peer: PeerId, frame: bytes, now: float) -> tuple[Membership, bool]:
    """`state` after the one frame that a stranger may send in the lobby, and whether that changed it.

    peer: the key that the connection proved, so a stolen ticket is of no use.   A certificate short of a
    quorum adds to the signatures that are held; whether `peer` is a member then is for `standing` to say.
    Raises RefusedError, whose message may be sent back, on anything that is of no use to `peer`.
    """
    try:
        asked = decode_petition(frame)
        subject = subject_of(asked)
    except RemoteError as error:
        raise RefusedError(str(error), peer) from error
    if subject != peer:
        raise RefusedError("this ticket is for another key; ask for one for yours", peer)
    after, _ = admit(state, asked.certificate, now)
    for one in asked.successions:
        after, _ = succeed(after, one)
    return after, after is not state


def admit(state: Membership, certificate: Certificate, now: float) -> tuple[Membership, bool]:
    """`state` with a certificate that founders or its subject present, and whether that changed it.

    Short of a quorum its signatures are kept.   Raises RefusedError, with the reason, when it is of no use
    or used too late; when and by whom an earlier one of the same subject was used does not matter.
    """
    subject = certificate.subject
    held = state.certificates.get(subject)
    if now >= max(c.expires_at for c in (certificate, held) if c is not None):
        raise RefusedError(f"the certificate of {short(subject)} has expired; ask for a new one", subject)
    if now > certificate.use_by and held is None:
        raise RefusedError(f"the ticket of {short(subject)} was not used in time; ask for a new one", subject)
    return _presented(state, _with_certificate, encode_certificate(certificate), subject, now)


def revoke(state: Membership, revocation: Revocation) -> tuple[Membership, bool]:
    """`state` with the votes of `revocation`, and whether that changed it.  Raises RefusedError.

    Unlike a certificate, a revocation has no hour before or after which it is void.
    """
    return _presented(state, _with_revocation, encode_revocation(revocation), revocation.subject, 0.0)


def succeed(state: Membership, succession: Succession) -> tuple[Membership, bool]:
    """`state` with one key in the place of another, and whether that changed it.  Raises RefusedError."""
    return _presented(state, _with_succession, encode_succession(succession), succession.new, 0.0)


def amend(state: Membership, amendment: terms.Amendment) -> tuple[Membership, bool]:
    """`state` with the signatures of `amendment`, and whether that changed it.  Raises RefusedError."""
    signer = min(amendment.signatures, default=None)
    return _presented(state, _with_amendment, encode_amendment(amendment), signer, 0.0)


def merge(state: Membership, records: Records, now: float) -> tuple[Membership, bool, tuple[str, ...]]:
    """`state` with the records of a member's roster, whether that changed it, and what was wrong with others.

    Wrong is what no honest member passes on: malformed, falsely signed, of another run.  What an honest one
    may still hold, the certificate of a peer that was revoked or one too many for this node, is left out
    without a word.   Never raises.   `now` only decides which expired certificate makes room for another.
    """
    rejected: list[str] = []
    merged = state
    columns: tuple[tuple[_Add, tuple[bytes, ...]], ...] = (
        (_with_revocation, records.revocations),
        (_with_certificate, records.certificates),
        (_with_succession, records.successions),
        (_with_amendment, records.amendments),
    )
    for add, data in ((add, data) for add, column in columns for data in column):
        try:
            merged = add(merged, data, now)
        except RefusedError:
            continue
        except RemoteError as error:
            rejected.append(str(error))
    return merged, merged is not state, tuple(rejected)


_Add: TypeAlias = Callable[[Membership, bytes, float], Membership]


def _presented(
    state: Membership, add: _Add, data: bytes, peer: PeerId | None, now: float
) -> tuple[Membership, bool]:
    try:
        merged = add(state, data, now)
    except RemoteError as error:
        raise RefusedError(str(error), peer) from error
    return merged, merged is not state


def _check_signers(state: Membership, run: RunId, signers: Iterable[PeerId], what: str) -> None:
    if run != state.run:
        raise RemoteError(f"{what} is of run {short(run)}, this is {short(state.run)}")
    for name in signers:
        if name not in state.founders:
            raise RemoteError(f"{what} is signed by {short(name)}, who is no founder")


def _is_free(name: PeerId, signed: Iterable[Iterable[PeerId]], most: int) -> bool:
    """Whether `name` is on fewer than `most` of the open records whose signers are `signed`."""
    return sum(name in signers for signers in signed) < most


def _with_revocation(state: Membership, data: bytes, _: float = 0.0) -> Membership:
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
    after = replace(state, revocations={**state.revocations, subject: joined})
    return _without(after, subject) if len(joined.votes) >= state.quorum else after


def _has_room(state: Membership, revocation: Revocation) -> bool:
    pending = [r.votes for r in state.revocations.values() if len(r.votes) < state.quorum]
    if len(revocation.votes) >= state.quorum:
        return len(state.revocations) - len(pending) < MAX_MEMBERS
    return any(_is_free(name, pending, MAX_PENDING) for name in revocation.votes)


def _without(state: Membership, subject: PeerId) -> Membership:
    """`state` without the certificates of `subject`, and without the successions that hung on them."""
    certificates = {name: c for name, c in state.certificates.items() if name != subject}
    pending = {key: c for key, c in state.pending.items() if c.subject != subject}
    return _pruned(replace(state, certificates=certificates, pending=pending))


def _pruned(state: Membership) -> Membership:
    """`state` with only those successions that lead back to a certificate."""
    names, kept = set(state.certificates), dict[PeerId, tuple[Succession, ...]]()
    while reached := names & (state.successions.keys() - kept.keys()):
        kept.update((old, state.successions[old]) for old in reached)
        names.update(one.new for old in reached for one in kept[old])
    return state if len(kept) == len(state.successions) else replace(state, successions=kept)


def _with_certificate(state: Membership, data: bytes, now: float) -> Membership:
    new = decode_certificate(data)
    subject, what = new.subject, f"the certificate of {short(new.subject)}"
    if is_revoked(state, subject):
        raise RefusedError(f"{what} was revoked, for good; a new key can be a new member")
    _check_signers(state, new.run, new.signatures, what)
    counting, key = state.certificates.get(subject), key_of(new)
    is_same = counting is not None and counting.content == new.content
    held = counting if is_same else state.pending.get(key)
    for name in new.signatures:
        if held is not None and held.signatures.get(name) == new.signatures[name]:
            continue
        if not has_signed(new, name):
            raise RemoteError(f"{what} has a false signature of {short(name)}")
    joined = new if held is None else join_certificates(held, new)
    if joined == held or (counting is not None and not is_same and order_of(joined) <= order_of(counting)):
        return state
    if len(joined.signatures) < state.quorum:
        return replace(state, pending={**_seats(state, joined, held, now), key: joined})
    certificates = dict(state.certificates)
    if counting is None and len(certificates) >= MAX_MEMBERS:
        oldest = min(certificates.values(), key=lambda c: (c.expires_at, c.subject))
        if now < oldest.expires_at:
            raise RefusedError(f"{what} is one too many: the run has {MAX_MEMBERS} members")
        del certificates[oldest.subject]
    certificates[subject] = joined
    pending = {
        k: c for k, c in state.pending.items() if c.subject != subject or order_of(c) > order_of(joined)
    }
    return _pruned(replace(state, certificates=certificates, pending=pending))


def _seats(
    state: Membership, certificate: Certificate, held: Certificate | None, now: float
) -> dict[bytes, Certificate]:
    """The certificates short of a quorum among which there is room for one more of these signers."""
    pending = dict(state.pending)
    for _ in range(2):
        signed = [c.signatures for c in pending.values()]
        if held is not None or any(_is_free(name, signed, MAX_INVITED) for name in certificate.signatures):
            return pending
        pending = {key: c for key, c in pending.items() if now < c.expires_at}
    what = f"the certificate of {short(certificate.subject)}"
    raise RefusedError(f"{what} is one too many: its signers have {MAX_INVITED} open")


def _with_succession(state: Membership, data: bytes, _: float = 0.0) -> Membership:
    """Kept of an old key: the last that its recovery key signed, and two of its own that contradict."""
    new = decode_succession(data)
    what = f"the succession of {short(new.old)}"
    kept = state.successions.get(new.old, ())
    if new in kept:
        return state
    _check_signers(state, new.run, (), what)
    if new.old in state.founders or new.new in state.founders:
        raise RemoteError(f"{what} moves a founder, whose key the agreement names")
    line = (new.old, *predecessors(state, new.old))
    roots = [c for name in line if (c := state.certificates.get(name)) is not None]
    if not roots and not _is_successor(state, new.old):
        raise RefusedError(f"{what}: it is no member, or was revoked")
    if len(line) > MAX_CHAIN:
        raise RefusedError(f"{what}: {MAX_CHAIN} keys followed each other already; renew its certificate")
    if new.signer != new.old and new.signer not in [c.recovery for c in roots]:
        raise RemoteError(f"{what} is signed by a key that may not")
    if not is_signed(new):
        raise RemoteError(f"{what} has a false signature")
    recovered = [one for one in (*kept, new) if one.signer != new.old]
    own = sorted((one for one in (*kept, new) if one.signer == new.old), key=lambda s: s.content)
    chosen = (*own[:2], *sorted(recovered, key=lambda s: (s.issued_at, s.content))[-1:])
    if set(chosen) == set(kept):
        return state
    if new.old not in state.successions and len(state.successions) >= MAX_MEMBERS:
        raise RefusedError(f"{what} is one too many: the run holds {MAX_MEMBERS}")
    return _pruned(replace(state, successions={**state.successions, new.old: chosen}))


def _is_successor(state: Membership, peer: PeerId) -> bool:
    """Whether some key names `peer` in its place, be it that it counts or not."""
    return any(one.new == peer for kept in state.successions.values() for one in kept)


def _with_amendment(state: Membership, data: bytes, _: float = 0.0) -> Membership:
    new = decode_amendment(data)
    what = f"amendment {new.epoch}"
    _check_signers(state, new.run, new.signatures, what)
    key = terms.key_of(new)
    held = state.amendments.get(key)
    for name in new.signatures:
        if held is not None and held.signatures.get(name) == new.signatures[name]:
            continue
        if not has_endorsed(new, name):
            raise RemoteError(f"{what} has a false signature of {short(name)}")
    joined = new if held is None else join_amendments(held, new)
    if joined == held:
        return state
    open_ = [one.signatures for one in state.amendments.values() if len(one.signatures) < state.quorum]
    if len(joined.signatures) >= state.quorum:
        if len(state.amendments) - len(open_) >= MAX_AMENDMENTS:
            raise RefusedError(f"{what} is one too many: {MAX_AMENDMENTS} have passed")
    elif held is None and not any(_is_free(name, open_, MAX_PENDING) for name in new.signatures):
        raise RefusedError(f"{what} is one too many: its signers have {MAX_PENDING} open")
    return replace(state, amendments={**state.amendments, key: joined})
