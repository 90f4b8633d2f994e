"""The graph of trust, where sites publish their edges: whom each tells, and whom each believes.

Whom a site trusts is its own affair and stays with it, unless its node.toml says `[trust] publish_edges`.
Then it tells every neighbour, in a NOTICE `edges`, one bit for each member that it shares with and one for
each that it accepts.  Where all members have told, the edges of the plan that both ends want are the graph
that mass travels on, and everybody sees for themselves whether it can reach consensus (gossip/reach.py).
Whoever publishes nothing costs the others this check; the alarm on w (push_sum.py) then speaks alone.

The text is `members share accept`: the first 16 hex digits of the SHA-256 of the members, sorted and joined
by commas, then two bit sets in hex, bit i for member i.  It is said again when it changes, when the
connection is new, and with every tick.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from p2pfl.aggregation import mixer_of
from p2pfl.events import Kind, Notice
from p2pfl.gossip import reach, topology
from p2pfl.gossip.push_sum import PUSH_SUM
from p2pfl.gossip.topology import Plan
from p2pfl.ids import PeerId, short
from p2pfl.plans import plan_of
from p2pfl.state import State

__all__ = ["heard", "publish"]

# Two bit sets and a digest of so many members fit the text of a NOTICE; larger consortia publish nothing.
_MOST_MEMBERS = 1_500
_TEXT = re.compile(r"[0-9a-f]{16} [0-9a-f]{1,500} [0-9a-f]{1,500}")


def publish(state: State, *, again: bool = False) -> None:
    """Tell the neighbours this site's edges, those who know them only if `again`; then look at the graph."""
    if not state.publishes_edges or len(state.members()) > _MOST_MEMBERS:
        return
    text = _text(state)
    for peer in state.neighbours.up():
        one = state.neighbours[peer]
        if again or one.edges_told != text:
            one.edges_told = text
            state.send(peer, Kind.NOTICE, Notice(code="edges", text=text))
    _look(state, text)


def heard(state: State, peer: PeerId, text: str) -> None:
    """Take in what `peer` published."""
    if _TEXT.fullmatch(text) is None:
        state.fault(peer, "notice")
        return
    state.neighbours[peer].edges = text
    if len(state.members()) <= _MOST_MEMBERS:
        _look(state, _text(state))


def _text(state: State) -> str:
    members, trust = state.members(), state.consortium
    share = _bits(i for i, peer in enumerate(members) if trust.may_share(peer))
    accept = _bits(i for i, peer in enumerate(members) if trust.accepts(peer))
    return f"{hashlib.sha256(','.join(members).encode()).hexdigest()[:16]} {share:x} {accept:x}"


def _bits(positions: Iterable[int]) -> int:
    return sum(1 << i for i in positions)


def _look(state: State, own: str) -> None:
    """Note what keeps the graph from consensus, once for each graph that everybody knows."""
    members = state.members()
    texts = [own if peer == state.me else state.neighbours[peer].edges for peer in members]
    if state.me not in members or any(text[:16] != own[:16] for text in texts) or texts == state.edges_seen:
        return
    state.edges_seen = texts
    wanted = [tuple(int(bits, 16) for bits in text.split()[1:]) for text in texts]
    plans = []
    for ahead in range(topology.horizon(state.spec.gossip.topology, len(members))):
        plan = plan_of(state, state.round + ahead)[0]
        graph = plan.graph.only(lambda i, j: bool(wanted[i][0] >> j & 1 and wanted[j][1] >> i & 1))
        plans.append(Plan(n=plan.n, round=plan.round, graph=graph))
    found = reach.reach(*plans)
    said = reach.in_words(found, [short(peer) for peer in members])
    sites = {name: [members[i] for i in getattr(found, name)] for name in ("unreached", "unheard", "starved")}
    if not found.is_connected:
        text, hint = f"the trust graph cannot reach consensus: {said}", "ask these sites whom they trust"
    elif found.starved and mixer_of(state.spec) is PUSH_SUM:
        text, hint = f"the trust graph is lopsided: {said}", 'agree on averaging "push-pull"'
    else:
        state.fact("trust graph", text="every site reaches every other", gap=found.gap)
        return
    state.fact("trust graph", "warning", text=text, hint=hint, gap=found.gap, **sites)
