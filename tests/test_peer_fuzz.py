"""Handling is total: no event, in no state, raises or grows memory past its limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from worlds import agreement, facts, tiny_world

from p2pfl.events import (
    Ack,
    Commanded,
    Connected,
    Disconnected,
    Evaluated,
    Event,
    Faulted,
    Header,
    Hello,
    Kind,
    Message,
    Notice,
    Offered,
    Received,
    Roster,
    Statement,
    Trained,
)
from p2pfl.ids import PeerId, RunId
from p2pfl.participant import Participant
from p2pfl.simulations.machine import identities
from p2pfl.simulations.world import World

_N = 4
_NAMES = [identity.peer_id for identity in identities(_N, 0)]
_STRANGER = identities(1, 99)[0].peer_id
_MEMORY = 40
_RUN = RunId("ab" * 32)

_peers = st.sampled_from([*_NAMES[1:], _NAMES[0], _STRANGER])
_counts = st.one_of(st.integers(0, 5), st.sampled_from([2**31, 2**53 - 1]))
_weights = st.sampled_from(
    [(), (0.5,), (0.0,), (-1.0,), (1e300,), (float("nan"),), (float("inf"),), (0.3, 0.3), (0.3, 2.0)]
)
_words = st.sampled_from(
    ["accepted", "not-accepted", "left", "finished", "retired", "greet", "run-mismatch", "", "bogus"]
)
_blobs = st.one_of(st.just(b""), st.binary(max_size=40))


def _bodies(world: World) -> st.SearchStrategy[Any]:
    state = world.peer(0).state
    hellos = st.builds(
        Hello,
        agreement=st.sampled_from([state.agreement.decode(), "{}", "[" * 500, "\x00"]),
        begun=st.booleans(),
        phase=st.sampled_from(["running", "draining", "finished", "bogus"]),
        initial_digest=st.sampled_from([state.initial_digest, b"", b"x" * 32]),
        their_incarnation=st.sampled_from([0, state.incarnation, 7]),
        absorbed=_counts,
        refused=st.sampled_from([(), (1,), (1, 2, 3)]),
        sent=_counts,
        acked=_counts,
        base=_counts,
        accepts=st.booleans(),
        roster_digest=_blobs,
    )
    acks = st.builds(
        Ack,
        their_incarnation=st.sampled_from([0, state.incarnation]),
        absorbed=_counts,
        refused=st.dictionaries(_counts, _words, max_size=3),
    )
    arrays = st.sampled_from([0, 1, 12, 13, 24, 64]).flatmap(
        lambda size: st.sampled_from(
            [np.zeros(size, np.uint8), np.full(size, 255, np.uint8), np.arange(size, dtype=np.uint8)]
        )
    )
    return st.one_of(
        hellos,
        acks,
        st.builds(Statement, content=_blobs, salt=_blobs),
        st.builds(Notice, code=_words, text=st.just("x")),
        st.builds(
            Roster,
            certificates=st.lists(_blobs, max_size=2).map(tuple),
            revocations=st.lists(_blobs, max_size=2).map(tuple),
            addresses=st.lists(_blobs, max_size=2).map(tuple),
        ),
        arrays,
    )


def _headers(world: World) -> st.SearchStrategy[Header]:
    state = world.peer(0).state
    size = state.mass.body_bytes
    incarnations = [machine.peer.state.incarnation for machine in world.machines if machine.peer]
    return st.builds(
        Header,
        run=st.sampled_from([state.run, state.run, _RUN]),
        epoch=st.sampled_from([0, 0, 1]),
        sender=_peers,
        recipient=st.sampled_from([_NAMES[0], _NAMES[0], _NAMES[1]]),
        incarnation=st.sampled_from([*incarnations, 0, 5]),
        boot_session=_counts,
        kind=st.sampled_from(list(Kind)),
        round=_counts,
        edge_seq=_counts,
        schema_hash=st.sampled_from([state.schema_hash, state.schema_hash, b"", b"y" * 32]),
        codec=st.sampled_from(["none", "none", "gzip"]),
        size=st.sampled_from([size, size, 0, 13, 2**40]),
        raw_size=st.sampled_from([size, size, 0, 2**40]),
        digest=_blobs,
        weights=_weights,
        issued_at=st.sampled_from([0.0, 1e12, -5.0]),
    )


def _events(world: World) -> st.SearchStrategy[Event]:
    def from_its_sender(header: Header, is_honest: bool) -> tuple[PeerId, Header]:
        return (header.sender if is_honest else _NAMES[2]), header

    headed = st.builds(from_its_sender, _headers(world), st.sampled_from([True, True, True, False]))
    return st.one_of(
        headed.map(lambda pair: Offered(peer=pair[0], header=pair[1])),
        st.builds(
            lambda pair, body: Received(peer=pair[0], message=Message(header=pair[1], body=body)),
            headed,
            _bodies(world),
        ),
        headed.map(lambda pair: Faulted(peer=pair[0], reason="timeout", header=pair[1])),
        st.builds(Faulted, peer=_peers, reason=_words),
        st.builds(Connected, peer=_peers),
        st.builds(Disconnected, peer=_peers),
        st.builds(
            Trained,
            round=_counts,
            parameters=st.sampled_from([None, np.ones(3, np.float32), np.ones(4, np.float32)]),
            fault=_words,
        ),
        st.builds(Evaluated, round=_counts, metrics=st.just({"accuracy": 0.5})),
        st.builds(
            Commanded,
            verb=st.sampled_from(
                ["ban", "set", "forget", "admit", "pause", "resume", "leave", "dial", "bogus", "publish"]
            ),
            arguments=st.sampled_from(
                [
                    {},
                    {"peer": _NAMES[1]},
                    {"peer": "x"},
                    {"peer": _NAMES[2], "accept": "bogus"},
                    {"certificate": b"x"},
                ]
            ),
        ),
    )


def _held_bytes(peer: Participant) -> int:
    return peer.state.neighbours.fetching_bytes() + peer.state.links.held_bytes()


@pytest.mark.slow
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    # Shrinking draws the whole vocabulary again and again: a failing example prints its events as they are.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(
    stage_s=st.sampled_from([0.0, 0.05, 2.5, 5.5, 30.0]),
    averaging=st.sampled_from(["push-sum", "push-pull"]),
    data=st.data(),
)
def test_no_event_in_any_state_raises_or_takes_more_memory_than_allowed(
    stage_s: float, averaging: str, data: st.DataObject
) -> None:
    spec = agreement(_N, seed=0, gossip={"averaging": {"kind": averaging}})
    world = tiny_world(_N, spec=spec, memory_bytes=_MEMORY)
    world.run(until_s=stage_s)
    while world.machines[0].peer is None:
        world.step()
    while world.now <= stage_s and world.machines[0].peer.view().phase == "idle":
        world.step()
    peer = world.peer(0)
    now = world.now
    events = data.draw(st.lists(st.one_of(_events(world), st.none()), min_size=5, max_size=30))
    for event in events:
        now += 0.7
        effects = peer.expire(now) if event is None else peer.handle(event, now)
        assert isinstance(effects, list)
        assert _held_bytes(peer) <= _MEMORY
        peer.view()
        assert np.isfinite(peer.state.mass.w)
        assert np.isfinite(peer.model()).all()


@pytest.mark.parametrize("verb", ["ban", "forget", "set"])
def test_a_command_about_nobody_is_refused_and_harms_nothing(verb: str) -> None:
    world = tiny_world(2, spec=agreement(2, rounds=4))
    world.run(until_s=1.5)
    world.command(0, verb, peer="x", accept="deny")
    assert world.run(until_s=1000)
    assert "not the id" in facts(world, 0, "command refused")[0].fields["reason"]


def test_a_weight_or_vector_that_is_not_finite_is_refused_and_goes_back() -> None:
    world = tiny_world(2, spec=agreement(2, rounds=10))
    world.run(until_s=2.5)
    victim, liar = world.peer(0), world.peer(1)
    seq = (
        victim.state.links.edge_from(liar.state.me).absorbed
        + len(victim.state.links._arrivals.get(liar.state.me, {}))
        + 1
    )
    header = liar.state.header(
        victim.state.me,
        Kind.SHARE,
        edge_seq=seq,
        schema_hash=victim.state.schema_hash,
        size=12,
        raw_size=12,
        digest=b"d" * 32,
        weights=(0.5,),
    )
    effects = victim.handle(Offered(peer=liar.state.me, header=header), world.now)
    assert "Fetch" in {type(effect).__name__ for effect in effects}
    body = np.full(3, np.nan, np.float32).view(np.uint8)
    effects = victim.handle(
        Received(peer=liar.state.me, message=Message(header=header, body=body)), world.now
    )
    assert "not-finite" in {getattr(effect, "fault", "") for effect in effects}
    bad = replace(header, weights=(float("nan"),), edge_seq=seq + 1)
    effects = victim.handle(Offered(peer=liar.state.me, header=bad), world.now)
    assert "Refuse" in {type(effect).__name__ for effect in effects}
