"""The start of a run: who is counted, and who is not waited for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
from worlds import agreement, facts, tiny_world

from p2pfl.net.link_model import LinkModel
from p2pfl.simulations.world import World

NEAR, FAR = LinkModel(latency_s=(0.01, 0.01)), LinkModel(latency_s=(1.0, 1.0))


def world_of(n: int, averaging: str, far: set[int], starts_at_s: Sequence[float] = ()) -> World:
    """Sites that greet each other within .02 s; the two `far` ones take a second."""
    gossip = {"averaging": {"kind": averaging}, "topology": {"kind": "complete"}}
    spec = agreement(n, gossip=gossip, quorum=0.0)
    links = partial(_link, far)
    return tiny_world(n, spec=spec, links=links, starts_at_s=starts_at_s)


def _link(far: set[int], a: int, b: int) -> LinkModel:
    return FAR if {a, b} == far else NEAR


def leaves(world: World, site: int, at_s: float, gone_after_s: float) -> None:
    """The site leaves the run for good, and a moment later its process has ended."""
    world.at(at_s, site, partial(world.command, site, "leave"))
    world.at(at_s + gone_after_s, site, partial(world.crash, site))


@pytest.mark.parametrize("averaging", ["push-sum", "d-psgd"])
def test_a_site_that_leaves_before_the_start_is_not_waited_for(averaging: str) -> None:
    world = world_of(3, averaging, far={1, 2})
    # It is connected at .01 and has met both at .02, where it would begin.
    leaves(world, 0, at_s=0.015, gone_after_s=0.1)
    assert world.run(until_s=300)
    assert [machine.finished for machine in world.machines] == ["left", "done", "done"]
    assert [world.peer(i).state.links.entered for i in (1, 2)] == [1.0, 1.0]


def test_the_first_that_counts_enough_may_leave_before_the_others_have_met() -> None:
    world = world_of(3, "d-psgd", far={1, 2})
    leaves(world, 0, at_s=0.035, gone_after_s=0.1)
    assert world.run(until_s=300)
    assert [machine.finished for machine in world.machines] == ["left", "done", "done"]
    assert facts(world, 0, "run began")
    assert [world.peer(i).state.links.entered for i in (1, 2)] == [1.0, 1.0]


def test_who_comes_later_counts_and_the_wait_survives_a_restart() -> None:
    world = world_of(4, "push-sum", far={1, 2}, starts_at_s=(0, 0, 0, 40))
    leaves(world, 0, at_s=0.03, gone_after_s=0.1)
    world.run(until_s=20.0)
    # The one that has left, and one that is away: two of three are here.
    assert [world.peer(i).view().phase for i in (1, 2)] == ["waiting", "waiting"]
    assert world.peer(1).view().reason.startswith("2 of the 3 members")
    world.crash(1)
    world.boot(1)
    assert world.run(until_s=300)
    assert [machine.finished for machine in world.machines] == ["left", "done", "done", "done"]
