"""What founders decide at their own node: who comes in, who stays, who goes, and on what terms.

Each signs with the node's key, gives the record to the node's peer, which keeps it before it passes it on,
and answers how many founders have signed by now.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from p2pfl import epochs
from p2pfl.errors import ConfigError, RefusedError
from p2pfl.events import Commanded
from p2pfl.ids import PeerId
from p2pfl.node.node import Node
from p2pfl.run import canonical
from p2pfl.trust import admission, amendments, certificates, membership, tickets, voting
from p2pfl.trust.amendments import Amendment
from p2pfl.trust.certificates import Certificate

__all__ = ["admit", "amend", "ban", "renew", "shown"]

# Rounds between an amendment and its fence, unless a founder names another: time for it to reach everybody.
_FENCE_ROUNDS = 10


async def admit(node: Node, text: str) -> dict[str, Any]:
    """Keep and pass on the signatures of a ticket.  Raises ConfigError and RefusedError."""
    return await _take(node, tickets.parse_ticket(text).certificate)


async def renew(node: Node, peer: PeerId | None, lasts_s: float) -> dict[str, Any]:
    """Sign a later certificate of `peer`, or of all who have one.  Raises RefusedError."""
    held, now = node.peer.state.consortium.membership, node.clock.now()
    voting.check_founder(held, node.identity.peer_id)
    with_one = [p for p in membership.members(held, now) if p not in held.founders]
    signed = [
        voting.renew(held, node.identity, subject, now=now, lasts_s=lasts_s, nonce=secrets.token_bytes(16))
        for subject in (with_one if peer is None else [peer])
    ]
    return {"renewed": [await _take(node, one) for one in signed]}


async def _take(node: Node, certificate: Certificate) -> dict[str, Any]:
    """Have the peer keep a certificate; what became of it."""
    subject = certificate.subject
    # What is of no use is refused with its reason; the peer would only log it.
    admission.admit(node.peer.state.consortium.membership, certificate, node.clock.now())
    encoded = certificates.encode_certificate(certificate)
    await node.ask(Commanded(verb="admit", arguments={"certificate": encoded}))
    consortium = node.peer.state.consortium
    held = consortium.membership
    shown_ = held.pending.get(membership.key_of(certificate)) or held.certificates.get(subject, certificate)
    return {
        "peer_id": subject,
        "standing": consortium.standing(subject, node.clock.now()),
        "signatures": len(shown_.signatures),
        "quorum": held.quorum,
        "expires_at": shown_.expires_at,
    }


async def ban(node: Node, peer: PeerId, reason: str) -> dict[str, Any]:
    """Deny `peer` here, and as a founder vote to revoke it.  Raises RefusedError."""
    consortium = node.peer.state.consortium
    if peer == node.identity.peer_id:
        raise RefusedError("a node cannot ban itself; `p2pfl run leave` leaves the run")
    arguments: dict[str, Any] = {"peer": peer}
    if node.identity.peer_id in consortium.membership.founders:
        revocation = certificates.issue_revocation(
            node.identity,
            run=consortium.membership.run,
            subject=peer,
            reason=reason,
            now=node.clock.now(),
        )
        arguments["revocation"] = certificates.encode_revocation(revocation)
    await node.ask(Commanded(verb="ban", arguments=arguments))
    held = consortium.membership.revocations.get(peer)
    votes = len(held.votes) if held else 0
    return {
        "peer_id": peer,
        "standing": consortium.standing(peer, node.clock.now()),
        "votes": votes,
        "quorum": consortium.membership.quorum,
        "revoked": votes >= consortium.membership.quorum,
    }


async def amend(node: Node, changes: dict[str, Any], at: int | None, *, sign: bool) -> dict[str, Any]:
    """What `changes` would change from training round `at` on; with `sign`, this founder signs it.

    Raises RefusedError when this node is no founder, ConfigError on what cannot be amended so.
    """
    state = node.peer.state
    held, opening = state.consortium.membership, state.schedule.opening
    soon = max([state.round + _FENCE_ROUNDS, *(one.at_round + 1 for one in held.amendments.values())])
    amendment = voting.endorse(
        held,
        node.identity,
        changes={key: json.dumps(value, sort_keys=True) for key, value in changes.items()},
        at_round=soon if at is None else at + opening,
        now=node.clock.now(),
    )
    key, passed = amendments.key_of(amendment), membership.passed(held)
    before = epochs.terms(state.agreement, passed)
    after = epochs.terms(state.agreement, [*passed, amendment])
    last = opening + min(before.run.rounds, after.run.rounds) - 1
    if key not in held.amendments and not state.round < amendment.at_round <= last:
        raise ConfigError(
            f"round {amendment.at_round - opening} is not between now ({state.round - opening}) and the last"
            f" training round ({last - opening}); name another with --at"
        )
    if sign:
        encoded = amendments.encode_amendment(amendment)
        await node.ask(Commanded(verb="amend", arguments={"amendment": encoded}))
        amendment = state.consortium.membership.amendments.get(key, amendment)
    terms = json.loads(canonical(before))
    return {"changes": {k: [_at(terms, k), v] for k, v in changes.items()}, **shown(node, amendment)}


def shown(node: Node, amendment: Amendment) -> dict[str, Any]:
    """An amendment's number, its fence as a training round, and who has signed it."""
    state = node.peer.state
    return {
        "epoch": amendment.epoch,
        "at": amendment.at_round - state.schedule.opening,
        "signed_by": sorted(amendment.signatures),
        "quorum": state.consortium.membership.quorum,
    }


def _at(table: Any, key: str) -> Any:
    """The value under a dotted key, None where there is none."""
    for step in key.split("."):
        table = table.get(step) if isinstance(table, dict) else None
    return table
