from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from p2pfl.errors import LearnerError
from p2pfl.learn.distill import alpha_at, check_lesson, log_softmax, mixture, soften
from p2pfl.learn.torch_knowledge import distillation


def _draw(seed: int, n: int, classes: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    teacher = rng.normal(size=(n, classes)) * 4
    p = np.exp(log_softmax(teacher))
    return rng.normal(size=(n, classes)) * 3, p, rng.integers(classes, size=n)


cases = given(st.integers(0, 999), st.integers(1, 6), st.integers(2, 5), st.floats(0.5, 6), st.floats(0, 3))


@settings(max_examples=40, deadline=None)
@cases
def test_loss_and_gradient_are_those_of_autograd(seed: int, n: int, k: int, T: float, alpha: float) -> None:
    z, p, y = _draw(seed, n, k)
    student = torch.tensor(z, requires_grad=True)
    for labels in (None, y):
        loss, dz = mixture(z, soften(p, T), labels, temperature=T, alpha=alpha)
        expected = alpha * distillation(student, torch.tensor(p), T)
        if labels is not None:
            expected = expected + cross_entropy(student, torch.tensor(labels))
        (gradient,) = torch.autograd.grad(expected, student)
        assert loss == pytest.approx(float(expected.detach()), rel=1e-6, abs=1e-9)
        np.testing.assert_allclose(dz, gradient.numpy(), rtol=1e-6, atol=1e-9)


@settings(max_examples=25, deadline=None)
@cases
def test_the_gradient_is_that_of_finite_differences(
    seed: int, n: int, k: int, T: float, alpha: float
) -> None:
    z, p, y = _draw(seed, n, k)
    q, step = soften(p, T), 1e-5

    def loss(at: Any) -> float:
        return mixture(at, q, y, temperature=T, alpha=alpha)[0]

    dz = mixture(z, q, y, temperature=T, alpha=alpha)[1]
    for cell in np.ndindex(z.shape):
        move = np.zeros_like(z)
        move[cell] = step
        assert dz[cell] == pytest.approx((loss(z + move) - loss(z - move)) / (2 * step), abs=1e-6)


def test_a_worked_example() -> None:
    # T = 1, teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 log(3/2) + 1/4 log(1/2), gradient s - q.
    q = soften(np.array([[0.75, 0.25]]), 1.0)
    loss, dz = mixture(np.zeros((1, 2)), q, None, temperature=1.0, alpha=1.0)
    assert loss == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert dz.tolist() == [pytest.approx([-0.25, 0.25])]


def test_softened_probabilities_are_those_of_the_teachers_logits_over_the_temperature() -> None:
    z, _, _ = _draw(3, 20, 4)
    np.testing.assert_allclose(soften(np.exp(log_softmax(z)), 3.0), np.exp(log_softmax(z / 3)), rtol=1e-9)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn() -> None:
    z, _, _ = _draw(4, 8, 3)
    loss, dz = mixture(z, soften(np.exp(log_softmax(z)), 2.0), None, temperature=2.0, alpha=1.0)
    assert loss == pytest.approx(0, abs=1e-12)
    assert abs(dz).max() < 1e-12


def test_at_high_temperature_the_pull_is_that_of_the_squared_difference_of_logits() -> None:
    # Hinton et al., equation (4): T^2 dC/dz -> (z_s - z_t) / K for logits of zero mean.
    z, p, _ = _draw(5, 6, 4)
    teacher = np.log(p) - np.log(p).mean(axis=1, keepdims=True)
    student = z - z.mean(axis=1, keepdims=True)
    dz = mixture(z, soften(p, 1e4), None, temperature=1e4, alpha=1.0)[1]
    np.testing.assert_allclose(dz, (student - teacher) / 4 / 6, atol=1e-3)


def test_sure_teachers_and_sure_students_stay_finite() -> None:
    p, z = np.array([[1.0, 0.0]]), np.array([[-500.0, 500.0]])
    loss, dz = mixture(z, soften(p, 1.0), np.array([0]), temperature=1.0, alpha=1.0)
    assert 500 < loss < 1e4
    assert np.isfinite(dz).all()


def test_a_teacher_fades_with_its_age() -> None:
    assert alpha_at(2.0, 3) == pytest.approx(2 * 0.343)
    assert alpha_at(2.0, -1) == 2.0


@pytest.mark.parametrize(
    ("targets", "temperature", "says"),
    [
        (np.full((3, 2), 0.5), 1.0, r"expected \(2, 2\)"),
        (np.array([[1.5, -0.5], [0.5, 0.5]]), 1.0, "negative or infinite"),
        (np.array([[np.nan, 0.5], [0.5, 0.5]]), 1.0, "negative or infinite"),
        (np.array([[0.6, 0.6], [0.5, 0.5]]), 1.0, "does not sum to 1"),
        (np.full((2, 2), 0.5), 0.0, "temperature"),
    ],
)
def test_what_is_no_lesson_is_refused(targets: Any, temperature: float, says: str) -> None:
    with pytest.raises(LearnerError, match=says):
        check_lesson(2, targets, 2, temperature)
