"""Knowledge that lies: each attack against its defence, up to what that bears and one past it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_splitter import splitter
from worlds import agreement, facts

from p2pfl.errors import ConfigError
from p2pfl.knowledge.beliefs import cross_entropy, log_softmax
from p2pfl.knowledge.centres import class_means
from p2pfl.knowledge.centres import combine as centres_of
from p2pfl.knowledge.consensus import Held, combine
from p2pfl.knowledge.guard import is_better, suspects
from p2pfl.learn.learner import Site
from p2pfl.simulations import scenario as scenarios
from p2pfl.simulations.attacks import KNOWLEDGE_KINDS, AttackOptions
from p2pfl.simulations.byzantine import ByzantinePeer
from p2pfl.simulations.false_knowledge import false_result
from p2pfl.simulations.machine import SimulatedSite, identities
from p2pfl.simulations.world import World
from p2pfl.work import Answered, Extracted, Learned, Mixed, Result, Summarised

PEERS, ROWS, K, WIDTH = 7, 200, 5, 6


def lie(kind: str, true: Result) -> Result:
    return false_result(AttackOptions(kind=kind, byzantine=1), true)


def truth(seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels, and logits of each peer, that are right more often than not."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(K, size=ROWS)
    return labels, 3 * np.eye(K)[labels] + rng.normal(size=(PEERS, ROWS, K))


def believed(logits: NDArray[np.floating]) -> Held:
    log_p = log_softmax(logits).astype(np.float32)
    return Held(round=0, vouched=np.ones(ROWS, np.bool_), log_p=log_p)


@pytest.mark.parametrize("kind", ["poisoned-probe", "poisoned-probe-prior"])
def test_the_median_of_predictions_bears_three_liars_of_seven_and_not_four(kind: str) -> None:
    labels, logits = truth()

    def accuracy(liars: int, rule: str) -> float:
        said = []
        for i in range(PEERS):
            true = Answered(logits=logits[i], confidence=np.zeros(0))
            told = lie(kind, true) if i < liars else true
            assert isinstance(told, Answered)
            said.append(believed(told.logits))
        return float((combine(said, rule)[0].argmax(axis=1) == labels).mean())

    assert accuracy(0, "median") > 0.95
    assert accuracy(3, "median") > 0.9
    assert accuracy(3, "mean") < accuracy(3, "median") - 0.05
    assert accuracy(4, "median") < 0.5


def test_a_hub_leaves_out_three_liars_of_seven_and_four_pass_for_the_honest() -> None:
    labels, logits = truth()
    true = Extracted(
        ids=np.arange(ROWS).astype(np.uint64),
        hidden=np.eye(WIDTH, dtype=np.float32)[labels],
        logits=logits[0],
        labels=labels,
        is_held_out=np.zeros(ROWS, np.bool_),
    )
    told = lie("poisoned-labels", true)
    assert isinstance(told, Extracted)
    assert np.array_equal(told.labels, (labels + 1) % K)
    assert (told.logits.argmax(axis=1) == told.labels).mean() > 0.8
    # The hub's model, right of what it was shown: its loss on each sender.
    log_p = log_softmax(8 * true.hidden[:, :K].astype(np.float64))
    names = [identity.peer_id for identity in identities(PEERS, 0)]

    def out(liars: int) -> set[int]:
        shown = [told if i < liars else true for i in range(PEERS)]
        losses = {names[i]: cross_entropy(log_p, one.labels) for i, one in enumerate(shown)}
        return {names.index(peer) for peer in suspects(losses)}

    assert out(0) == set()
    assert out(3) == {0, 1, 2}
    assert not {0, 1, 2, 3} & out(4)


def test_an_edge_does_not_listen_to_a_hub_that_answers_with_other_classes() -> None:
    labels, logits = truth()
    own = log_softmax(np.random.default_rng(1).normal(size=(ROWS, K)))
    names = [identity.peer_id for identity in identities(1, 0)]
    true = Learned(logits={names[0]: logits[0]}, model=np.zeros(2, np.float32))
    told = lie("poisoned-hub", true)
    assert isinstance(told, Learned)
    assert is_better(log_softmax(true.logits[names[0]]), own, labels)
    assert not is_better(log_softmax(told.logits[names[0]]), own, labels)
    # Past what it bears: without a row of its own to judge by, an edge listens to nobody at all.
    assert not is_better(log_softmax(true.logits[names[0]])[:0], own[:0], labels[:0])


def test_the_middle_of_prototypes_bears_three_liars_of_seven_and_not_four() -> None:
    labels, _ = truth()
    rng = np.random.default_rng(2)
    middle = rng.normal(size=(K, WIDTH))
    said = [
        Summarised(embeddings=middle[labels] + 0.1 * rng.normal(size=(ROWS, WIDTH)), labels=labels)
        for _ in range(PEERS)
    ]

    def off(liars: int) -> float:
        told: Sequence[Result] = [lie("poisoned-prototypes", one) for one in said[:liars]]
        means = [
            class_means(one.embeddings, one.labels, classes=K, least=2)
            for one in (*told, *said[liars:])
            if isinstance(one, Summarised)
        ]
        centres, _ = centres_of([mean for mean in means if mean is not None], classes=K, width=WIDTH, least=2)
        return float(np.linalg.norm(centres - middle, axis=1).max())

    assert off(3) < 0.2
    assert off(4) > 2.0


@pytest.mark.parametrize("kind", KNOWLEDGE_KINDS)
def test_what_an_attack_is_not_about_stays_true(kind: str) -> None:
    assert lie(kind, Mixed()) == Mixed()


def test_a_liar_among_whole_peers_is_left_out_by_the_hub_from_its_first_lie_on() -> None:
    spec = agreement(
        6,
        rounds=5,
        closing_rounds=0,
        gossip={"topology": {"kind": "complete"}, "averaging": {"kind": "none"}},
        knowledge={"exchange": {"kind": "hub", "share_features": True}},
    )
    attack = AttackOptions(kind="poisoned-labels", byzantine=1, starts_at=2)
    liar = identities(6, spec.run.seed)[-1].peer_id
    around = partial(ByzantinePeer, attack=attack, is_byzantine=lambda name: name == liar)
    world = World(
        spec,
        [
            SimulatedSite(
                factory=splitter,
                site=Site(data=f"hub {i}" if i == 0 else f"edge {i}"),
                shares_features=True,
                around=around if i == 5 else lambda peer: peer,
            )
            for i in range(6)
        ],
    )
    assert world.run(until_s=100)
    assert [m.finished for m in world.machines] == ["done"] * 6
    for i in range(6):
        assert [f.fields["heard"] for f in facts(world, i, "knowledge exchanged")][:1] == [5 if i == 0 else 1]
    sources = world.machines[0].workshop.learner.learned_from  # type: ignore[attr-defined]
    assert [rows // 12 for rows in sources] == [6, 6, 5, 5, 5]


def test_an_attack_on_knowledge_that_does_not_travel_is_refused() -> None:
    with pytest.raises(ConfigError, match="poisoned-probe"):
        scenarios.load("gkt", settings=['simulation.attack={kind="poisoned-probe", byzantine=1}'])
    with pytest.raises(ConfigError, match="shuffled-teacher"):
        scenarios.load("digits", settings=['simulation.control="shuffled-teacher"'])
    with pytest.raises(ConfigError, match="shuffled-teacher"):
        scenarios.load("digits", engine="population", settings=['simulation.control="shuffled-teacher"'])
