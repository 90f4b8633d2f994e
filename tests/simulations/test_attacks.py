"""Attacks against their formulas, and what is refused."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl.errors import LocalError
from p2pfl.simulations.attacks import KINDS, PROTOCOL_KINDS, AttackOptions, Sight, forge


def sight(h: int = 5, d: int = 40, b: int = 2, **changes: Any) -> Sight:
    rng = np.random.default_rng(3)
    filled: dict[str, Any] = {
        "honest": rng.standard_normal((h, d), dtype=np.float32) + 1,
        "own": rng.standard_normal(d, dtype=np.float32),
        "before": rng.standard_normal(d, dtype=np.float32),
        "n": h + b,
        "byzantine": b,
        "round": 0,
        "rng": np.random.default_rng(0),
        "slowest": np.ones(d, np.float32),
        **changes,
    }
    return Sight(**filled)


def forged(kind: str, seen: Sight, **options: Any) -> np.ndarray[Any, Any]:
    vector = forge(AttackOptions(kind=kind, byzantine=2, **options), seen)
    assert vector is not None
    return vector


def test_the_attacks_on_the_mean_are_multiples_of_it() -> None:
    seen = sight()
    mu = seen.honest.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(forged("sign-flip", seen), -mu, rtol=1e-6)
    np.testing.assert_allclose(forged("ipm", seen), -0.5 * mu, rtol=1e-6)
    np.testing.assert_allclose(forged("foe", seen), -10 * mu, rtol=1e-6)
    np.testing.assert_allclose(forged("ipm", seen, epsilon=0.1), -0.1 * mu, rtol=1e-6)


def test_ipm_turns_the_inner_product_of_the_average_with_the_true_mean_negative_past_its_bound() -> None:
    # The average has (h - b epsilon) / n of mu: negative iff epsilon > h/b.
    seen = sight(h=6, b=2)
    mu = seen.honest.mean(axis=0, dtype=np.float64)
    for epsilon, sign in ((2.9, 1), (3.1, -1)):
        vector = forged("ipm", seen, epsilon=epsilon)
        average = (seen.honest.sum(axis=0, dtype=np.float64) + 2 * vector) / 8
        assert np.sign(average @ mu) == sign


def test_gaussian_noise_has_the_mean_and_the_deviation_asked_for() -> None:
    seen = sight(d=100_000)
    noise = forged("gaussian", seen, sigma=4.0) - seen.honest.mean(axis=0)
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 4.0) < 0.05


def test_alie_lies_z_deviations_below_the_mean() -> None:
    honest = np.array([[0.0, 5.0], [2.0, 5.0]], np.float32)
    np.testing.assert_allclose(forged("alie", sight(honest=honest)), [1 - 1.5, 5.0])
    np.testing.assert_allclose(forged("alie", sight(honest=honest), z=-2.0), [1 + 2.0, 5.0])


# By hand, with a table of the normal distribution: (50, 24) has s = 2 supporters and Phi(z) = 24/26; (20, 4)
# has s = 7 and 9/16; (7, 2) has s = 2 and 3/5; of (3, 1) nobody but the median is left.
@pytest.mark.parametrize(("n", "b", "z"), [(50, 24, 1.4261), (20, 4, 0.1573), (7, 2, 0.2533), (3, 1, 0.0)])
def test_the_formula_of_alie_counts_the_supporters_it_needs(n: int, b: int, z: float) -> None:
    seen = sight(honest=np.array([[-1.0], [1.0]], np.float32), n=n, byzantine=b)
    np.testing.assert_allclose(forged("alie", seen, z="formula"), [-z], atol=1e-4)


def test_mimic_repeats_the_honest_model_that_stands_out_most_along_the_direction_of_most_variance() -> None:
    honest = np.array([[0.0, 0.1], [1.0, -0.1], [2.0, 0.2], [-9.0, 0.0]], np.float32)
    np.testing.assert_array_equal(forged("mimic", sight(honest=honest)), honest[3])


def test_dissensus_with_epsilon_1_undoes_what_the_target_would_mix() -> None:
    # x+ = x + sum W_ij (x_j - x_i) over the honest, and over attackers who all send the same.
    weights = np.array([0.3, 0.1, 0.2, 0.15, 0.05])
    for given_weights in (weights, None):
        seen = sight(weights=given_weights)
        w = np.full(5, 1 / 7) if given_weights is None else given_weights
        x, attackers = seen.honest.astype(np.float64), 1 - w.sum()
        for epsilon, left in ((1.0, 0.0), (0.0, 1.0), (1.5, -0.5)):
            vector = forged("dissensus", seen, epsilon=epsilon)
            pull = w[1:] @ (x[1:] - x[0])
            moved = pull + attackers * (vector - x[0])
            np.testing.assert_allclose(moved, left * pull, atol=1e-6)


def test_min_max_and_min_sum_reach_their_bounds_and_stay_within() -> None:
    seen = sight()
    x = seen.honest.astype(np.float64)
    between = np.linalg.norm(x[:, None] - x[None], axis=2)
    farthest = np.linalg.norm(forged("min-max", seen) - x, axis=1).max()
    np.testing.assert_allclose(farthest, between.max(), rtol=1e-5)
    total = (np.linalg.norm(forged("min-sum", seen) - x, axis=1) ** 2).sum()
    np.testing.assert_allclose(total, (between**2).sum(axis=1).max(), rtol=1e-5)
    # Both move against the standard deviation.
    mu = x.mean(axis=0)
    for kind in ("min-max", "min-sum"):
        step = mu - forged(kind, seen)
        np.testing.assert_allclose(step / x.std(axis=0), (step / x.std(axis=0)).mean(), rtol=1e-3)
        assert step.min() > 0


def test_two_equal_honest_models_leave_an_attack_on_the_spread_nowhere_to_go() -> None:
    seen = sight(honest=np.ones((2, 3), np.float32))
    for kind in ("alie", "min-max", "min-sum"):
        np.testing.assert_array_equal(forged(kind, seen), np.ones(3))


def test_the_average_with_replaced_models_is_the_poisoned_model() -> None:
    seen = sight(h=5, b=2)
    average = (seen.honest.sum(axis=0, dtype=np.float64) + 2 * forged("model-replacement", seen)) / 7
    np.testing.assert_allclose(average, seen.own, atol=1e-5)


def test_a_free_rider_sends_what_it_had_before_with_noise() -> None:
    seen = sight()
    np.testing.assert_array_equal(forged("free-ride", seen, sigma=0.0), seen.before)
    assert 0 < np.abs(forged("free-ride", seen) - seen.before).max() < 0.1


def test_constants_are_what_they_say_and_silence_is_none() -> None:
    assert np.isnan(forged("nan", sight())).all()
    assert np.isposinf(forged("inf", sight())).all()
    huge = forged("huge", sight())
    assert np.isfinite(huge).all()
    with np.errstate(over="ignore"):
        assert np.isinf(huge + huge).all()
    assert forge(AttackOptions(kind="silent", byzantine=1), sight()) is None


@pytest.mark.parametrize("kind", ["none", "label-flip", "backdoor"])
def test_who_attacks_through_its_rows_sends_its_own_model(kind: str) -> None:
    seen = sight()
    np.testing.assert_array_equal(forged(kind, seen), seen.own)


def test_a_sleeper_behaves_until_its_round() -> None:
    options = AttackOptions(kind="sign-flip", byzantine=1, starts_at=7)
    np.testing.assert_array_equal(forge(options, sight(round=6)), sight().own)
    np.testing.assert_array_equal(forge(options, sight(round=7)), forged("sign-flip", sight()))


@pytest.mark.parametrize("kind", PROTOCOL_KINDS)
def test_an_attack_on_the_protocol_has_no_vector(kind: str) -> None:
    with pytest.raises(LocalError, match="protocol"):
        forge(AttackOptions(kind=kind, byzantine=1), sight())


def test_spectral_needs_the_slowest_disagreement() -> None:
    with pytest.raises(LocalError, match="slowest"):
        forged("spectral", sight(slowest=None))
    seen = sight()
    np.testing.assert_allclose(
        forged("spectral", seen, epsilon=1.0), seen.honest[0] + 1.0 / (2 / 7), rtol=1e-5
    )


@given(
    kind=st.sampled_from([kind for kind in KINDS if kind not in (*PROTOCOL_KINDS, "silent")]),
    h=st.integers(1, 6),
    b=st.integers(1, 6),
    scale=st.sampled_from([0.0, 1e-20, 1.0, 1e20]),
)
def test_every_attack_gives_a_float32_vector_of_the_models_length(
    kind: str, h: int, b: int, scale: float
) -> None:
    seen = sight(h=h, b=b, honest=sight(h=h).honest * np.float32(scale))
    vector = forged(kind, seen)
    assert (vector.shape, vector.dtype) == (seen.own.shape, np.float32)
    assert kind in ("nan", "inf") or not np.isnan(vector).any()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*PROTOCOL_KINDS, "silent", "mimic")])
def test_the_order_of_the_other_honest_models_does_not_matter(kind: str) -> None:
    seen = sight()
    swapped = sight(honest=seen.honest[[0, 3, 1, 4, 2]])
    np.testing.assert_allclose(forged(kind, seen), forged(kind, swapped), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("table", "rule"),
    [
        ({"kind": "krum"}, "choose one of"),
        ({"kind": "sign-flip", "z": 1.0}, "does not apply"),
        ({"kind": "alie", "z": float("nan")}, "finite"),
        ({"kind": "alie", "z": "large"}, "z"),
        ({"kind": "gaussian", "sigma": -1.0}, "sigma"),
        ({"kind": "gaussian", "byzantine": -1}, "byzantine"),
        ({"kind": "backdoor", "fraction": 0.0}, "fraction"),
        ({"kind": "backdoor", "target": -1}, "target"),
        ({"kind": "label-flip", "starts_at": 3}, "from the start"),
        ({"kind": "alie", "starts_at": -1}, "starts_at"),
        ({"kind": "alie", "strength": 2}, "strength"),
    ],
)
def test_options_that_make_no_sense_are_refused_with_the_rule(table: dict[str, Any], rule: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=rule):
        msgspec.convert(table, AttackOptions)
