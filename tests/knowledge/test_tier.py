"""What hubs tell each other: who a tier is, and the predictions of hubs whose models differ."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from p2pfl.errors import LocalError, RemoteError
from p2pfl.ids import PeerId
from p2pfl.knowledge import bodies, tier
from p2pfl.knowledge.beliefs import log_softmax
from p2pfl.knowledge.cache import Cache
from p2pfl.knowledge.exchange import Heading
from p2pfl.knowledge.hub_state import HubState
from p2pfl.knowledge.options import ExchangeOptions, KnowledgeOptions, ProbeOptions
from p2pfl.knowledge.packets import PacketKind
from p2pfl.knowledge.ranking import Capability
from p2pfl.work import Answered

ME, OTHER, STRANGER = PeerId("me"), PeerId("other"), PeerId("stranger")
PROBE = ProbeOptions(source="sklearn:digits#0-3", digest="ab" * 32, samples=3)
OPTIONS = ExchangeOptions(kind="hub", share_features=True, tier="probe", epochs=2, sharpen=0.5)
# Of three samples and two classes.
Z = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]])


def state(round_: int = 4, **others: int) -> HubState:
    """A hub of model 1 in `round_` that hears `others`, each with the number of its split."""
    hubs = {PeerId(peer): capability(2, split) for peer, split in others.items()} | {ME: capability(1, 1)}
    heard = frozenset(PeerId(peer) for peer in others)
    return HubState(round=round_, hubs=hubs, hears=heard, cache=Cache(most_bytes=1))


def capability(model: int, split: int) -> Capability:
    return Capability(capacity=1.0, model=bytes([model]) * 32, split=bytes([split]) * 32)


def answered(z: Any = Z) -> Answered:
    return Answered(logits=np.asarray(z), confidence=np.zeros(0))


def told(round_: int, z: Any = Z) -> tuple[Heading, Any]:
    """What `other` says in `round_`."""
    said = tier.packet(tier.believed(state(round_), answered(z), PROBE, 2), PROBE)
    assert said is not None
    body = bodies.encode(said)
    return Heading(sender=OTHER, round=round_, kind=PacketKind.PROBE, size=body.size), body


def test_predictions_pass_between_hubs_of_one_split_whatever_their_models() -> None:
    here = state(other=1, stranger=2)
    assert tier.partners(here, ME, "probe") == (OTHER,)
    assert tier.partners(here, ME, "weights") == ()
    assert tier.partners(here, ME, "none") == ()
    assert tier.partners(here, STRANGER, "probe") == ()


def test_a_hub_learns_what_it_and_the_others_believed_in_the_round_before() -> None:
    here = tier.believed(state(4, other=1), answered(), PROBE, 2)
    heading, body = told(4, -Z)
    here = tier.heard(here, heading, body, PROBE, 2)
    lesson = tier.lesson(replace(here, round=5), (OTHER,), OPTIONS)
    assert lesson is not None
    assert lesson.is_of_hub
    assert (lesson.epochs, lesson.alpha, lesson.temperature) == (2, 1.0, 3.0)
    # Two hubs of opposite beliefs believe nothing together.
    np.testing.assert_allclose(lesson.p, 0.5, atol=0.02)
    assert lesson.is_used.all()


def test_what_is_believed_together_is_sharpened() -> None:
    here = tier.believed(state(4, other=1), answered(), PROBE, 2)
    heading, body = told(4)
    lesson = tier.lesson(replace(tier.heard(here, heading, body, PROBE, 2), round=5), (OTHER,), OPTIONS)
    assert lesson is not None
    squared = np.exp(2 * log_softmax(Z))
    np.testing.assert_allclose(lesson.p, squared / squared.sum(axis=1, keepdims=True), atol=0.02)


@pytest.mark.parametrize(("others", "later"), [((), 5), ((OTHER,), 6)])
def test_nothing_is_learned_of_nobody_and_of_old_words(others: Any, later: int) -> None:
    here = tier.believed(state(4, other=1), answered(), PROBE, 2)
    heading, body = told(4)
    here = tier.heard(here, heading, body, PROBE, 2)
    assert tier.lesson(replace(here, round=later), others, OPTIONS) is None


def test_a_packet_is_of_its_round_and_no_larger_than_the_limit_says() -> None:
    here = tier.believed(state(4, other=1), answered(), PROBE, 2)
    assert tier.packet(replace(here, round=5), PROBE) is None
    assert told(4)[0].size <= tier.most_bytes(PROBE, 2)


def test_predictions_of_another_shape_or_set_are_refused() -> None:
    with pytest.raises(LocalError, match="predictions of shape"):
        tier.believed(state(), answered(Z[:2]), PROBE, 2)
    heading, body = told(4)
    other_set = msgspec.structs.replace(PROBE, digest="cd" * 32)
    with pytest.raises(RemoteError):
        tier.heard(state(4, other=1), heading, body, other_set, 2)
    with pytest.raises(RemoteError):
        tier.heard(state(4, other=1), heading, body[:-1], PROBE, 2)


@pytest.mark.parametrize(
    ("exchange", "said"),
    [
        ({"tier": "probe"}, r"tier = 'probe' needs knowledge\.probe"),
        ({"epochs": 3}, "epochs is for hubs with tier = 'probe'"),
        ({"tier": "weights", "combine": "mean"}, "combine is for hubs with tier = 'probe'"),
    ],
)
def test_options_that_do_not_fit_are_refused(exchange: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KnowledgeOptions(exchange=ExchangeOptions(kind="hub", share_features=True, **exchange))
