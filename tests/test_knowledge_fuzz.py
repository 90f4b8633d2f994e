"""Exchange of knowledge is total, too: no packet, answer or announcement raises or outgrows its limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tiny_splitter import CLASSES, ROWS, WIDTH, splitter
from worlds import agreement

from p2pfl.events import (
    Connected,
    Disconnected,
    Event,
    Faulted,
    Header,
    Kind,
    Message,
    Notice,
    Offered,
    Received,
)
from p2pfl.knowing import KINDS
from p2pfl.knowledge import bodies
from p2pfl.knowledge.packets import Coding, Features, HubModel, Probe, Prototypes, SoftLabels, quantised
from p2pfl.knowledge.ranking import Capability, pack_capability
from p2pfl.learn.learner import Site
from p2pfl.simulations.machine import SimulatedSite
from p2pfl.simulations.world import World
from p2pfl.work import Answered, Extracted, Fitted, Judged, Learned, Mixed, Summarised, Worked

_N = 4
_MEMORY = 2_000
_CAPABILITIES = [
    pack_capability(Capability(capacity=c, model=b"\x02" * 32, split=split * 32)).hex()
    for c in (0.0, 1.0, 1e12)
    for split in (b"\x01", b"\x09")
]
_results = st.sampled_from(
    [
        None,
        Fitted(),
        Mixed(),
        Answered(logits=np.zeros((3, 2)), confidence=np.zeros(0)),
        Extracted(
            ids=np.arange(ROWS, dtype=np.uint64),
            hidden=np.ones((ROWS, WIDTH), np.float32),
            logits=np.zeros((ROWS, CLASSES)),
            labels=np.zeros(ROWS, np.int64),
            is_held_out=np.zeros(ROWS, np.bool_),
        ),
        Extracted(
            ids=np.array([2**40], np.uint64),
            hidden=np.ones((1, 99), np.float32),
            logits=np.zeros((1, 1)),
            labels=np.zeros(1, np.int64),
            is_held_out=np.zeros(1, np.bool_),
        ),
        Summarised(embeddings=np.full((2, WIDTH), np.inf), labels=np.array([0, 1])),
        Judged(losses={}),
        Learned(logits={}, model=np.zeros(2, np.float32)),
    ]
)


def _packets() -> list[np.ndarray[Any, Any]]:
    ids = np.arange(ROWS, dtype=np.uint64)
    codes, scales = quantised(np.ones((ROWS, WIDTH), np.float32))
    z = np.full((ROWS, CLASSES), -1.0, np.float16)
    some = np.ones(5, np.bool_)
    return [
        bodies.encode(packet)
        for packet in (
            Features(ids=ids, hidden=codes, scales=scales, z=z, labels=np.zeros(ROWS, np.uint16)),
            SoftLabels(ids=ids, z=z),
            HubModel(values=np.ones(2, np.float32)),
            Probe(
                digest=bytes(32),
                vouched=some,
                sent=some,
                log_p=np.full((5, CLASSES), -1.0),
                coding=Coding.INT8,
            ),
            Prototypes(
                classes=np.array([0], np.uint16),
                counts=np.array([3], np.uint32),
                means=np.ones((1, WIDTH), np.float32),
                K=CLASSES,
            ),
        )
    ]


def _bodies() -> st.SearchStrategy[np.ndarray[Any, Any]]:
    def spoilt(body: np.ndarray[Any, Any], place: int, value: int, cut: int) -> np.ndarray[Any, Any]:
        body = body.copy()
        body[place % body.size] = value
        return body[: body.size - cut]

    whole = st.sampled_from(_packets())
    return st.one_of(
        whole,
        st.builds(spoilt, whole, st.integers(0, 500), st.integers(0, 255), st.sampled_from([0, 0, 1, 15])),
    )


def _events(world: World) -> st.SearchStrategy[Event]:
    state = world.peer(0).state
    others = st.sampled_from([machine for machine in world.machines[1:] if machine.peer])

    def packet(machine: Any, kind: Kind, round_: int, body: np.ndarray[Any, Any], what: str) -> Event:
        sender = machine.peer.state
        header = Header(
            run=state.run,
            sender=sender.me,
            recipient=state.me,
            incarnation=sender.incarnation,
            boot_session=sender.boot_session,
            kind=kind,
            round=round_,
            edge_seq=round_ + 1,
            size=body.nbytes,
            raw_size=body.nbytes,
            issued_at=0.0,
        )
        match what:
            case "offered":
                return Offered(peer=sender.me, header=header)
            case "failed":
                return Faulted(peer=sender.me, reason="timeout", header=header)
            case _:
                return Received(peer=sender.me, message=Message(header=header, body=body))

    def notice(machine: Any, text: str) -> Event:
        header = machine.peer.state.header(state.me, Kind.NOTICE)
        return Received(peer=machine.name, message=Message(header=header, body=Notice(code="hub", text=text)))

    rounds = st.sampled_from([0, 1, 2, 3, 2**31])
    whats = st.sampled_from(["offered", "offered", "received", "received", "failed"])
    return st.one_of(
        st.builds(packet, others, st.sampled_from(list(KINDS)), rounds, _bodies(), whats),
        st.builds(notice, others, st.sampled_from([*_CAPABILITIES, "", "zz", "00"])),
        st.builds(
            Worked,
            round=rounds,
            number=st.integers(0, 4),
            result=_results,
            parameters=st.sampled_from([None, np.ones(2, np.float32), np.ones(3, np.float32)]),
            fault=st.sampled_from(["", "", "it failed"]),
        ),
        st.builds(Connected, peer=others.map(lambda machine: machine.name)),
        st.builds(Disconnected, peer=others.map(lambda machine: machine.name)),
    )


@pytest.mark.slow
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(
    stage_s=st.sampled_from([0.02, 1.0, 1.6, 2.5, 5.5]),
    kind=st.sampled_from(["hub", "proto", "proxy"]),
    data=st.data(),
)
def test_no_packet_or_answer_raises_or_takes_more_memory_than_allowed(
    stage_s: float, kind: str, data: st.DataObject
) -> None:
    exchange: dict[str, Any] = {"kind": kind} | ({"share_features": True} if kind == "hub" else {})
    averaging = {"kind": "push-sum" if kind == "proxy" else "none"}
    spec = agreement(
        _N,
        gossip={"topology": {"kind": "complete"}, "averaging": averaging},
        knowledge={"exchange": exchange},
    )
    sites = [
        SimulatedSite(
            factory=splitter,
            site=Site(data=f"{'hub' if i < 2 else 'edge'} {i}"),
            memory_bytes=_MEMORY,
            fit_s=1.0,
        )
        for i in range(_N)
    ]
    world = World(spec, sites)
    for i in range(_N):
        for j in range(_N):
            world.at(
                0.005,
                0,
                lambda i=i, j=j: world.command(  # type: ignore[misc]
                    i, "set", peer=world.names[j], share="normal", **{"for": "features"}
                ),
            )
    world.run(until_s=stage_s)
    peer, now = world.peer(0), world.now
    for event in data.draw(st.lists(st.one_of(_events(world), st.none()), min_size=5, max_size=40)):
        now += 0.7
        effects = peer.expire(now) if event is None else peer.handle(event, now)
        assert isinstance(effects, list)
        state = peer.state
        held = state.neighbours.fetching_bytes() + state.links.held_bytes()
        assert held <= _MEMORY
        peer.view()
        assert np.isfinite(peer.model()).all()
