import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import ConfigError
from p2pfl.ids import PeerId
from p2pfl.net.link_model import PERFECT, LinkModel, message_rng

A, B = PeerId("A"), PeerId("B")


def fates(link: LinkModel, count: int = 4000) -> list[tuple[float, ...]]:
    rng = np.random.default_rng(5)
    return [link.fates(rng) for _ in range(count)]


def test_a_perfect_link_delivers_everything_once_and_at_once() -> None:
    assert set(fates(PERFECT, 100)) == {(0.0,)}


def test_rates_are_what_was_asked_for() -> None:
    link = LinkModel(latency_s=(0.1, 0.2), loss=0.3, duplication=0.1, reorder=0.2)
    drawn = fates(link)
    arrived = [copies for copies in drawn if copies]
    # Four standard deviations of a rate over 4,000 draws are below .03.
    assert 1 - len(arrived) / len(drawn) == pytest.approx(0.3, abs=0.03)
    assert np.mean([len(copies) == 2 for copies in arrived]) == pytest.approx(0.1, abs=0.03)
    assert np.mean([copies[0] > 0.2 for copies in arrived]) == pytest.approx(0.2, abs=0.03)
    assert all(0.1 <= delay <= 0.6 for copies in arrived for delay in copies)
    on_time = [copies[0] for copies in arrived if copies[0] <= 0.2]
    assert np.mean(on_time) == pytest.approx(0.15, abs=0.003)


def test_a_link_that_loses_everything_delivers_nothing() -> None:
    assert set(fates(LinkModel(loss=1.0), 100)) == {()}


def test_changing_one_rate_leaves_the_other_draws_alone() -> None:
    without, with_loss = LinkModel(latency_s=(0, 1)), LinkModel(latency_s=(0, 1), loss=0.5)
    pairs = list(zip(fates(without, 200), fates(with_loss, 200), strict=True))
    assert any(not lossy for _, lossy in pairs)
    assert all(lossy in ((), kept) for kept, lossy in pairs)


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency_s": (0.2, 0.1)},
        {"latency_s": (-1.0, 0.1)},
        {"latency_s": (0.0, float("inf"))},
        {"latency_s": (float("nan"), 1.0)},
        {"loss": 1.1},
        {"duplication": -0.1},
        {"reorder": float("nan")},
        {"bandwidth_mbit_s": -1.0},
    ],
)
def test_impossible_links_are_config_errors(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LinkModel(**wrong)  # type: ignore[arg-type]


def test_bandwidth_adds_the_time_that_the_bits_take() -> None:
    assert LinkModel(bandwidth_mbit_s=8.0).transfer_s(2_000_000) == 2.0
    assert PERFECT.transfer_s(10**12) == 0.0


@given(st.floats(0, 1), st.integers(0, 2**32))
def test_without_reordering_nothing_is_overtaken(duplication: float, seed: int) -> None:
    link = LinkModel(latency_s=(0.0, 5.0), loss=0.2, duplication=duplication)
    rng, floor, last = np.random.default_rng(seed), 0.0, 0.0
    for sent in range(20):
        times, floor = link.arrivals(rng, now=float(sent), floor=floor, size_bytes=0)
        if times:
            assert min(times) >= last
            last = times[0]


def test_a_reordered_message_is_overtaken_but_holds_nobody_up() -> None:
    link = LinkModel(latency_s=(1.0, 1.0), reorder=1.0)
    times, floor = link.arrivals(np.random.default_rng(0), now=0.0, floor=0.0, size_bytes=0)
    assert times[0] >= 2.0
    assert floor == 0.0


def test_a_messages_randomness_depends_on_its_edge_and_number_only() -> None:
    draw = {
        key: message_rng(*key).random() for key in [(1, A, B, 0), (1, A, B, 1), (1, B, A, 0), (2, A, B, 0)]
    }
    assert len(set(draw.values())) == 4
    assert message_rng(1, A, B, 0).random() == draw[1, A, B, 0]
