"""Nothing to learn: numbers that sites draw, so that mixing can be watched."""

import numpy as np
import pytest

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.learn.factory import build, resolve
from p2pfl.learn.learner import DpSgd, Site
from p2pfl.learn.options import LearnerOptions, ModelOptions

OPTIONS = LearnerOptions(model=ModelOptions(kind="vector", size=5000))


def test_sites_start_from_zero_and_each_draws_its_own_numbers_without_any_rows() -> None:
    learner = build(resolve(OPTIONS), Site(options=OPTIONS))
    start = learner.parameters()
    assert start.tobytes() == bytes(4 * 5000)
    one, other = (learner.fit(start, np.random.default_rng(seed)).parameters for seed in (1, 2))
    assert learner.evaluate(one)["rms"] == pytest.approx(1, abs=0.03)
    assert learner.evaluate((one + other) / np.float32(2))["rms"] == pytest.approx(2**-0.5, abs=0.03)
    again = learner.fit(one, np.random.default_rng(1)).parameters
    np.testing.assert_allclose(again, 2 * one)


def test_a_vector_of_another_length_and_noise_for_rows_are_refused() -> None:
    learner = build(resolve(OPTIONS), Site(options=OPTIONS))
    with pytest.raises(LearnerError, match=r"shape \(3,\), expected \(5000,\)"):
        learner.fit(np.zeros(3, np.float32), np.random.default_rng(0))
    with pytest.raises(ConfigError, match="adds none"):
        build(resolve(OPTIONS), Site(options=OPTIONS, dp_sgd=DpSgd(clip=1.0, noise_multiplier=1.0)))
