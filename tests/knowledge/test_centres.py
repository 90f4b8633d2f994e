"""Prototypes: means by hand, and a median that liars do not move."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from poisoners import moved_prototypes

from p2pfl.knowledge.centres import class_means, combine, geometric_median
from p2pfl.knowledge.packets import Prototypes

# Weiszfeld's steps shrink where the least sum is at a point of the set: it ends this much above, at most.
_FLAT = 1e-4


def test_the_mean_of_each_class_that_has_enough_samples() -> None:
    embeddings = np.array([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0], [7.0, 1.0]])
    made = class_means(embeddings, np.array([2, 2, 0, 1]), classes=4, least=2)
    assert made is not None
    assert (made.classes.tolist(), made.counts.tolist(), made.means.tolist()) == ([2], [2], [[2.0, 1.0]])
    assert class_means(embeddings, np.arange(4), classes=4, least=2) is None


def test_fermat_s_point_of_a_triangle() -> None:
    # Of an equilateral triangle the centre; with an angle of 120 degrees or more, that corner.
    corners = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, np.sqrt(3)]])
    np.testing.assert_allclose(geometric_median(corners), corners.mean(axis=0), atol=1e-7)
    flat = np.array([[-2.0, 0.0], [2.0, 0.0], [0.0, 0.5]])
    np.testing.assert_allclose(geometric_median(flat), flat[2], atol=1e-6)


def test_of_two_points_the_middle_of_one_itself_and_of_many_alike_those() -> None:
    points = np.array([[0.0, 4.0], [2.0, 0.0]])
    np.testing.assert_allclose(geometric_median(points), [1.0, 2.0])
    np.testing.assert_array_equal(geometric_median(points[:1]), points[0])
    np.testing.assert_allclose(geometric_median(np.vstack([points[[0] * 3], points])), points[0])


# Here the median is a point that barely holds it, and there one that barely does not.
@example(p=4, h=2, seed=22584711)
@example(p=4, h=2, seed=387)
@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_no_point_nearby_has_a_smaller_sum_of_distances(p: int, h: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(p, h))
    median = geometric_median(points)

    def cost(y: np.ndarray) -> float:
        return float(np.linalg.norm(points - y, axis=1).sum())

    assert all(cost(median) <= cost(median + 0.01 * rng.normal(size=h)) * (1 + _FLAT) for _ in range(10))
    assert cost(median) <= min(cost(point) for point in points) * (1 + _FLAT)


def sites(seed: int, peers: int = 7) -> list[Prototypes]:
    rng = np.random.default_rng(seed)
    centres = 4 * rng.normal(size=(5, 16))
    return [
        Prototypes(
            classes=np.arange(5, dtype=np.uint16),
            counts=np.full(5, 20, np.uint32),
            means=(centres + 0.2 * rng.normal(size=(5, 16))).astype(np.float32),
            K=5,
        )
        for _ in range(peers)
    ]


@pytest.mark.parametrize(("liars", "is_moved"), [(0, False), (3, False), (4, True)])
def test_prototypes_that_are_moved_far_count_for_nothing_while_they_are_the_fewer(
    liars: int, is_moved: bool
) -> None:
    good = sites(0)
    poisoned = [moved_prototypes(one, 1000.0) if i < liars else one for i, one in enumerate(good)]
    true = np.mean([one.means for one in good], axis=0)
    centres, is_known = combine(poisoned, classes=5, width=16)
    assert is_known.all()
    distance = np.linalg.norm(centres - true, axis=1).max()
    assert (distance > 100) == is_moved
    assert is_moved or distance < 3


def test_a_class_that_nobody_has_or_has_enough_of_is_not_known() -> None:
    one = sites(0)[0]
    few = Prototypes(classes=one.classes[:2], counts=np.array([1, 9], np.uint32), means=one.means[:2], K=5)
    centres, is_known = combine([few], classes=5, width=16, least=2)
    assert is_known.tolist() == [False, True, False, False, False]
    np.testing.assert_allclose(centres[1], few.means[1])
    assert not centres[~is_known].any()
