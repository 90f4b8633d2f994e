"""Capped shares in the peer: what of the shares of a settlement is mixed, whom to give to, and the alarm.

The books are those of the edges (gossip/links.py), the mathematics is in gossip/capped.py.
"""

from __future__ import annotations

from p2pfl.aggregation import is_capped
from p2pfl.gossip.capped import may_give
from p2pfl.gossip.links import Arrival
from p2pfl.gossip.topology import Plan
from p2pfl.ids import PeerId
from p2pfl.plans import plan_of
from p2pfl.state import State

__all__ = ["absorb", "check_drain", "counted", "credit", "givable", "parts"]

# The alarm: this part of the first weight is with neighbours that have not returned it.
_DRAINED = 0.5
# Debtors named in a fact.
_NAMED = 16


def credit(state: State) -> dict[str, float] | None:
    """The weight of a first share to each neighbour of this round or the last; None without caps."""
    if not is_capped(state.spec):
        return None
    found: dict[str, float] = {}
    for number in (max(0, state.round - 1), state.round):
        plan, members = plan_of(state, number)
        if state.me in members:
            found |= {members[j]: part * state.nominal for j, part in parts(plan, members.index(state.me))}
    return found


def parts(plan: Plan, i: int) -> list[tuple[int, float]]:
    """What peer `i` gives each of its neighbours: Metropolis-Hastings weights, which both sides know."""
    return [(j, part) for j, part in plan.row(i).items() if j != i]


def absorb(state: State, merged: list[tuple[str, Arrival]]) -> list[float]:
    """Mix what was taken of `merged`, in its order.  Returns how far each model was from the own one."""
    shares = [(a.header.weights, a.body) for _, a in merged if a.body is not None]
    return state.mass.absorb_capped(shares, [a.taken for _, a in merged], state.spec.trust.aggregator.tau)


def givable(state: State, pairs: list[tuple[PeerId, float]]) -> list[tuple[PeerId, float]]:
    """Those of `pairs`, neighbours and parts, that are mixed here, and return what they get."""
    most, links = credit(state), state.links
    if most is None:
        return pairs
    owed = {peer: links.edge_to(peer).sent_w - links.edge_from(peer).absorbed_w for peer, _ in pairs}
    return [
        (peer, part)
        for peer, part in pairs
        if state.consortium.accepts(peer) and may_give(part * state.mass.w, owed[peer], most[peer])
    ]


def counted(state: State) -> float:
    """The weight that this peer's steps count with: w(0), with capped shares less what was not returned.

    Otherwise steps of full weight on what is left would be larger than the fit made them: under thieves of a
    third of the weight, by half.
    """
    if not is_capped(state.spec) or state.links.entered == 0:
        return state.nominal
    lost = sum(_debts(state).values()) + max(0.0, state.links.written_off)
    return max(0.0, state.nominal - lost)


def check_drain(state: State, w: float) -> None:
    """Raise the alarm, once, when half of the first weight was given and not returned.

    w: the weight now, for the fact.
    """
    is_drained = counted(state) <= _DRAINED * state.nominal
    if is_drained and not state.mass_is_drained:
        owed = _debts(state)
        debtors = sorted((p for p in owed if owed[p] > 0), key=lambda p: (-owed[p], p))[:_NAMED]
        state.fact("mass drained", "warning", round=state.round, w=w, weight0=state.nominal, debtors=debtors)
    state.mass_is_drained = is_drained


def _debts(state: State) -> dict[str, float]:
    """What each neighbour owes.  A share of this round or the last is on its way, and not yet owed."""
    owed = {}
    for peer, out in sorted(state.links.out.items()):
        fresh = sum(entry.w for entry in out.entries if entry.header.round >= state.round - 1)
        owed[peer] = max(0.0, out.sent_w - fresh - state.links.edge_from(peer).absorbed_w)
    return owed
