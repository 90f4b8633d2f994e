from typing import Any

import pytest

from p2pfl.errors import ConfigError
from p2pfl.simulations.expect import check, check_seeds, judge, parse

_VERDICTS: list[dict[str, Any]] = [
    {
        "seed": 0,
        "metric": {"mean": 0.95, "min": 0.90},
        "alone": {"mean": 0.80},
        "mass": {"error": 0.0},
        "pooled": None,
    },
    {
        "seed": 1,
        "metric": {"mean": 0.93, "min": 0.92},
        "alone": {"mean": 0.70},
        "mass": {"error": 2e-9},
        "pooled": None,
    },
]


def _trials(losses: dict[tuple[str, str], list[float]]) -> list[dict[str, Any]]:
    """Verdicts whose `loss` is given for each (attack, rule), one a seed."""
    return [
        {"cell": {"attack": attack, "rule": rule}, "seed": seed, "loss": loss}
        for (attack, rule), values in losses.items()
        for seed, loss in enumerate(values)
    ]


_GRID = _trials(
    {
        ("alie", "mean"): [0.5, 0.7, 0.6],
        ("alie", "gts"): [0.4, 0.5, 0.45],
        ("foe", "mean"): [2.0, 3.0, 2.5],
        ("foe", "gts"): [0.4, 0.9, 0.2],
    }
)


@pytest.mark.parametrize(
    ("text", "is_met"),
    [
        ("metric.mean >= 0.94", True),
        ("each metric.mean >= 0.94", False),
        ("each metric.mean > .92", True),
        ("metric.mean >= alone.mean + 0.15", True),
        ("each metric.mean >= alone.mean + 0.2", False),
        ("metric.min >= metric.mean - 0.05", True),
        ("mass.error <= 1e-9", True),
        ("each mass.error <= 1e-9", False),
        ("metric.mean == 0.94", True),
        ("pooled >= 0", False),
        ("nothing.here < 1", False),
    ],
)
def test_an_expectation_is_judged_on_the_mean_or_on_each_seed(text: str, is_met: bool) -> None:
    assert judge(parse(text), _VERDICTS).is_met is is_met


def test_the_worst_seed_is_shown() -> None:
    outcome = judge(parse("each metric.min >= 0.95"), _VERDICTS)
    assert (outcome.value, outcome.bound) == (0.90, 0.95)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "metric.mean",
        "metric.mean => 1",
        "__import__('os') > 0",
        "a >= b * 2",
        "1 >= metric.mean",
        "a >= 1 2",
        "a >= 1 when",
        "a >= 1 when rule",
        "a >= 1 when rule is",
        "a >= 1 when rule is gts or mean",
        "a[rule] >= 1",
        "a[rule=gts >= 1",
        "paired a >= 1",
        "paired a == b",
    ],
)
def test_what_is_not_an_expectation_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expectation"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "is_met"),
    [
        ("loss <= 2.5", True),
        ("loss < 2.5", False),
        ("loss <= 0.5 when rule is gts", True),
        ("each loss <= 0.5 when rule is gts", False),
        ("each loss <= 0.5 when rule is gts and attack is alie", True),
        ("each loss <= 0.9 when rule is gts and attack is alie | foe", True),
        ("loss[rule=gts] < loss[rule=mean]", True),
        ("loss < loss[rule=mean]", False),
        ("loss < loss[rule=mean] when rule is gts", True),
        ("each loss[rule=gts] <= loss[rule=mean] - 0.1 when attack is alie", True),
        ("each loss[rule=gts] <= loss[rule=mean] - 0.2 when attack is alie", False),
        ("loss[rule=gts, attack=foe] > loss[rule=gts, attack=alie]", True),
        ("loss[rule=gts,attack=foe]>1 when attack is alie", False),
    ],
)
def test_a_condition_and_a_place_say_which_cells_are_compared(text: str, is_met: bool) -> None:
    expectation = parse(text)
    check([expectation], {"attack": ["alie", "foe"], "rule": ["mean", "gts"]})
    assert judge(expectation, _GRID).is_met is is_met


def test_the_worst_cell_and_seed_are_named() -> None:
    outcome = judge(parse("each loss <= 0.5 when rule is gts"), _GRID)
    assert (outcome.cell, outcome.seed, outcome.value) == ({"attack": "foe", "rule": "gts"}, 1, 0.9)


def test_a_paired_difference_must_be_more_than_chance() -> None:
    # Differences -0.1, -0.2, -0.15: mean -0.15, deviation 0.05, t(0.975, 2) = 4.3027, half width 0.1242.
    clause = "paired loss[rule=gts] < loss[rule=mean] {}when attack is alie"
    outcome = judge(parse(clause.format("")), _GRID)
    assert outcome.is_met
    assert outcome.interval == pytest.approx((-0.27421, -0.02579), abs=1e-5)
    assert (outcome.value, outcome.bound) == pytest.approx((0.45, 0.6))
    assert judge(parse(clause.format("- 0.02 ")), _GRID).is_met
    assert not judge(parse(clause.format("- 0.03 ")), _GRID).is_met
    assert not judge(parse("paired loss[rule=gts] > loss[rule=mean]"), _GRID).is_met


def test_seeds_that_do_not_match_meet_nothing() -> None:
    short = [verdict for verdict in _GRID if (verdict["cell"]["rule"], verdict["seed"]) != ("mean", 2)]
    assert not judge(parse("loss[rule=gts] < loss[rule=mean]"), short).is_met


def test_one_seed_cannot_be_paired_and_no_cell_is_no_pass() -> None:
    with pytest.raises(ConfigError, match="two seeds"):
        check_seeds([parse("loss < 1"), parse("paired loss[rule=gts] < loss[rule=mean]")], 1)
    with pytest.raises(ConfigError, match="no cell"):
        judge(parse("loss < 1 when rule is gts"), [v for v in _GRID if v["cell"]["rule"] == "mean"])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("loss < 1 when rules is gts", "no axis 'rules'; it has attack, rule"),
        ("loss < 1 when rule is gtss", "no case 'gtss'; it has mean, gts"),
        ("loss[rule=gtss] < 1", "no case 'gtss'"),
        ("loss < loss[attacks=foe]", "no axis 'attacks'"),
    ],
)
def test_a_case_that_the_grid_does_not_have_is_refused(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        check([parse(text)], {"attack": ["alie", "foe"], "rule": ["mean", "gts"]})
