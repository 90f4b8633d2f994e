"""Mass is exact after every event, whatever happens to machines and messages."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_learner import tiny_of_many_rows
from trackers import discord
from worlds import agreement, tiny_world

from p2pfl.net.link_model import LinkModel
from p2pfl.simulations.machine import SimulatedSite
from p2pfl.simulations.world import World

# Virtual seconds after which a run that has not ended never will.
_ENDS_WITHIN_S = 3000.0
_TOLERANCE = 1e-9
# Trackers are float32, and the targets of tiny learners go to 4.
_TRACKERS_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Blow:
    """After `events` further events, `what` happens to machine `who`; `number` is a detail of it."""

    events: int
    what: str
    who: int
    number: int


_BLOWS = st.lists(
    st.builds(
        Blow,
        events=st.integers(1, 60),
        what=st.sampled_from(
            [
                "crash",
                "crash between",
                "crash between",
                "lose disk",
                "back up",
                "restore",
                "deny",
                "allow",
                "leave",
                "ban",
            ]
        ),
        who=st.integers(0, 4),
        number=st.integers(0, 9),
    ),
    max_size=25,
)
_LINKS = st.builds(
    LinkModel,
    latency_s=st.sampled_from([(0.0, 0.0), (0.01, 0.3), (0.0, 4.0)]),
    loss=st.sampled_from([0.0, 0.1, 0.3]),
    duplication=st.sampled_from([0.0, 0.2]),
    reorder=st.sampled_from([0.0, 0.3]),
)


def _strike(world: World, blow: Blow, backups: dict[int, object]) -> None:
    n = len(world.machines)
    index = blow.who % n
    machine = world.machines[index]
    match blow.what:
        case "crash":
            world.crash(index)
        case "crash between":
            world.crash_between(index, blow.number)
        case "lose disk":
            world.lose_disk(index)
        case "back up":
            backups[index] = machine.disk
        case "restore" if index in backups:
            world.restore(index, backups[index])  # type: ignore[arg-type]
        case "deny" | "allow" if machine.is_up:
            level = "deny" if blow.what == "deny" else "normal"
            side = "share" if blow.number % 2 else "accept"
            world.command(index, "set", peer=world.names[(index + 1 + blow.number) % n], **{side: level})
        case "leave" if machine.is_up and blow.number == 0:
            world.command(index, "leave")
        case "ban" if machine.is_up and blow.number == 1 and _has_begun(world):
            world.command(index, "ban", peer=world.names[(index + 1) % n])
        case _:
            pass


def _has_begun(world: World) -> bool:
    """Whether everybody takes part: who is banned before waits for ever, as it should."""
    return all(machine.peer is not None and machine.peer.state.begun for machine in world.machines)


def _survive(n: int, kind: str, blows: list[Blow], link: LinkModel, seed: int, inline_bytes: int) -> None:
    # Whoever is banned by those it hears from waits for them for ever, unless it needs nobody.
    quorum = 0.0 if any(blow.what == "ban" for blow in blows) else 0.5
    world = tiny_world(
        n,
        spec=agreement(
            n,
            seed=seed,
            deadline_s=4.0,
            rounds=8,
            weights="samples" if kind in ("samples", "capped-share") else "uniform",
            quorum=quorum,
            gossip={
                "averaging": {"kind": "push-pull" if kind == "push-pull" else "push-sum"},
                # Between sites that weigh differently shares are taken in part even if nobody lies.
                "topology": {"kind": "star" if kind == "capped-share" else "exponential"},
            },
            trust={"aggregator": {"kind": kind if kind == "capped-share" else "none"}},
        ),
        factory=tiny_of_many_rows,
        fit_s=[(0.1, 0.5, 1.0)[(seed + i) % 3] for i in range(n)],
        link=link,
        inline_bytes=inline_bytes,
    )
    backups: dict[int, object] = {}
    pending = list(blows)
    due = pending[0].events if pending else 0
    revived: dict[int, int] = {}
    largest = 0.0

    def step() -> None:
        nonlocal due, largest
        world.step()
        audit = world.mass()
        largest = max(largest, abs(audit.sum - audit.expected) / max(n, abs(audit.expected)))
        assert largest <= _TOLERANCE, (world.now, audit)
        if kind == "push-pull" and (apart := discord(world)) is not None:
            assert apart <= _TRACKERS_TOLERANCE, world.now
        if pending and world.events >= due:
            _strike(world, pending.pop(0), backups)
            due = world.events + (pending[0].events if pending else 0)
        for machine in world.machines:
            if not machine.is_up and machine.life > 0 and revived.get(machine.index) != machine.life:
                revived[machine.index] = machine.life
                world.boot_at(world.now + 0.5 + (seed + machine.life) % 5, machine.index)

    while not world.is_over or not all(machine.is_up for machine in world.machines):
        step()
        assert world.now < _ENDS_WITHIN_S, [m.peer.view() for m in world.machines if m.peer]


_CASES = {
    "n": st.integers(2, 5),
    "kind": st.sampled_from(["uniform", "samples", "push-pull", "capped-share"]),
    "blows": _BLOWS,
    "link": _LINKS,
    "seed": st.integers(0, 2**16),
    "inline_bytes": st.sampled_from([0, 1000]),
}


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(**_CASES)
def test_mass_is_exact_after_every_event_and_runs_end(
    n: int, kind: str, blows: list[Blow], link: LinkModel, seed: int, inline_bytes: int
) -> None:
    _survive(n, kind, blows, link, seed, inline_bytes)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(**_CASES)
def test_mass_is_exact_in_a_hundred_other_bad_runs(
    n: int, kind: str, blows: list[Blow], link: LinkModel, seed: int, inline_bytes: int
) -> None:
    _survive(n, kind, blows, link, seed, inline_bytes)


def test_an_auditor_notices_a_share_that_vanished() -> None:
    world = tiny_world(3)
    while not any(machine.peer and machine.peer.view().in_flight for machine in world.machines):
        world.step()
    assert world.mass().error <= _TOLERANCE
    robbed = next(m for m in world.machines if m.peer and m.peer.view().in_flight)
    assert robbed.peer is not None
    for edge in robbed.peer.state.links.out.values():
        edge.entries = []
    assert world.mass().error > 0.05


def test_the_number_of_machines_is_the_mass() -> None:
    world = tiny_world(5)
    assert isinstance(world.machines[0].site, SimulatedSite)
    assert world.run(until_s=_ENDS_WITHIN_S)
    assert world.mass().sum == pytest.approx(5, abs=1e-9)
