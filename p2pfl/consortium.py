"""Who is in a run, whom this site believes and tells, and where the others can be reached.

It joins four values that know nothing of each other: the signed membership (trust/), this site's own
relations and what it has learned of others (trust/), and the signed address book (net/).  Signing is the
driver's: what arrives here is signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from p2pfl.errors import P2PFLError, RefusedError, RemoteError, StoreError
from p2pfl.events import Fact, Roster
from p2pfl.ids import PeerId, RunId, parse_peer_id
from p2pfl.net import discovery
from p2pfl.net.discovery import AddressBook, AddressRecord
from p2pfl.trust import admission, amendments, certificates, membership, relations, reputation, successions
from p2pfl.trust.membership import Membership, Records
from p2pfl.trust.relations import Level, Relations, Task
from p2pfl.trust.reputation import Reputation

__all__ = ["Consortium", "Outcome"]

# Address records in one ROSTER message: each has at most about 1.3 KB, a frame 64 KiB.
_RECORDS_PER_MESSAGE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What merging a roster did: whether anything was new, and what was wrong with it."""

    changed: bool
    faults: tuple[str, ...]


class _Saved(msgspec.Struct, forbid_unknown_fields=True, array_like=True):
    membership: bytes
    relations: bytes
    addresses: bytes
    reputation: bytes = b""


