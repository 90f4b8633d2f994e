"""Real peers in virtual time: the node's part, done by an event queue over a network in memory.

What a node does with an effect is done here in the same order and with the same visibility: a Commit goes to
a disk that keeps copies, and a crash between any two effects loses the later ones and nothing else.  Nothing
here decides anything about the run; the same seed gives the same run, bit for bit.

The queue is ordered by (time, peer, sequence).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from p2pfl.errors import LocalError
from p2pfl.events import (
    Commanded,
    Commit,
    Connected,
    Dial,
    Disconnected,
    Effect,
    Evaluate,
    Event,
    Fact,
    Fetch,
    Finish,
    HangUp,
    Note,
    Penalise,
    Refuse,
    Send,
    Snapshot,
    Train,
    Validate,
)
from p2pfl.net.link_model import PERFECT, LinkModel
from p2pfl.participant import Participant
from p2pfl.run import RunSpec, run_id
from p2pfl.trust.membership import Membership
from p2pfl.work import Work

from .machine import Listener, Machine, SimulatedSite, founded_by, identities
from .mass_audit import MassAudit, audit, books_on
from .network import Network, Partition
from .post import Post

__all__ = ["World"]

# Seconds from a dial to an open connection, and between two dials of one that was closed.
_DIAL_S, _REDIAL_S = 0.01, 1.0


class World:
    """Many peers, their machines and their network."""

    def __init__(
        self,
        spec: RunSpec,
        sites: Sequence[SimulatedSite],
        *,
        link: LinkModel = PERFECT,
        links: Callable[[int, int], LinkModel] | None = None,
        partitions: Sequence[Partition] = (),
        seed: int | None = None,
        crypto: bool = False,
        inline_bytes: int = 0,
        awaited: int | None = None,
        listener: Listener | None = None,
        begin: Membership | None = None,
    ) -> None:
        """link: every link, unless `links` says what lies between two peers, (from, to).
        seed: of the network's draws and the keys; None is the run's.

        crypto: seal and open every message with real keys, as the wire does.   inline_bytes: bodies up to
        this size ride in their offer; larger ones are asked for, which costs a round trip.   begin: the
        membership that every peer starts with; None makes all of them founders.   awaited: the
        world is over when the first so many have finished; None is all.
        """
        self.spec, self.seed = spec, spec.run.seed if seed is None else seed
        self.now = 0.0
        self.events = 0
        keys = identities(len(sites), self.seed)
        founders = begin or founded_by(run_id(spec), [key.peer_id for key in keys])
        self.machines = [
            Machine(i, key, site, spec, founders, self.seed)
            for i, (key, site) in enumerate(zip(keys, sites, strict=True))
        ]
        self.names = [machine.name for machine in self.machines]
        self.network = Network(self.names, link=link, links=links, partitions=partitions, seed=self.seed)
        self._index = {name: i for i, name in enumerate(self.names)}
        self._listener = listener
        self._queue: list[tuple[float, int, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._to_boot = 0
        self._awaited = self.machines[:awaited]
        self._post = Post(
            self.machines,
            self.network,
            now=lambda: self.now,
            at=self.at,
            hear=self._hear,
            crypto=crypto,
            inline_bytes=inline_bytes,
        )
        for machine in self.machines:
            self.boot_at(machine.site.starts_at_s, machine.index)
        for cut in partitions:
            self.at(cut.start_s, 0, self._cut)
            self.at(cut.end_s, 0, self._heal)

    # --- driving -------------------------------------------------------------------------------------

    def at(self, time: float, index: int, action: Callable[[], None]) -> None:
        """Do `action` at `time`, in the order of peer numbers among actions of one time."""
        time = max(self.now, time)
        heapq.heappush(self._queue, (time, index, next(self._sequence), action))

    def step(self) -> bool:
        """Let the next thing happen; False when nothing is left."""
        if not self._queue:
            return False
        self.now, _, _, action = heapq.heappop(self._queue)
        action()
        return True

    def run(self, until_s: float = float("inf")) -> bool:
        """Go on until all awaited machines that are up have finished, or `until_s`; whether they have."""
        while self._queue and self._queue[0][0] <= until_s and not self.is_over:
            self.step()
        return self.is_over

    @property
    def is_over(self) -> bool:
        """Whether every awaited machine that is up has finished its run, and none is still to start."""
        if self._to_boot:
            return False
        for machine in self._awaited:  # noqa: SIM110 - asked before every event, and most often by the first
            if machine.peer is not None and not machine.finished:
                return False
        return True

    def peer(self, index: int) -> Participant:
        """The peer of a machine that is up.  Raises LocalError."""
        peer = self.machines[index].peer
        if peer is None:
            raise LocalError(f"machine {index} is down; boot it first")
        return peer

    def mass(self) -> MassAudit:
        """Where the mass is, from the peers' states alone: memory of those up, disks of the others."""
        return audit(map(books_on, self.machines))

    # --- what happens to machines --------------------------------------------------------------------

    def boot_at(self, time: float, index: int) -> None:
        """Start the machine's process at `time`."""
        self._to_boot += 1

        def boot() -> None:
            self._to_boot -= 1
            self.boot(index)

        self.at(time, index, boot)

    def boot(self, index: int) -> None:
        """Start the machine's process from what its disk holds; nothing when it is up."""
        machine = self.machines[index]
        if machine.is_up:
            return
        self._tell(machine, machine.boot())
        self._dial_wanted(machine)
        for other in self.machines:
            if other.is_up and other is not machine:
                self._dial_wanted(other)

    def crash(self, index: int) -> None:
        """Kill the machine's process: what was not committed is gone."""
        machine = self.machines[index]
        if machine.is_up:
            machine.halt()
            for other in self.network.connected_to(index):
                self._close(index, other)

    def crash_between(self, index: int, effects: int) -> None:
        """Kill the process when its peer next asks for something, after `effects` of it were carried out."""
        if self.machines[index].is_up:
            self.machines[index].doomed_after = effects

    def lose_disk(self, index: int) -> None:
        """Crash the machine, and let its next start find an empty disk."""
        self.crash(index)
        self.machines[index].disk = None
        self.machines[index].finished = ""

    def restore(self, index: int, backup: Snapshot | None) -> None:
        """Crash the machine, and let its next start find `backup` (an earlier `Machine.disk`)."""
        self.crash(index)
        self.machines[index].disk = backup
        self.machines[index].finished = ""

    def command(self, index: int, verb: str, **arguments: Any) -> None:
        """Let the site's own people ask something of its peer, now."""
        machine = self.machines[index]
        self._hear(machine, machine.life, Commanded(verb=verb, arguments=arguments))
        if machine.peer is not None:
            self._dial_wanted(machine)

    # --- events --------------------------------------------------------------------------------------

    def _hear(self, machine: Machine, life: int, event: Event, session: int = 0, other: int = -1) -> None:
        """Tell a peer, unless its process or the connection the event came on is gone."""
        if (
            machine.life == life
            and machine.is_up
            and (other < 0 or self.network.session(machine.index, other) == session)
        ):
            self._tell(machine, event)

    def _tell(self, machine: Machine, event: Event) -> None:
        assert machine.peer is not None
        self.events += 1
        self._carry_out(machine, machine.peer.handle(event, self.now))

    def _expire(self, machine: Machine, life: int, time: float) -> None:
        if machine.life != life or machine.timer != time or machine.peer is None:
            return
        machine.timer = None
        deadline = machine.peer.deadline
        if deadline is not None and deadline <= self.now:
            self.events += 1
            self._carry_out(machine, machine.peer.expire(self.now))
            if machine.peer is not None and machine.peer.deadline == deadline:
                phase = machine.peer.view().phase
                raise LocalError(f"peer {machine.index}, {phase}, did nothing at its deadline {deadline}")
        else:
            self._arm(machine)

    def _arm(self, machine: Machine) -> None:
        deadline = None if machine.peer is None else machine.peer.deadline
        if deadline is not None and (machine.timer is None or deadline < machine.timer):
            machine.timer = deadline = max(deadline, self.now)
            self.at(deadline, machine.index, partial(self._expire, machine, machine.life, deadline))

    # --- effects -------------------------------------------------------------------------------------

    def _carry_out(self, machine: Machine, effects: list[Effect]) -> None:
        doomed_after = machine.doomed_after if effects else None
        life = machine.life
        for number, effect in enumerate(effects):
            if number == doomed_after:
                break
            self._do(machine, effect)
        if doomed_after is not None and machine.life == life:
            self.crash(machine.index)
        self._arm(machine)

    def _do(self, machine: Machine, effect: Effect) -> None:
        life, i = machine.life, machine.index
        match effect:
            case Commit():
                machine.write(effect.snapshot)
                self._note(machine, effect.facts)
                self._dial_wanted(machine)
            case Note():
                self._note(machine, effect.facts)
            case Send():
                self._post.send(machine, self._index[effect.peer], effect.message)
            case Fetch():
                self._post.fetch(machine, self._index[effect.peer], effect.header)
            case Train():
                ends_at = machine.fit_ends_at(effect, self.now)
                self.at(ends_at, i, partial(self._trained, machine, life, effect, ends_at - self.now))
            case Work():
                ends_at = machine.work_ends_at(effect, self.now)
                self.at(ends_at, i, partial(self._worked, machine, life, effect, ends_at - self.now))
            case Evaluate():
                self.at(
                    self.now + machine.site.evaluate_s, i, partial(self._evaluated, machine, life, effect)
                )
            case Validate():
                self.at(self.now, i, partial(self._validated, machine, life, effect))
            case HangUp():
                other = self._index[effect.peer]
                # What was said before it still arrives.
                last = max(self.now, self.network.last_arrival(i, other))
                self.at(last, other, partial(self._close, i, other, self.network.session(i, other)))
            case Dial():
                self._dial(i, self._index[effect.peer], _DIAL_S)
            case Finish():
                machine.finished = effect.reason
            case Refuse() | Penalise():
                pass  # a refused body is never asked for; a penalty is also a fact

    def _note(self, machine: Machine, facts: Sequence[Fact]) -> None:
        for fact in facts:
            machine.facts.append((self.now, fact))
            if self._listener is not None:
                self._listener(self.now, machine.index, fact)

    def _trained(self, machine: Machine, life: int, job: Train, took_s: float) -> None:
        if machine.life != life:
            return
        trained, late_s = machine.train(job, took_s)
        if late_s:
            self.at(self.now + late_s, machine.index, partial(self._hear, machine, life, trained))
        else:
            self._tell(machine, trained)

    def _worked(self, machine: Machine, life: int, job: Work, took_s: float) -> None:
        if machine.life == life:
            self._tell(machine, machine.work(job, took_s))

    def _evaluated(self, machine: Machine, life: int, job: Evaluate) -> None:
        if machine.life == life:
            self._tell(machine, machine.workshop.evaluate(job))

    def _validated(self, machine: Machine, life: int, job: Validate) -> None:
        if machine.life == life:
            self._tell(machine, machine.validate(job))

    # --- connections ---------------------------------------------------------------------------------

    def _dial_wanted(self, machine: Machine) -> None:
        if machine.peer is None:
            return
        for name in machine.peer.wanted():
            other = self._index.get(name)
            if other is not None and not self.network.session(machine.index, other):
                self._dial(machine.index, other, _DIAL_S)

    def _dial(self, i: int, j: int, after_s: float) -> None:
        self.at(self.now + after_s, min(i, j), partial(self._connect, i, j))

    def _connect(self, i: int, j: int) -> None:
        a, b = self.machines[i], self.machines[j]
        if (
            a.peer is None
            or b.peer is None
            or self.network.session(i, j)
            or self.network.is_cut(i, j, self.now)
        ):
            return
        if not (a.peer.knows(b.name) and b.peer.knows(a.name)):
            return
        session = self.network.connect(i, j)
        for machine, other in ((a, j), (b, i)):
            self._hear(machine, machine.life, Connected(peer=self.names[other]), session, other)

    def _close(self, i: int, j: int, session: int | None = None) -> None:
        """Close the connection, unless it is a later one than `session`."""
        current = self.network.session(i, j)
        if not current or (session is not None and session != current):
            return
        self.network.disconnect(i, j)
        for a, b in ((i, j), (j, i)):
            machine = self.machines[a]
            machine.offers = {key: body for key, body in machine.offers.items() if key[0] != b}
            if machine.is_up:
                event = Disconnected(peer=self.names[b])
                self.at(self.now, a, partial(self._hear, machine, machine.life, event))
        self._dial(i, j, _REDIAL_S)

    def _cut(self) -> None:
        for i, j in itertools.combinations(range(len(self.machines)), 2):
            if self.network.is_cut(i, j, self.now):
                self._close(i, j)

    def _heal(self) -> None:
        for machine in self.machines:
            self._dial_wanted(machine)
