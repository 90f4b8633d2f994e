"""Who is whose neighbour in a round: the plan of the agreement over the roster of now."""

from __future__ import annotations

from p2pfl.aggregation import mixer_of
from p2pfl.errors import ConfigError
from p2pfl.gossip import topology
from p2pfl.gossip.averaging import NO_AVERAGING
from p2pfl.gossip.options import TopologyOptions
from p2pfl.gossip.topology import Plan
from p2pfl.ids import PeerId
from p2pfl.state import State

__all__ = ["is_apart", "is_state", "neighbours_of", "plan_of", "wanted"]

# Everybody keeps a connection to everybody up to this many members; beyond it only to the plan's neighbours.
FULL_MESH_MEMBERS = 32


def plan_of(state: State, number: int) -> tuple[Plan, tuple[PeerId, ...]]:
    """The plan of round `number`, and the members whose positions it speaks of."""
    members = state.members()
    options, seed = state.spec.gossip.topology, state.spec.run.seed
    try:
        return topology.plan(options, number, len(members), seed), members
    except ConfigError as error:
        # The graph was checked for the members at start; a roster that grew or shrank may not fit it, such as
        # explicit edges beyond its end.  A ring serves any roster, and everybody falls back to the same one.
        state.fact("topology does not fit the roster", "error", members=len(members), reason=str(error))
        return topology.plan(TopologyOptions(kind="ring"), number, len(members), seed), members


def neighbours_of(state: State, number: int) -> tuple[tuple[PeerId, ...], tuple[PeerId, ...]]:
    """(in-neighbours, out-neighbours) of this peer in round `number`, by PeerId; empty for a non-member."""
    plan, members = plan_of(state, number)
    if state.me not in members:
        return (), ()
    i = members.index(state.me)
    return tuple(members[j] for j in plan.in_neighbours(i)), tuple(members[j] for j in plan.out_neighbours(i))


def wanted(state: State) -> tuple[PeerId, ...]:
    """The members this peer keeps a connection to."""
    members = [p for p in state.members() if p != state.me]
    if len(members) < FULL_MESH_MEMBERS:
        return tuple(members)
    near: set[PeerId] = set()
    options = state.spec.gossip.topology
    # Of a graph that is another every round, this one and the next, so that it is dialled in time.
    for ahead in range(2 if options.is_redrawn else topology.period(options, len(members) + 1)):
        near.update(*neighbours_of(state, state.round + ahead))
    return tuple(sorted(near))


def is_apart(state: State) -> bool:
    """Whether models are not mixed at all: knowledge alone travels."""
    return mixer_of(state.spec) is NO_AVERAGING


def is_state(state: State) -> bool:
    """Whether models travel as states, latest wins, rather than as shares that are conserved."""
    return mixer_of(state.spec).delivery == "state"
