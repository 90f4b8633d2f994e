"""Exchange of prototypes: centres for the next fit, and liars that do not move them."""

from typing import Any

import numpy as np
import pytest
from exchanging import Site, Sites

from p2pfl.ids import PeerId
from p2pfl.knowledge.exchange import Heading
from p2pfl.knowledge.options import ExchangeOptions
from p2pfl.knowledge.packets import PacketKind, prototypes_bytes
from p2pfl.knowledge.proto import ProtoExchange
from p2pfl.work import Expected, Fit, Fitted, Job, Result, Summarise, Summarised

K, H = 4, 8
PEERS = [PeerId(f"p{i}") for i in range(5)]
CENTRES = 5 * np.random.default_rng(0).normal(size=(K, H))


class Embeddings:
    """A learner whose embeddings lie about `CENTRES`, for its own classes."""

    def __init__(self, seed: int, classes: range = range(K), shift: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.labels = np.repeat(list(classes), 10)
        self.embeddings = CENTRES[self.labels] + 0.1 * rng.normal(size=(self.labels.size, H)) + shift
        self.fit = Fit()

    def __call__(self, job: Job) -> Result:
        if isinstance(job, Fit):
            self.fit = job
            return Fitted()
        assert isinstance(job, Summarise)
        return Summarised(embeddings=self.embeddings, labels=self.labels)


def sites(learners: list[Embeddings], **options: Any) -> Sites:
    chosen = ExchangeOptions(kind="proto", **options)
    expected = Expected(classes=K, width=H)
    return Sites(
        {
            peer: Site(exchange=ProtoExchange(options=chosen, expected=expected, me=peer), learner=learner)
            for peer, learner in zip(PEERS, learners, strict=False)
        }
    )


def test_centres_of_all_classes_reach_a_site_that_has_few() -> None:
    learners = [Embeddings(i, classes=range(2) if i == 0 else range(K)) for i in range(5)]
    network = sites(learners, strength=0.5)
    network.round(0)
    assert all(learner.fit.pull is None for learner in learners)
    sizes = {PEERS[0]: 4 * prototypes_bytes(2, width=H)}
    assert network.sent == dict.fromkeys(PEERS, 4 * prototypes_bytes(K, width=H)) | sizes
    network.round(1)
    pull = learners[0].fit.pull
    assert pull is not None
    assert pull.is_known.all()
    assert pull.strength == 0.5
    np.testing.assert_allclose(pull.centres, CENTRES, atol=0.2)
    # Everyone hears everyone, so all have the same centres to the last bit.
    assert all(np.array_equal(learner.fit.pull.centres, pull.centres) for learner in learners)  # type: ignore[union-attr]


@pytest.mark.parametrize(("liars", "is_moved"), [(2, False), (3, True)])
def test_moved_prototypes_count_for_nothing_while_their_senders_are_the_fewer(
    liars: int, is_moved: bool
) -> None:
    learners = [Embeddings(i, shift=500.0 if i < liars else 0.0) for i in range(5)]
    network = sites(learners)
    network.round(0)
    network.round(1)
    pull = learners[4].fit.pull
    assert pull is not None
    assert (np.abs(pull.centres - CENTRES).max() > 100) == is_moved
    assert is_moved or np.abs(pull.centres - CENTRES).max() < 1


def test_a_class_that_nobody_has_any_more_keeps_its_centre() -> None:
    learners = [Embeddings(0), Embeddings(1, classes=range(3))]
    network = sites(learners)
    network.round(0)
    before = network.sites[PEERS[1]].state.pull
    network.gone(PEERS[0])
    network.round(1)
    after = network.sites[PEERS[1]].state.pull
    assert after.is_known.all()
    np.testing.assert_array_equal(after.centres[3], before.centres[3])
    assert not np.array_equal(after.centres[0], before.centres[0])


def test_a_class_with_too_few_samples_stays_at_home() -> None:
    network = sites([Embeddings(0), Embeddings(1)], least_count=11)
    network.round(0)
    assert set(network.sent.values()) == {0}
    assert network.sites[PEERS[0]].state.pull is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"kind": PacketKind.PROBE}, "kind"),
        ({"sender": PeerId("stranger")}, "not-accepted"),
        ({"round": 0}, "round"),
        ({"round": 1}, "round"),
        ({"size": 10_000}, "size"),
    ],
)
def test_a_header_decides_whether_a_body_is_fetched(change: dict[str, Any], reason: str | None) -> None:
    network = sites([Embeddings(i) for i in range(3)])
    network.round(0)
    network.round(1)
    site = network.sites[PEERS[0]]
    usual: dict[str, Any] = {"sender": PEERS[1], "round": 2, "kind": PacketKind.PROTOTYPES, "size": 50}
    assert site.exchange.verdict(site.state, Heading(**(usual | change))) == reason
