"""Many learners fitted together are what each is alone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import LearnerError
from p2pfl.learn.data import Dataset
from p2pfl.learn.numpy_learner import NumpyLearner
from p2pfl.learn.options import ModelOptions, OptimizerOptions
from p2pfl.learn.stacked import Stack


def _dataset(rows: int, classes: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 5)).astype(np.float32)
    y = rng.integers(classes, size=rows)
    return Dataset(x_train=x, y_train=y, x_test=x, y_test=y, n_classes=classes)


def _learners(classes: int = 3, rows: tuple[int, ...] = (9, 12, 30), **options: Any) -> list[NumpyLearner]:
    made: dict[str, Any] = {"batch_size": 4, "local_steps": 3, **options}
    return [NumpyLearner(_dataset(n, classes, i), **made) for i, n in enumerate(rows)]


def _rngs(number: int, m: int = 3) -> list[np.random.Generator]:
    return [np.random.default_rng([number, i]) for i in range(m)]


@settings(max_examples=40, deadline=None)
@given(
    classes=st.sampled_from([2, 3]),
    hidden=st.sampled_from([(), (7,), (6, 4)]),
    batch_size=st.sampled_from([1, 4, 9]),
    steps=st.integers(1, 4),
    optimizer=st.builds(
        OptimizerOptions,
        momentum=st.sampled_from([0.0, 0.9]),
        weight_decay=st.sampled_from([0.0, 0.01]),
        schedule=st.sampled_from(["constant", "cosine"]),
        reset=st.booleans(),
    ),
)
def test_a_stack_gives_each_learner_the_bits_it_has_alone(
    classes: int, hidden: tuple[int, ...], batch_size: int, steps: int, optimizer: OptimizerOptions
) -> None:
    model = ModelOptions(kind="mlp", hidden=hidden) if hidden else ModelOptions()
    options: dict[str, Any] = {
        "model": model,
        "batch_size": batch_size,
        "local_steps": steps,
        "optimizer": optimizer,
    }
    alone, stack = _learners(classes, **options), Stack(_learners(classes, **options))
    progress = 0.0
    for learner in alone:
        learner.progress = lambda: progress
    z = np.stack([learner.parameters() for learner in alone])
    for number in range(3):
        progress = number / 3
        ended, losses = stack.fit(z, _rngs(number), progress)
        for i, (learner, rng) in enumerate(zip(alone, _rngs(number), strict=True)):
            update = learner.fit(z[i], rng)
            np.testing.assert_array_equal(ended[i], update.parameters)
            assert losses[i] == pytest.approx(update.metrics["train_loss"], rel=1e-6)
        z = ended


def test_the_loss_of_a_fit_of_one_row_is_that_row_s_before_the_step() -> None:
    alone = _learners(batch_size=1, local_steps=1)
    z = np.stack([learner.parameters() for learner in alone])
    _, losses = Stack(_learners(batch_size=1, local_steps=1)).fit(z, _rngs(0), 0.0)
    for i, (learner, rng) in enumerate(zip(alone, _rngs(0), strict=True)):
        row = rng.permutation(learner.samples())[0]
        learner.evaluate(z[i])
        p = learner.predict(learner.rows.x_train[row : row + 1])[0]
        assert losses[i] == pytest.approx(-np.log(p[learner.labels()[row]]), rel=1e-5)


def test_rows_are_standardised_with_the_first_statistics_that_come() -> None:
    alone, stack = _learners(standardise="federation"), Stack(_learners(standardise="federation"))
    sums = np.sum([learner.statistics() for learner in alone], axis=0)
    z = np.stack([learner.parameters() for learner in alone])
    ended, _ = stack.fit(z, _rngs(0), 0.0, np.stack([sums] * 3))
    again, _ = stack.fit(z, _rngs(0), 0.0, np.stack([sums * 2 + 1] * 3))
    np.testing.assert_array_equal(again, ended)
    for i, (learner, rng) in enumerate(zip(alone, _rngs(0), strict=True)):
        learner.standardise(sums)
        np.testing.assert_array_equal(ended[i], learner.fit(z[i], rng).parameters)
    with pytest.raises(LearnerError, match="have not come"):
        Stack(_learners(standardise="federation")).fit(z, _rngs(0), 0.0)


def test_a_site_that_diverges_keeps_its_parameters_and_hurts_no_other() -> None:
    optimizer = OptimizerOptions(reset=False)
    stack, apart = Stack(_learners(optimizer=optimizer)), Stack(_learners(optimizer=optimizer))
    z = np.stack([learner.parameters() for learner in _learners()])
    bad = z.copy()
    bad[1] = 3e38
    ended, losses = stack.fit(bad, _rngs(0), 0.0)
    expected, _ = apart.fit(z, _rngs(0), 0.0)
    assert np.isnan(losses[1])
    np.testing.assert_array_equal(ended[1], bad[1])
    np.testing.assert_array_equal(ended[[0, 2]], expected[[0, 2]])
    again, losses = stack.fit(z, _rngs(0), 0.0)
    assert np.isfinite(again).all()
    assert np.isfinite(losses).all()


def test_learners_that_differ_are_not_stacked() -> None:
    assert NumpyLearner(_dataset(9, 3, 0)).course() is None
    share = ("layer1.*",)
    model = ModelOptions(kind="mlp", hidden=(4,))
    assert NumpyLearner(_dataset(9, 3, 0), model=model, share=share, local_steps=1).course() is None
    # With 3 rows the batch is of 3.
    with pytest.raises(LearnerError, match="one model"):
        Stack(_learners(rows=(9, 3)))
