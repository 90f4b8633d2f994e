"""What an exchange tells of single rows."""

from __future__ import annotations

import numpy as np
import pytest

from p2pfl.cli.verdicts import verdict_text
from p2pfl.errors import ConfigError
from p2pfl.simulations.leakage import membership_auc, rebuilt_share
from p2pfl.simulations.scenario import load
from p2pfl.simulations.trial import run_trial


def test_a_linear_map_of_the_inputs_gives_them_all_away_and_noise_nothing() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8))
    hidden = x @ rng.normal(size=(8, 32))
    assert rebuilt_share(hidden, x, np.random.default_rng(1)) > 0.99
    noise = rng.normal(size=(200, 32))
    assert rebuilt_share(noise, x, np.random.default_rng(1)) < 0.1


def test_of_a_few_values_less_can_be_rebuilt_than_of_many() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8))
    shares = [rebuilt_share(x[:, :kept], x, np.random.default_rng(1)) for kept in (2, 4, 8)]
    assert shares == sorted(shares)
    assert shares[0] < 0.35


def test_rows_that_fit_better_are_told_from_others() -> None:
    rng = np.random.default_rng(0)
    same = rng.normal(size=400)
    assert membership_auc(same, same) == pytest.approx(0.5)
    assert membership_auc(same - 10, same) == 1.0
    assert membership_auc(same, same - 10) == 0.0


def test_a_report_of_leakage_is_refused_where_no_features_travel() -> None:
    with pytest.raises(ConfigError, match="leakage"):
        load("digits", settings=["simulation.leakage=true"])


@pytest.mark.slow
def test_fifteen_known_rows_are_enough_to_rebuild_much_of_the_others() -> None:
    settings = ["simulation.leakage=true", "simulation.baselines=false", "learner.data.test_fraction=0.9"]
    verdict = run_trial(load("gkt", rounds=2, settings=settings))
    found = verdict["leakage"]
    assert found["features"] > 0.3
    assert 0.3 < found["predictions"] < 1.0
    assert 0.3 < found["prototypes"] < 1.0
    assert f"features give {100 * found['features']:.0f}% of the inputs" in verdict_text(verdict)
