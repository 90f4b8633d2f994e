"""Exchange of predictions: what is distilled, what travels, who is missed."""

from typing import Any

import numpy as np
import pytest
from exchanging import Site, Sites
from poisoners import loss_maximising

from p2pfl.ids import PeerId
from p2pfl.knowledge.beliefs import Beliefs, agreement, log_softmax
from p2pfl.knowledge.consensus import Held, combine
from p2pfl.knowledge.exchange import Heading
from p2pfl.knowledge.options import ExchangeOptions, ProbeOptions
from p2pfl.knowledge.packets import Coding, PacketKind, probe_bytes
from p2pfl.knowledge.probe import ProbeExchange
from p2pfl.work import Answer, Answered, Distill, Distilled, Expected, Fit, Fitted, Job, Result

N, K = 40, 5
A, B, C = (PeerId(name) for name in "abc")


class Answers:
    """A learner that answers with fixed logits, which the test may change."""

    def __init__(self, logits: Beliefs) -> None:
        self.logits = logits
        self.targets: Distill | None = None
        self.is_failing = False

    def __call__(self, job: Job) -> Result | None:
        match job:
            case Fit():
                return Fitted()
            case Answer():
                confidence = np.linspace(0.2, 1, 50)
                return None if self.is_failing else Answered(logits=self.logits, confidence=confidence)
            case Distill():
                self.targets = job
                return Distilled()
        raise AssertionError(job)


def sites(logits: dict[PeerId, Beliefs], **options: Any) -> tuple[Sites, dict[PeerId, Answers]]:
    learners = {peer: Answers(z) for peer, z in logits.items()}
    probe = ProbeOptions(source="npz:probe.npz", digest="0a" * 32, samples=len(next(iter(logits.values()))))
    classes = next(iter(logits.values())).shape[1]

    def site(peer: PeerId) -> Site:
        chosen = ExchangeOptions(kind="probe", **options)
        exchange = ProbeExchange(options=chosen, probe=probe, expected=Expected(classes=classes), me=peer)
        return Site(exchange=exchange, learner=learners[peer])

    return Sites({peer: site(peer) for peer in logits}), learners


def random(seed: int, peers: str = "abc") -> dict[PeerId, Beliefs]:
    rng = np.random.default_rng(seed)
    return {PeerId(name): 3 * rng.normal(size=(N, K)) for name in peers}


def held(logits: Beliefs) -> Held:
    return Held(round=0, vouched=np.ones(len(logits), np.bool_), log_p=log_softmax(logits).astype(np.float32))


def target(learner: Answers) -> Distill:
    assert learner.targets is not None
    return learner.targets


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_every_site_distils_what_all_believe_together(rule: str) -> None:
    logits = random(0)
    network, learners = sites(logits, combine=rule, coding="float16")
    assert network.round(0) == {A: frozenset(), B: frozenset(), C: frozenset()}
    together, _ = combine([held(z) for z in logits.values()], rule)
    for learner in learners.values():
        np.testing.assert_allclose(target(learner).p, together, atol=2e-3)
        assert (target(learner).epochs, target(learner).temperature) == (4, 3.0)
    # All the same, to the last bit, whoever combines them.
    assert all(np.array_equal(target(learners[A]).p, target(learners[p]).p) for p in (B, C))


def test_bytes_are_those_of_the_formula_and_what_has_not_moved_is_not_sent_again() -> None:
    network, learners = sites(random(1), whole_every=3)
    everything = probe_bytes(N, rows=N, classes=K, coding=Coding.INT8)
    network.round(0)
    assert set(network.sent.values()) == {2 * everything}
    learners[A].logits = np.vstack([random(2)[A][:7], learners[A].logits[7:]])
    network.round(1)
    nothing, seven = (probe_bytes(N, rows=m, classes=K, coding=Coding.INT8, is_delta=True) for m in (0, 7))
    assert network.sent == {A: 2 * seven, B: 2 * nothing, C: 2 * nothing}
    together, _ = combine([held(learner.logits) for learner in learners.values()], "median")
    np.testing.assert_allclose(target(learners[C]).p, together, atol=0.05)
    network.round(2)
    network.round(3)
    assert set(network.sent.values()) == {2 * everything}


