"""One node put together: identity, store, learner, transport, peer, control; and run until it ends."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import trio

from p2pfl.consortium import Consortium
from p2pfl.errors import ConfigError
from p2pfl.events import Fact
from p2pfl.ids import PeerId, parse_peer_id
from p2pfl.net.discovery import parse_bootstrap
from p2pfl.net.limits import Limits
from p2pfl.net.transport import Gate, Transport, TransportOf
from p2pfl.node import control
from p2pfl.node.desk import Desk
from p2pfl.node.inline_learner import InlineLearner
from p2pfl.node.learner_messages import LearnerSpec
from p2pfl.node.learner_process import LearnerProcess
from p2pfl.node.learning import Learning
from p2pfl.node.node import Clock, Node, Outcome
from p2pfl.node.store import Store
from p2pfl.participant import Participant
from p2pfl.peer import Peer
from p2pfl.run import RunSpec, dp_sgd_of, exchange_of, run_id
from p2pfl.settings import NodeSettings
from p2pfl.trust import admission, certificates, identity, successions, tickets
from p2pfl.trust.identity import Identity
from p2pfl.trust.membership import Records
from p2pfl.trust.relations import Relations

__all__ = ["consortium_of", "serve"]

# File names in a node's home (cli/home.py lists them all).
_KEY, _TICKET = "identity.key", "ticket"


def consortium_of(
    spec: RunSpec, own: Identity, ticket: bytes, now: float, share_features: tuple[str, ...] = ()
) -> Consortium:
    """The consortium as the agreement founds it, with this node's own certificate if it has one.

    share_features: ids of those who may be told features, as in node.toml.
    Raises ConfigError when the agreement has no founders, RefusedError when the certificate does not admit.
    """
    founders = tuple(parse_peer_id(founder) for founder in spec.trust.founders)
    if not founders:
        raise ConfigError("trust.founders is empty; a run of real nodes names who may admit others")
    consortium = Consortium.of(
        run_id(spec),
        founders,
        spec.trust.quorum,
        own=Relations(features_to=frozenset(map(parse_peer_id, share_features))),
        verify=lambda peer, data, signature: identity.verify(peer, b"", data, signature),
    )
    if ticket and own.peer_id not in founders:
        # Taken as from a roster: whether it was used in time is for those to judge to whom it is shown.
        held = successions.decode_petition(ticket)
        records = Records(
            certificates=(certificates.encode_certificate(held.certificate),),
            successions=tuple(map(successions.encode_succession, held.successions)),
        )
        consortium.membership, _, rejected = admission.merge(consortium.membership, records, now)
        if rejected:
            raise ConfigError(f"this node's ticket does not admit it: {rejected[0]}")
    return consortium


def _bootstrap(settings: NodeSettings, more: tuple[str, ...]) -> dict[PeerId, tuple[str, ...]]:
    known: dict[PeerId, tuple[str, ...]] = {}
    for entry in (*settings.node.bootstrap, *more):
        peer, address = parse_bootstrap(entry)
        known[peer] = (*known.get(peer, ()), address)
    return known


async def serve(
    *,
    home: Path,
    settings: NodeSettings,
    spec: RunSpec,
    on_fact: Callable[[Fact], None] = lambda _: None,
    until_round: int | None = None,
    around: Callable[[Peer], Participant] = lambda peer: peer,
    learning: Learning | None = None,
    behind: Callable[[TransportOf], TransportOf] = lambda own: own,
) -> Outcome:
    """Run the node that lives in `home` until its run ends, it is told to stop, or it is cancelled.

    around: puts something between the peer and its node, as a simulated attacker does.
    learning: stands for the site's own learner, as a population of virtual peers does.
    behind: puts something between the node and its network, as a gateway that attackers own.
    What was committed survives all three.  Raises P2PFLError on what only a person can mend.
    """
    from p2pfl.net.libp2p import Libp2pTransport

    own = identity.load(home / _KEY)
    ticket = b""
    addresses: tuple[str, ...] = ()
    if (home / _TICKET).exists():
        parsed = tickets.parse_ticket((home / _TICKET).read_text(encoding="utf-8"))
        ticket, addresses = successions.encode_petition(parsed.petition), parsed.addresses
    clock = Clock()
    limits = Limits(max_connections=settings.limits.connections, upload_mbit_s=settings.limits.upload_mbit_s)

    def transport(gate: Gate) -> Transport:
        return Libp2pTransport(
            seed=own.seed,
            listen=settings.node.listen,
            bulk_listen=settings.node.bulk_listen,
            announce=settings.node.announce,
            gate=gate,
            limits=limits,
        )

    if learning is None and settings.node.isolation == "thread":
        learning = InlineLearner(runner=partial(trio.to_thread.run_sync, abandon_on_cancel=True))
    peer = Peer(
        me=own.peer_id,
        spec=spec,
        consortium=consortium_of(spec, own, ticket, clock.now(), settings.trust.share_features),
        boot_session=secrets.randbits(63),
        entropy=secrets.token_bytes(32),
        memory_bytes=settings.limits.memory_mb * 10**6,
        publishes_edges=settings.trust.publish_edges,
    )
    with Store.open(home) as store:
        node = Node(
            peer=around(peer),
            identity=own,
            store=store,
            learning=learning or LearnerProcess(evaluate_s=spec.run.deadline_s),
            learner=LearnerSpec(
                options=msgspec.json.encode(spec.learner),
                data=settings.node.data,
                name=settings.node.name,
                seed=spec.run.seed,
                dp_sgd=dp_sgd_of(spec),
                role=settings.node.role,
                **exchange_of(spec),
            ),
            transport=behind(transport),
            bootstrap=_bootstrap(settings, addresses),
            ticket=ticket,
            clock=clock,
            on_fact=on_fact,
            until_round=until_round,
            rng=np.random.default_rng(),
        )
        desk = Desk(node, name=settings.node.name, run_sync=trio.to_thread.run_sync)
        outcome: Outcome | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(control.serve, desk, home, settings.control.metrics_port)
            nursery.start_soon(_announce, node)
            outcome = await node.run()
            nursery.cancel_scope.cancel()
        assert outcome is not None
        return replace(outcome, state=desk.status())


async def _announce(node: Node) -> None:
    await node.started.wait()
    node.observe((Fact(event="listening", fields={"addresses": list(node.transport.addresses())}),))
