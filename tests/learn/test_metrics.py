from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from p2pfl.errors import LearnerError
from p2pfl.learn.metrics import accuracy, auc, consensus_distance, log_loss


def test_accuracy_is_the_share_of_right_rows() -> None:
    assert accuracy(np.array([0, 1, 2, 1]), np.array([0, 1, 1, 1])) == 0.75


def test_auc_of_a_worked_example() -> None:
    # Pairs (positive, negative): .35 > .1, .35 < .4, .8 > .1, .8 > .4: three of four.
    assert auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])) == 0.75


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=40))
def test_auc_with_ties_is_that_of_sklearn(rows: Any) -> None:
    labels, scores = np.array(rows).T
    if len(set(labels)) == 2:
        assert auc(labels, scores.astype(float)) == pytest.approx(oracle.roc_auc_score(labels, scores))
    else:
        assert np.isnan(auc(labels, scores.astype(float)))


def test_auc_of_many_classes_is_the_macro_mean_of_sklearn() -> None:
    rng = np.random.default_rng(0)
    labels, p = rng.integers(4, size=200), rng.dirichlet(np.ones(4), size=200).round(2)
    p /= p.sum(axis=1, keepdims=True)
    assert auc(labels, p) == pytest.approx(oracle.roc_auc_score(labels, p, multi_class="ovr"))


def test_auc_passes_over_a_class_that_no_row_has() -> None:
    p = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    assert auc(np.array([0, 1, 0]), p) == 1.0


def test_log_loss_is_that_of_sklearn() -> None:
    rng = np.random.default_rng(1)
    labels, p = rng.integers(3, size=50), rng.dirichlet(np.ones(3), size=50)
    assert log_loss(labels, p) == pytest.approx(oracle.log_loss(labels, p, labels=[0, 1, 2]))
    binary, q = rng.integers(2, size=50), rng.random(50)
    assert log_loss(binary, q) == pytest.approx(oracle.log_loss(binary, q))


def test_log_loss_of_a_sure_mistake_is_finite() -> None:
    assert np.isfinite(log_loss(np.array([1]), np.array([[1.0, 0.0]])))


def test_metrics_of_no_rows_are_refused() -> None:
    with pytest.raises(LearnerError):
        accuracy(np.zeros(0), np.zeros(0))
    with pytest.raises(LearnerError):
        auc(np.zeros(3), np.zeros(2))


def test_consensus_distance_of_two_opposite_peers() -> None:
    models = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], np.float32)
    assert consensus_distance(models) == 1.0


def test_consensus_distance_is_zero_when_all_agree_and_ignores_the_order_of_peers() -> None:
    rng = np.random.default_rng(2)
    models = rng.normal(size=(5000, 3)).astype(np.float32)
    assert consensus_distance(models) == pytest.approx(consensus_distance(models[::-1]), rel=1e-12)
    assert consensus_distance(np.repeat(models[:1], 7, axis=0)) == pytest.approx(0.0, abs=1e-12)
    direct = np.sqrt(np.mean(np.sum((models - models.mean(0, dtype=np.float64)) ** 2, axis=1)))
    assert consensus_distance(models) == pytest.approx(direct)


def test_consensus_distance_needs_a_matrix() -> None:
    with pytest.raises(LearnerError, match=r"expected \(n, d\)"):
        consensus_distance(np.zeros(3))
