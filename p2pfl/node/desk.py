"""What a node answers to the people who run it: views as plain values, and commands carried out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2pfl.aggregation import conserves_mass
from p2pfl.errors import ConfigError
from p2pfl.events import Commanded
from p2pfl.gossip import topology
from p2pfl.ids import PeerId, parse_peer_id
from p2pfl.node import audit_answers, backup, ballots, snapshots
from p2pfl.node.node import Node
from p2pfl.node.telemetry import EventHub
from p2pfl.trust import certificates, membership, relations, reputation

__all__ = ["Desk"]


class Desk:
    """The counter of one node (`control.ControlTarget`)."""

    def __init__(self, node: Node, *, name: str, run_sync: Callable[..., Any]) -> None:
        """run_sync: runs a blocking function elsewhere, as `trio.to_thread.run_sync` does."""
        self._node = node
        self._name = name
        self._run_sync = run_sync

    @property
    def hub(self) -> EventHub:
        """The node's facts."""
        return self._node.hub

    def status(self) -> dict[str, Any]:
        """The keys of `p2pfl status --json`."""
        node, view = self._node, self._node.view
        spec = node.peer.state.spec
        expected = view.entered - view.written_off
        mass = {
            "w": view.w,
            "weight0": view.nominal,
            "in_flight": view.in_flight,
            "entered": view.entered,
            "written_off": view.written_off,
            "expected": expected,
        }
        return {
            "peer_id": view.me,
            "name": self._name,
            "addresses": list(node.transport.addresses()),
            "run_id": view.run,
            "run_name": spec.run.name,
            "epoch": node.peer.state.epoch,
            "round": view.training_round,
            "rounds": view.rounds,
            "stage": view.stage,
            "state": view.phase,
            "reason": view.reason,
            "peers": sum(bool(one["up"]) for one in view.neighbours.values()),
            "members": len(view.members),
            "expires_at": self._expires_at(),
            "roster": list(view.members),
            "metric": dict(view.metrics),
            "privacy": self._privacy(),
            "hub": view.hub,
            "mass": mass if conserves_mass(spec) else None,
            "incarnation": view.incarnation,
            "finished": view.finished,
        }

    def _privacy(self) -> dict[str, Any] | None:
        """What was told of this site's rows so far; None where the agreement adds no noise."""
        view, options = self._node.view, self._node.peer.state.spec.trust.privacy
        if options.kind == "none":
            return None
        budget = {"delta": options.delta, "max_epsilon": options.max_epsilon, "spent": view.budget_is_spent}
        return {"kind": options.kind, "epsilon": view.epsilon, **budget}

    def _expires_at(self) -> int | None:
        """When this node's own certificate ends, None for a founder."""
        held = self._node.peer.state.consortium.membership
        certificate = membership.certificate_of(held, self._node.identity.peer_id)
        return None if certificate is None else certificate.expires_at

    def peers(self) -> list[dict[str, Any]]:
        """One entry a member, this node left out."""
        node, view = self._node, self._node.view
        consortium = node.peer.state.consortium
        rows = []
        for peer in view.members:
            if peer == view.me:
                continue
            one = view.neighbours.get(peer, {})
            certificate = membership.certificate_of(consortium.membership, peer)
            rows.append(
                {
                    "peer_id": peer,
                    "name": certificate.name if certificate else "founder",
                    "state": one.get("state", "disconnected"),
                    "round": one.get("round"),
                    "share": relations.share_level(consortium.relations, peer).name.lower(),
                    "accept": relations.accept_level(consortium.relations, peer).name.lower(),
                    "accepts_us": one.get("accepting", True),
                    "addresses": list(consortium.addresses(peer)),
                    "sent_w": one.get("sent_w"),
                    "absorbed_w": one.get("absorbed_w"),
                    "unresolved": one.get("unresolved"),
                    "last_seen": one.get("seen_at"),
                    "expires_at": certificate.expires_at if certificate else None,
                }
            )
        return rows

    def rounds(self, since: int) -> list[dict[str, Any]]:
        """The rounds from `since` on, oldest first."""
        return self._node.store.rounds(self._node.peer.state.run, since)

    def topology(self) -> dict[str, Any]:
        """The present plan."""
        view, spec = self._node.view, self._node.peer.state.spec
        members = view.members
        plan = topology.plan(spec.gossip.topology, view.round, len(members), spec.run.seed)
        edges = [
            {"source": members[i], "target": members[j], "weight": c}
            for i in range(len(members))
            for j, c in zip(plan.out_neighbours(i), plan.fractions(i)[1], strict=True)
        ]
        names = {row["peer_id"]: row["name"] for row in self.peers()} | {view.me: self._name}
        return {
            "round": view.training_round,
            "kind": spec.gossip.topology.kind,
            "peers": [{"peer_id": peer, "name": names.get(peer, "")} for peer in members],
            "edges": edges,
        }

    def run(self) -> dict[str, Any]:
        """The agreement in canonical form, its RunId, and what founders have amended or begun to."""
        node = self._node
        state = node.peer.state
        held = state.consortium.membership.amendments.values()
        shown = [
            {**ballots.shown(node, one), "changes": {k: json.loads(v) for k, v in one.changes.items()}}
            for one in sorted(held, key=lambda a: (a.epoch, a.content))
        ]
        return {
            "run_id": state.run,
            "agreement": json.loads(state.agreement),
            "epoch": state.epoch,
            "amendments": shown,
        }

    def trust(self) -> list[dict[str, Any]]:
        """One entry a peer that is or was a member, or has levels of its own."""
        node = self._node
        consortium, now = node.peer.state.consortium, node.clock.now()
        open_ = {c.subject: len(c.signatures) for c in consortium.membership.pending.values()}
        known = (
            set(consortium.membership.founders)
            | set(consortium.membership.certificates)
            | set(membership.members(consortium.membership, now))
            | set(open_)
            | set(consortium.membership.revocations)
            | set(consortium.relations.banned)
            | set(consortium.relations.share_with)
            | set(consortium.relations.accept_from)
        )
        records = consortium.reputation.records
        rows = []
        for peer in sorted(known):
            certificate = membership.certificate_of(consortium.membership, peer)
            # Its name is that of the key in its place.
            is_replaced = membership.is_replaced(consortium.membership, peer)
            rows.append(
                {
                    "peer_id": peer,
                    "name": certificate.name if certificate and not is_replaced else "",
                    "founder": peer in consortium.membership.founders,
                    "self": peer == node.identity.peer_id,
                    "standing": consortium.standing(peer, now),
                    "share": relations.share_level(consortium.relations, peer).name.lower(),
                    "accept": relations.accept_level(consortium.relations, peer).name.lower(),
                    "level": consortium.accept_level(peer).name.lower(),
                    "only": {
                        f"{way} {task}": only[peer].name.lower()
                        for (task, way), only in sorted(consortium.relations.only.items())
                        if peer in only
                    },
                    "reputation": reputation.explain(records[peer]) if peer in records else None,
                    "expires_at": certificate.expires_at if certificate else None,
                    "signatures": open_.get(peer),
                    "quorum": consortium.membership.quorum,
                }
            )
        return rows

    def audit(self, part: str, since: int) -> dict[str, Any]:
        """A part of the audit log, as of the last commit."""
        return audit_answers.answer(self._node.store, self._node.peer.state.run, part, since)

    def stop(self, after_round: bool) -> None:
        """Save and stop, now or once the round under way is committed."""
        self._node.stop(after_round)

    def metrics(self) -> bytes:
        """The Prometheus text of this node."""
        view = self._node.view
        self._node.telemetry.connected(sum(bool(one["up"]) for one in view.neighbours.values()))
        return self._node.telemetry.render()

    def ready(self) -> bool:
        """Whether the node listens and its learner is built."""
        return self._node.started.is_set()

    async def command(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out one of `control.VERBS`.  Raises P2PFLError."""
        node = self._node
        match verb:
            case "leave" | "pause" | "resume":
                await node.ask(Commanded(verb=verb))
                return {"state": node.view.phase, "reason": node.view.reason}
            case "amend":
                sign = arguments.get("sign", False)
                return await ballots.amend(node, arguments["changes"], arguments.get("at"), sign=sign)
            case "ban":
                return await ballots.ban(node, self._peer(arguments["peer"]), arguments.get("reason", ""))
            case "admit":
                return await ballots.admit(node, arguments["ticket"])
            case "renew":
                named = arguments.get("peer")
                lasts_s = arguments.get("lasts_s", certificates.LASTS_S)
                return await ballots.renew(node, None if named is None else self._peer(named), lasts_s)
            case "set":
                peer = self._peer(arguments["peer"])
                levels: dict[str, Any] = {k: v for k, v in arguments.items() if k in ("share", "accept")}
                for word in levels.values():
                    relations.parse_level(word)
                task = arguments.get("for", "weights")
                if task not in relations.TASKS:
                    raise ConfigError(f"no kind of message: {task[:40]!r}; try {', '.join(relations.TASKS)}")
                await node.ask(Commanded(verb="set", arguments={"peer": peer, "for": task, **levels}))
                return {"peer_id": peer, "for": task, **levels}
            case "forget":
                peer = self._peer(arguments["peer"])
                await node.ask(Commanded(verb="forget", arguments={"peer": peer}))
                return {"peer_id": peer}
            case "ping":
                peer = self._peer(arguments["peer"])
                return {"peer_id": peer, "rtt_ms": round(1000 * await node.wires.ping(peer), 3)}
            case "backup":
                path = Path(arguments["path"])
                await self._run_sync(backup.backup, node.store, path)
                return {"path": str(path)}
            case "export":
                path = Path(arguments["path"])
                digest = await self._run_sync(snapshots.export, path, node.named_model())
                return {"path": str(path), "digest": digest, "round": node.view.training_round}
        raise ConfigError(f"there is no command {verb!r}")

    def _peer(self, text: str) -> PeerId:
        return parse_peer_id(text)
