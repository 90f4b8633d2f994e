"""Every kind of exchange: what is built, and that whatever happens is survived."""

from typing import Any

import numpy as np
import pytest
from exchanging import Site, deliver
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError, RemoteError
from p2pfl.ids import PeerId, RunId
from p2pfl.knowledge.exchange import Heading
from p2pfl.knowledge.hub import HubExchange
from p2pfl.knowledge.kinds import exchange_of
from p2pfl.knowledge.options import ExchangeOptions, KnowledgeOptions, ProbeOptions
from p2pfl.knowledge.packets import PacketKind
from p2pfl.knowledge.proxy import check_travelling
from p2pfl.knowledge.ranking import Capability
from p2pfl.work import (
    Answer,
    Answered,
    Distill,
    Distilled,
    Expected,
    Extract,
    Extracted,
    Fit,
    Fitted,
    Job,
    Judge,
    Judged,
    Learn,
    Learned,
    Mix,
    Mixed,
    Mutual,
    Result,
    Summarise,
    Summarised,
)

N, K, D = 6, 3, 4
RUN = RunId("22" * 32)
A, B = PeerId("a"), PeerId("b")
PEERS = [A, B, PeerId("c")]
EXPECTED = Expected(classes=K, width=D, split=bytes(32))
OPTIONS = {
    "hub": KnowledgeOptions(exchange=ExchangeOptions(kind="hub", share_features=True, cache_mb=1)),
    "probe": KnowledgeOptions(
        exchange=ExchangeOptions(kind="probe", whole_every=3),
        probe=ProbeOptions(source="npz:p.npz", digest="00" * 32, samples=N),
    ),
    "proto": KnowledgeOptions(exchange=ExchangeOptions(kind="proto", least_count=1)),
    "proxy": KnowledgeOptions(exchange=ExchangeOptions(kind="proxy")),
}


def learner(job: Job) -> Result:
    rng = np.random.default_rng(0)
    match job:
        case Fit():
            return Fitted()
        case Answer():
            return Answered(logits=rng.normal(size=(N, K)), confidence=np.array([0.5]))
        case Extract():
            return Extracted(
                ids=np.arange(N, dtype=np.uint64),
                hidden=rng.normal(size=(N, D)).astype(np.float32),
                logits=rng.normal(size=(N, K)),
                labels=np.arange(N) % K,
                is_held_out=np.zeros(N, np.bool_),
            )
        case Summarise():
            return Summarised(embeddings=rng.normal(size=(N, D)), labels=np.arange(N) % K)
        case Judge():
            return Judged(losses=dict.fromkeys(job.features, float("nan")))
        case Learn():
            everyone = {**job.features, **job.only_answer}
            logits = {peer: rng.normal(size=(f.labels.size, K)) for peer, f in everyone.items()}
            return Learned(logits=logits, model=np.zeros(5, np.float32))
        case Mix():
            return Mixed()
        case Distill():
            return Distilled()


def site(kind: str, me: PeerId) -> Site:
    exchange = exchange_of(OPTIONS[kind], expected=EXPECTED, me=me, run=RUN)
    assert exchange is not None
    made = Site(exchange=exchange, learner=learner, state=exchange.start())
    if isinstance(exchange, HubExchange):
        for hub in (A, B):
            capability = Capability(capacity=1.0, model=bytes(32), split=bytes(32))
            made.state = exchange.announced(made.state, hub, capability)
    return made


def test_an_agreement_without_an_exchange_has_no_policy() -> None:
    assert exchange_of(KnowledgeOptions(), expected=EXPECTED, me=A, run=RUN) is None


@pytest.mark.parametrize("kind", ["hub", "proto"])
def test_a_learner_without_hidden_features_cannot_join(kind: str) -> None:
    with pytest.raises(ConfigError, match="hidden features"):
        exchange_of(OPTIONS[kind], expected=Expected(classes=K), me=A, run=RUN)


def test_a_proxy_run_fits_both_models_and_offers_nothing_itself() -> None:
    one = site("proxy", A)
    one.state = one.exchange.begin(one.state, 0, hears=frozenset({B}), tells=frozenset({B}))
    assert one.exchange.jobs(one.state) == (Fit(mutual=Mutual(alpha=0.5, beta=0.5, temperature=3.0)),)
    one.work()
    one.state = one.exchange.turn(one.state)
    assert one.exchange.jobs(one.state) == ()
    assert one.exchange.offers(one.state) == ()
    heading = Heading(sender=B, round=0, kind=PacketKind.PROBE, size=10)
    assert one.exchange.verdict(one.state, heading) == "kind"
    with pytest.raises(RemoteError, match="does not exchange"):
        one.exchange.absorb(one.state, heading, b"")


def test_only_the_proxy_s_tensors_travel() -> None:
    check_travelling(["proxy.0.weight", "proxy.0.bias"])
    with pytest.raises(ConfigError, match=r"'private\.0\.weight' would travel"):
        check_travelling(["proxy.0.weight", "private.0.weight"])


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "turn", "work", "one job", "gone", "packet", "bytes", "offers"]),
        st.sampled_from(PEERS),
        st.sampled_from(PEERS),
        st.integers(-1, 3),
        st.sampled_from(list(PacketKind)),
        st.binary(max_size=40),
    ),
    max_size=25,
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIONS)
@given(events=EVENTS)
def test_any_calls_in_any_order_are_survived(kind: str, events: list[tuple[Any, ...]]) -> None:
    everyone = {peer: site(kind, peer) for peer in PEERS}
    rounds = dict.fromkeys(PEERS, -1)
    for what, me, other, number, packet_kind, data in events:
        one = everyone[me]
        x = one.exchange
        match what:
            case "begin":
                rounds[me] += 1
                others = frozenset(PEERS) - {me}
                one.state = x.begin(one.state, rounds[me], hears=others, tells=others)
            case "turn":
                one.state = x.turn(one.state)
            case "work" if rounds[me] >= 0:
                one.work()
            case "one job" if rounds[me] >= 0:
                for job in x.jobs(one.state)[:1]:
                    one.state = x.made(one.state, learner(job))
            case "gone":
                one.state = x.peer_gone(one.state, other)
            case "packet":
                for offer in x.offers(one.state):
                    for peer in offer.recipients:
                        heading = Heading(sender=me, round=offer.round, kind=offer.kind, size=offer.body.size)
                        deliver(everyone[peer], heading, offer.body.tobytes())
            case "bytes":
                heading = Heading(sender=other, round=number, kind=packet_kind, size=len(data))
                deliver(one, heading, data)
        assert x.awaited(one.state) <= frozenset(PEERS) - {me}
        assert all(me not in offer.recipients for offer in x.offers(one.state))