def test_one_whose_packet_is_lost_is_missed_at_the_deadline_and_follows_from_the_next_whole_one() -> None:
    network, learners = sites(random(3), whole_every=3)
    network.round(0)
    network.cut = {(A, B)}
    missed = network.round(1)
    assert missed == {A: frozenset(), B: frozenset({A}), C: frozenset()}
    rest, _ = combine([held(learners[p].logits) for p in (B, C)], "median")
    np.testing.assert_allclose(target(learners[B]).p, rest, atol=0.05)
    network.cut = set()
    assert network.round(2)[B] == {A}
    assert "follow those of round 1" in network.sites[B].refused[-1]
    assert network.round(3)[B] == frozenset()


def test_who_was_away_gets_everything_and_is_understood_at_once() -> None:
    network, _ = sites(random(4), whole_every=100)
    network.round(0)
    for one, other in ((A, B), (B, A)):
        site = network.sites[one]
        site.state = site.exchange.peer_gone(site.state, other)
    assert network.round(1) == {A: frozenset(), B: frozenset(), C: frozenset()}
    whole, delta = (
        probe_bytes(N, rows=N, classes=K, coding=Coding.INT8),
        probe_bytes(N, rows=0, classes=K, coding=Coding.INT8, is_delta=True),
    )
    assert network.sent == {A: whole + delta, B: whole + delta, C: 2 * delta}


def test_a_site_that_hears_nobody_has_nothing_to_distil() -> None:
    network, learners = sites(random(5))
    network.cut = {(p, q) for p in (A, B, C) for q in (A, B, C)}
    network.round(0)
    assert learners[A].targets is None


def test_a_site_whose_answer_failed_is_taught_by_the_others() -> None:
    network, learners = sites(random(6))
    learners[A].is_failing = True
    missed = network.round(0)
    assert missed == {A: frozenset(), B: {A}, C: {A}}
    rest, _ = combine([held(learners[p].logits) for p in (B, C)], "median")
    np.testing.assert_allclose(target(learners[A]).p, rest, atol=0.05)


def test_a_sample_that_nobody_vouches_for_is_not_used() -> None:
    sure, unsure = np.zeros((N, K)), np.zeros((N, K))
    sure[:10, 0] = unsure[:10, 0] = 9.0
    network, learners = sites({A: sure, B: unsure}, keep=0.5)
    network.round(0)
    assert target(learners[A]).is_used.tolist() == [True] * 10 + [False] * (N - 10)
    assert network.sent[A] == probe_bytes(N, rows=10, classes=K, coding=Coding.INT8)


def test_two_liars_of_eight_cost_the_median_little_and_the_mean_much() -> None:
    rng = np.random.default_rng(7)
    labels = rng.integers(10, size=1000)
    shared = 3.2 * np.eye(10)[labels] + rng.normal(size=(1000, 10))
    logits = {PeerId(f"p{i}"): shared + 1.2 * rng.normal(size=(1000, 10)) for i in range(8)}
    lie = loss_maximising(np.stack([log_softmax(z) for z in logits.values()]))
    reached = {}
    for rule in ("mean", "median"):
        network, learners = sites(logits | {PeerId("p0"): lie, PeerId("p1"): lie}, combine=rule)
        network.round(0)
        reached[rule] = agreement(np.log(target(learners[PeerId("p7")]).p), labels)
    assert reached["median"] - reached["mean"] > 0.05


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"kind": PacketKind.FEATURES}, "kind"),
        ({"sender": PeerId("stranger")}, "not-accepted"),
        ({"round": 3}, "round"),
        ({"round": 4}, "repeated"),
        ({"size": 10_000}, "size"),
    ],
)
def test_a_header_decides_whether_a_body_is_fetched(change: dict[str, Any], reason: str | None) -> None:
    network, _ = sites(random(8))
    for number in range(5):
        network.round(number)
    site = network.sites[A]
    state = site.exchange.begin(site.state, 5, hears=frozenset({B}), tells=frozenset({B}))
    usual: dict[str, Any] = {"sender": B, "round": 5, "kind": PacketKind.PROBE, "size": 100}
    assert site.exchange.verdict(state, Heading(**(usual | change))) == reason