class Consortium:
    """One site's view of its consortium.  `verify(peer, data, signature)` judges address records."""

    def __init__(
        self,
        state: Membership,
        *,
        own: Relations | None = None,
        verify: Callable[[PeerId, bytes, bytes], bool] = lambda *_: False,
    ) -> None:
        self.membership = state
        self.relations = own or Relations()
        self.reputation = Reputation()
        self.book = AddressBook()
        self._verify = verify
        self._digest: tuple[Membership, AddressBook, bytes] | None = None
        self._saved: tuple[tuple[Membership, Relations, AddressBook, Reputation], bytes] | None = None
        self._members: tuple[float, Membership, tuple[PeerId, ...]] | None = None

    def members(self, now: float) -> tuple[PeerId, ...]:
        """All members at `now`, by PeerId."""
        # Asked several times an event; membership changes rarely, and expiry is counted in days.
        known = self._members
        if known is None or known[1] is not self.membership or not 0 <= now - known[0] < 1.0:
            self._members = known = (now, self.membership, membership.members(self.membership, now))
        return known[2]

    def standing(self, peer: PeerId, now: float) -> str:
        """`member`, `stranger`, `revoked`, `expired`, or `banned` by this site alone."""
        standing = membership.standing(self.membership, peer, now)
        # A revocation is everybody's word, and closes the books; a ban is this site's, and keeps them.
        return "banned" if peer in self.relations.banned and standing != "revoked" else standing

    def may_share(self, peer: PeerId, task: Task = "weights") -> bool:
        """Whether what is of `task`, this site's updates for one, may go to `peer`."""
        return relations.share_level(self.relations, peer, task) >= Level.LIMITED

    def hears(self, peer: PeerId) -> bool:
        """Whether this site wants updates of `peer`, to mix them or, in quarantine, to score them."""
        return relations.accepts(self.relations, peer)

    def accepts(self, peer: PeerId, task: Task = "weights") -> bool:
        """Whether what `peer` sends of `task` is used here; of weights, mixed."""
        return self.accept_level(peer, task) >= Level.LIMITED

    def own_level(self, peer: PeerId, task: Task = "weights") -> Level:
        """How far this site's people want `peer` to be believed."""
        return relations.accept_level(self.relations, peer, task)

    def accept_level(self, peer: PeerId, task: Task = "weights") -> Level:
        """How far `peer` is believed: as far as this site's people say, and its reputation allows."""
        return reputation.lowered(self.own_level(peer, task), reputation.ceiling(self.reputation, peer))

    def inviters(self, peers: Iterable[PeerId]) -> dict[PeerId, tuple[PeerId, ...]]:
        """The founders who signed the certificate of each of `peers` that is no founder."""
        found = {p: membership.certificate_of(self.membership, p) for p in peers}
        return {p: tuple(sorted(c.signatures)) for p, c in found.items() if c is not None}

    def digest(self) -> bytes:
        """SHA-256 of membership and address book: equal where the same records are known."""
        # Asked for every HELLO; neither value ever changes in place, so its digest is kept with it.
        known = self._digest
        if known is None or known[0] is not self.membership or known[1] is not self.book:
            data = membership.digest(self.membership) + discovery.book_to_bytes(self.book)
            self._digest = known = (self.membership, self.book, hashlib.sha256(data).digest())
        return known[2]

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where `peer` says it can be dialled."""
        return discovery.addresses_of(self.book, peer)

    def parts(self) -> list[Roster]:
        """Everything there is to tell, in messages that fit a frame; revocations first."""
        said = [Roster(**batch._asdict()) for batch in membership.batches(self.membership)]
        records = [discovery.encode_record(self.book.records[p]) for p in sorted(self.book.records)]
        starts = range(0, len(records), _RECORDS_PER_MESSAGE)
        said += [Roster(addresses=tuple(records[i : i + _RECORDS_PER_MESSAGE])) for i in starts]
        return said

    def merge(self, roster: Roster, now: float) -> Outcome:
        """Take in a member's roster.  Never raises: what is wrong with it is in the outcome."""
        held = Records(roster.certificates, roster.revocations, roster.successions, roster.amendments)
        state, changed, rejected = admission.merge(self.membership, held, now)
        self._become(state)
        records: list[AddressRecord] = []
        faults = ["roster"] if rejected else []
        for data in roster.addresses:
            try:
                records.append(discovery.decode_record(data))
            except RemoteError:
                faults.append("address-record")
        return Outcome(changed=self._learn(records, now) or changed, faults=tuple(faults))

    def publish(self, record: AddressRecord, now: float) -> bool:
        """Take in this site's own addresses; returns whether they are news."""
        return self._learn([record], now)

    def _become(self, state: Membership) -> None:
        """Take up a later membership; what this site decided of a key holds of the one in its place, too."""
        before = self.membership.successions
        for old in state.successions:
            if state.successions[old] != before.get(old) and (new := membership.successor_of(state, old)):
                self.relations = relations.rename(self.relations, old, new)
                self.reputation = reputation.rename(self.reputation, old, new)
        self.membership = state

    def _learn(self, records: list[AddressRecord], now: float) -> bool:
        members = self.members(now)
        self.book, changed = discovery.merge(
            discovery.prune(self.book, members), records, members=members, verify=self._verify, now=now
        )
        return changed

    def command(self, verb: str, arguments: Mapping[str, Any], now: float) -> list[Fact]:
        """Carry out a verb of this site's own people.

        `admit` {certificate}, `succeed` {succession}, `amend` {amendment}, `ban` {peer, revocation},
        `forget` {peer}, `set` {peer, share, accept, for}.
        Returns facts; a refusal is a fact, too.
        """
        try:
            return [self._command(verb, arguments, now)]
        except (P2PFLError, KeyError, TypeError, AttributeError) as error:
            # The last three: an argument is missing, or not what it should be.
            return [
                Fact(
                    event="command refused",
                    level="warning",
                    fields={"verb": verb, "reason": str(error) or type(error).__name__},
                )
            ]

    def _command(self, verb: str, arguments: Mapping[str, Any], now: float) -> Fact:
        match verb:
            case "admit":
                certificate = certificates.decode_certificate(arguments["certificate"])
                state, changed = admission.admit(self.membership, certificate, now)
                self._become(state)
                subject = certificate.subject
                if (open_ := state.pending.get(membership.key_of(certificate))) is not None:
                    signed = {"signatures": len(open_.signatures), "quorum": state.quorum}
                    return Fact(event="admission signed", fields={"peer": subject, **signed})
                return Fact(event="member admitted", fields={"peer": subject, "new": changed})
            case "succeed":
                succession = successions.decode_succession(arguments["succession"])
                state, _ = admission.succeed(self.membership, succession)
                self._become(state)
                return Fact(event="key replaced", fields={"old": succession.old, "peer": succession.new})
            case "amend":
                amendment = amendments.decode_amendment(arguments["amendment"])
                state, _ = admission.amend(self.membership, amendment)
                self._become(state)
                held = state.amendments.get(amendments.key_of(amendment), amendment)
                signed = {"signatures": len(held.signatures), "quorum": state.quorum}
                return Fact(event="amendment signed", fields={"epoch": amendment.epoch, **signed})
            case "publish":
                changed = self.publish(arguments["record"], now)
                return Fact(event="addresses published", level="debug", fields={"new": changed})
            case "ban":
                peer = parse_peer_id(arguments["peer"])
                self.relations = relations.ban(self.relations, peer)
                final = False
                if revocation := arguments.get("revocation"):
                    decoded = certificates.decode_revocation(revocation)
                    self.membership, _ = admission.revoke(self.membership, decoded)
                    final = membership.is_revoked(self.membership, peer)
                return Fact(event="member banned", level="warning", fields={"peer": peer, "revoked": final})
            case "forget":
                peer = parse_peer_id(arguments["peer"])
                self.relations = relations.forget(self.relations, peer)
                self.reputation = reputation.forget(self.reputation, peer)
                return Fact(event="trust forgotten", fields={"peer": peer})
            case "set":
                peer = parse_peer_id(arguments["peer"])
                share, accept = arguments.get("share"), arguments.get("accept")
                task = arguments.get("for", "weights")
                self.relations = relations.set_level(
                    self.relations,
                    peer,
                    share=None if share is None else relations.parse_level(share),
                    accept=None if accept is None else relations.parse_level(accept),
                    task=task,
                )
                fields = {"peer": peer, "share": share, "accept": accept, "for": task}
                return Fact(event="trust set", fields=fields)
            case _:
                raise RefusedError(f"there is no command {verb!r}")

    def to_bytes(self) -> bytes:
        """For this node's own disk."""
        parts = (self.membership, self.relations, self.book, self.reputation)
        # Every commit asks, and hardly any finds another value than the last.
        if self._saved is None or any(a is not b for a, b in zip(self._saved[0], parts, strict=True)):
            saved = _Saved(
                membership.to_bytes(self.membership),
                relations.to_bytes(self.relations),
                discovery.book_to_bytes(self.book),
                reputation.to_bytes(self.reputation),
            )
            self._saved = (parts, msgspec.msgpack.encode(saved))
        return self._saved[1]

    def restore(self, data: bytes, now: float) -> None:
        """Add what `to_bytes` wrote to what is known already (a ticket, say).  Raises StoreError."""
        try:
            saved = msgspec.msgpack.decode(data, type=_Saved)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise StoreError(
                f"the stored trust state is damaged: {error}; run `p2pfl node restore`"
            ) from error
        fresh, self.membership = self.membership, membership.from_bytes(saved.membership)
        for batch in membership.batches(fresh):
            self.membership, _, _ = admission.merge(self.membership, batch, now)
        stored = relations.from_bytes(saved.relations)
        self.relations = replace(stored, features_to=self.relations.features_to)
        self.reputation = reputation.from_bytes(saved.reputation) if saved.reputation else Reputation()
        self.book = discovery.book_from_bytes(saved.addresses)

    @staticmethod
    def of(run: RunId, founders: tuple[PeerId, ...], quorum: int, **rest: Any) -> Consortium:
        """A consortium that has only its founders.  Raises ConfigError."""
        return Consortium(membership.genesis(run, founders, quorum), **rest)
