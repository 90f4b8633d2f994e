import pytest

from p2pfl.errors import ConfigError
from p2pfl.simulations.expect import judge, parse

_VERDICTS = [
    {"metric": {"mean": 0.95, "min": 0.90}, "alone": {"mean": 0.80}, "mass": {"error": 0.0}, "pooled": None},
    {"metric": {"mean": 0.93, "min": 0.92}, "alone": {"mean": 0.70}, "mass": {"error": 2e-9}, "pooled": None},
]


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
    ],
)
def test_what_is_not_an_expectation_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expectation"):
        parse(text)
