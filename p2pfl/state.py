"""Everything one participant knows, and the verbs that all parts of the peer use: emit, send, commit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl import ledger as ledgers
from p2pfl.aggregation import mixer_of
from p2pfl.consortium import Consortium
from p2pfl.events import (
    Body,
    Commit,
    Effect,
    Fact,
    Header,
    Hello,
    Kind,
    Message,
    Notice,
    Penalise,
    Send,
    Trained,
    Validated,
    Vector,
)
from p2pfl.gossip.links import Links, Returned
from p2pfl.gossip.push_pull import PUSH_PULL
from p2pfl.ids import PeerId, RunId
from p2pfl.knowing import Knowing
from p2pfl.mass import Mass
from p2pfl.neighbours import Neighbours
from p2pfl.release import Release
from p2pfl.run import RunSpec
from p2pfl.schedule import Schedule
from p2pfl.trust import decisions, privacy, reputation
from p2pfl.trust.amendments import Amendment
from p2pfl.trust.audit import MAX_WITNESSED, Head
from p2pfl.trust.decisions import Decision, LogHead
from p2pfl.trust.privacy import Account
from p2pfl.trust.relations import Level
from p2pfl.trust.reputation import Reputation

__all__ = ["Phase", "State", "seed_of"]


class Phase(Enum):
    """Where a peer is in the life of a run; the values are shown to people and travel in HELLO."""

    IDLE = "idle"
    WAITING = "waiting"
    JOINING = "joining"
    RUNNING = "running"
    PAUSED = "paused"
    DRAINING = "draining"
    JUDGING = "judging"
    LEAVING = "leaving"
    FINISHED = "finished"


@dataclass(slots=True, kw_only=True)
class State:
    """One participant in one run.  The first block is given, the second durable, the third volatile."""

    me: PeerId
    spec: RunSpec
    run: RunId
    agreement: bytes
    schedule: Schedule
    consortium: Consortium
    boot_session: int
    entropy: bytes
    memory_bytes: int
    publishes_edges: bool = False

    incarnation: int = 0
    rebirths: int = 0
    begun: bool = False
    # Whom I began with, by incarnation.
    starters: dict[str, int] = field(default_factory=dict)
    round: int = 0
    nominal: float = 1.0
    mass: Mass = field(default_factory=lambda: Mass(np.zeros(0, np.float32), 0))
    links: Links = field(default_factory=Links)
    pool: ledgers.Pool = field(default_factory=ledgers.Pool)
    pooled: NDArray[np.float64] | None = None
    head: Head | None = None
    # The content that `head` is of, and where the audit log ends.
    statement: bytes = b""
    log: LogHead = field(default_factory=LogHead)
    # The last statement of each neighbour, as it travelled.
    witnessed: dict[str, bytes] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    learner_state: bytes = b""
    initial_digest: bytes = b""
    finished: str = ""
    # What was released about the site's rows, in this run and others.
    account: Account = field(default_factory=Account)

    phase: Phase = Phase.IDLE
    reason: str = ""
    now: float = 0.0
    effects: list[Effect] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    decisions: list[bytes] = field(default_factory=list)
    proofs: list[tuple[PeerId, bytes]] = field(default_factory=list)
    neighbours: Neighbours = field(default_factory=Neighbours)
    schema_hash: bytes = b""
    statistics: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    trained: Trained | None = None
    fit_from: Vector | None = None
    learner_restored: bool = True
    learner_faults: int = 0
    weight_is_low: bool = False
    # With capped shares: whether their alarm has gone off.
    mass_is_drained: bool = False
    # What a fit of a learner that adds the noise itself releases, and what the account comes to.
    release: Release | None = None
    epsilon: float | None = None
    budget_is_spent: bool = False
    # What the robust rule made of the last round, for its facts; None without one.
    aggregate: dict[str, Any] | None = None
    bound_is_broken: bool = False
    # The edges of all members that were looked at last.
    edges_seen: list[str] = field(default_factory=list)
    # Whose models the learner is asked to validate in this round, and its answer.
    asked: dict[PeerId, tuple[NDArray[np.uint8], ...]] | None = None
    validated: Validated | None = None
    # The shares that were here then, by sender: the step takes no later ones.
    upto: Mapping[str, int] | None = None
    # How far the last fit moved the model: the yardstick for distances between models.
    stride: float = 0.0
    # Whose models are not mixed in this round, and the one word why.
    barred: Mapping[PeerId, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    deadline: float | None = None
    tick: float | None = None
    round_began_at: float = 0.0
    low_rounds: int = 0
    held: bool = False
    # Whether this state came from a disk, and so may have forgotten something.
    is_restored: bool = False
    # The amendments under which this round is; the ledger's round and membership bring them back.
    in_force: tuple[Amendment, ...] = ()
    # Address news passed on since the last tick.
    news: int = 0
    # Whose certificate was said to expire, and when that is.
    warned: dict[PeerId, int] = field(default_factory=dict)
    leaving: bool = False
    revoked: bool = False
    greetings: int = 0
    settle_until: float = 0.0
    # The exchange of knowledge, where the agreement has one.
    knowing: Knowing | None = None
    # What the last commit revealed and may have to be said again: statements and states, by recipient.
    last_words: list[Send] = field(default_factory=list)

    # --- verbs ---------------------------------------------------------------------------------------

    def emit(self, effect: Effect) -> None:
        """Ask the driver for something, after what was asked before."""
        self.effects.append(effect)

    def fact(self, event: str, level: str = "info", **fields: Any) -> None:
        """Note something for the log and the tables; it leaves with the next Commit."""
        self.facts.append(Fact(event=event, level=level, fields=fields))

    def decide(
        self,
        type: str,  # noqa: A002 - as the audit log calls it
        peer: str,
        verdict: str,
        *,
        rule: str,
        weight: float = 0.0,
        distance: float | None = None,
        seq: int = 0,
        digest: bytes = b"",
    ) -> None:
        """Write a row of the audit log; it leaves with the next Commit, its head with the next statement.

        The arguments are those of `trust.decisions.Decision`; a number that is not finite is left out.
        """
        made = Decision(
            i=self.log.rows + 1,
            at=self.now,
            round=self.round,
            type=type,
            peer=peer,
            rule=rule,
            verdict=verdict,
            weight=weight if math.isfinite(weight) else 0.0,
            distance=distance if distance is not None and math.isfinite(distance) else None,
            seq=seq,
            digest=digest,
        )
        self.log, entry = decisions.extend(self.run, self.log, made)
        self.decisions.append(entry)

    def witness(self, peer: PeerId, frame: bytes) -> None:
        """Keep the last statement of `peer`, as it travelled; the next Commit makes it durable."""
        self.witnessed.pop(peer, None)
        if frame:
            self.witnessed[peer] = frame
        if len(self.witnessed) > MAX_WITNESSED:
            del self.witnessed[next(iter(self.witnessed))]

    def fault(self, peer: PeerId, kind: str) -> None:
        """`peer` broke the protocol."""
        self.emit(Penalise(peer=peer, fault=kind))
        self.fact("fault of a peer", "warning", peer=peer, fault=kind)
        if self.spec.trust.reputation.kind != "none":
            self.barred = {**self.barred, peer: "doubted"}
            self.reckon(reputation.fault(self.consortium.reputation, peer, kind))

    def reckon(self, after: Reputation) -> None:
        """Take up what is now known of others; say whose level has changed, and caution the neighbours."""
        before, self.consortium.reputation = self.consortium.reputation, after
        for peer in sorted(after.records):
            was, level = reputation.ceiling(before, peer), reputation.ceiling(after, peer)
            if was is level:
                continue
            self.decide("level", peer, level.name.lower(), rule="reputation")
            shown = reputation.explain(after.records[peer])
            numbers = {name: shown[name] for name in ("score", "rule", "a", "b", "rounds", "faults")}
            numbers |= {"peer": peer, "most": level.name.lower()}
            if level is Level.QUARANTINE:
                self.fact("peer quarantined", "warning", **numbers)
                for other in self.neighbours.up():
                    if other != peer:
                        self.send(other, Kind.NOTICE, Notice(code="caution", text=peer))
            elif level < was:
                self.fact("peer limited", "warning", **numbers)
            else:
                self.fact("peer restored", "warning", **numbers)

    def header(self, recipient: PeerId, kind: Kind, **fields: Any) -> Header:
        """A header from here and now."""
        return Header(
            run=self.run,
            sender=self.me,
            recipient=recipient,
            incarnation=self.incarnation,
            boot_session=self.boot_session,
            epoch=self.epoch,
            kind=kind,
            round=self.round,
            issued_at=self.now,
            **fields,
        )

    def send(self, peer: PeerId, kind: Kind, body: Body, **fields: Any) -> None:
        """Send a structured body."""
        self.emit(Send(peer=peer, message=Message(header=self.header(peer, kind, **fields), body=body)))

    def greet(self, peer: PeerId) -> None:
        """Say HELLO: where I stand in the run and on our two edges."""
        hello = Hello(
            agreement=self.agreement.decode(),
            begun=self.begun,
            phase=self.phase.value,
            initial_digest=self.initial_digest,
            accepts=self.consortium.hears(peer),
            roster_digest=self.consortium.digest(),
            counted=self.starters.get(peer, 0) == self.links.edge_from(peer).incarnation != 0,
            **self.links.greet(peer),
        )
        # Numbered, so that one that was overtaken on the way is not taken for news.
        self.greetings += 1
        self.send(peer, Kind.HELLO, hello, edge_seq=self.greetings)

    def take_back(self, back: Returned) -> None:
        """Add to the mass what of a share was not taken."""
        body = self.pool.get(back.header.digest)
        self.mass.absorb([(back.header.weights, body)], fraction=back.fraction)

    def commit(self) -> None:
        """Ask for everything durable to be written, with the facts and decisions since the last time."""
        self.pool.retain({entry.header.digest.hex() for _, entry in self.links.unresolved()})
        ledger = ledgers.Ledger(
            run=self.run,
            me=self.me,
            incarnation=self.incarnation,
            rebirths=self.rebirths,
            begun=self.begun,
            starters=self.starters,
            round=self.round,
            nominal=self.nominal,
            w=self.mass.w,
            term=self.mass.term,
            statistics=self.mass.state.s[0].tolist(),
            pooled=None if self.pooled is None else self.pooled.tolist(),
            out=self.links.out,
            into=self.links.into,
            entered=self.links.entered,
            written_off=self.links.written_off,
            head=self.head,
            statement=self.statement,
            log=self.log,
            witnessed=dict(self.witnessed),
            consortium=self.consortium.to_bytes(),
            left=sorted(self.left),
            learner_state=self.learner_state,
            initial_digest=self.initial_digest,
            finished=self.finished,
            held=self.held,
            leaving=self.leaving,
        )
        model = self.mass.model if self.mass.is_modelled else None
        account = privacy.encode(self.account) if self.account.spent else b""
        snapshot = ledgers.write(
            ledger, self.mass.state.x[0], model, self.pool, g=self.mass.g, account=account
        )
        self.emit(
            Commit(
                snapshot=snapshot,
                facts=tuple(self.facts),
                decisions=tuple(self.decisions),
                proofs=tuple(self.proofs),
            )
        )
        self.facts, self.decisions, self.proofs = [], [], []

    def mass_of(self, theta: Vector, k: int) -> Mass:
        """What this peer is before it takes part: the model `theta` and no mass."""
        return Mass(theta, k, is_tracked=mixer_of(self.spec) is PUSH_PULL)

    # --- questions -----------------------------------------------------------------------------------

    def digest_of_model(self) -> bytes:
        """SHA-256 of x as it stands, with push-pull of the model and the tracker: what a statement commits to
        and two drivers must agree on.
        """
        vectors = [self.mass.model, self.mass.state.x[0]] if self.mass.is_tracked else [self.mass.state.x[0]]
        digest = hashlib.sha256()
        for vector in vectors:
            digest.update(np.ascontiguousarray(vector).view(np.uint8).data)
        return digest.digest()

    @property
    def epoch(self) -> int:
        """The number of the last amendment in force; 0 is the agreement as it was."""
        return self.in_force[-1].epoch if self.in_force else 0

    def members(self) -> tuple[PeerId, ...]:
        """The roster that plans are made for: members now, less those that left, by PeerId."""
        members = self.consortium.members(self.now)
        return tuple(p for p in members if p not in self.left) if self.left else members

    def voices(self) -> int:
        """How many neighbours it takes to believe that the others are further on.

        Two, so that a liar whom a victim hears alone cannot end its run; whoever hears one neighbour catches
        up round by round.  With two members there is nobody else to ask.
        """
        return 1 if len(self.members()) <= 2 else 2

    def seed(self, purpose: int) -> tuple[int, ...]:
        """Seeds for `numpy.random.default_rng`: no draw depends on another peer's."""
        return seed_of(self.spec.run.seed, purpose, self.me, self.round)


def seed_of(run_seed: int, purpose: int, peer: PeerId, number: int) -> tuple[int, ...]:
    """Seeds for a draw of `peer` in round `number`; `purpose` keeps draws of one round apart."""
    identity = int.from_bytes(hashlib.sha256(peer.encode()).digest()[:8], "big")
    return (run_seed, purpose, identity, number)
