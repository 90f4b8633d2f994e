"""What mixing did, from the distances of rounds."""

from typing import Any

import pytest

from p2pfl.simulations.pace import pace


def rounds(*distances: float | None) -> list[dict[str, Any]]:
    stages = ["training", *["closing"] * (len(distances) - 1)]
    return [{"stage": s, "consensus_distance": d} for s, d in zip(stages, distances, strict=True)]


def test_a_steady_pace_is_its_ratio() -> None:
    found = pace(rounds(8.0, 4.0, 2.0, 1.0))
    assert found == {"rounds": 3, "left": 0.125, "exact_after": None, "contraction": 0.25, "slope": 0.5}


def test_an_exact_round_is_found_and_rounding_after_it_is_not_taken_for_a_pace() -> None:
    found = pace(rounds(1.0, 0.5, 1e-8, 3e-8))
    assert found is not None
    assert found["exact_after"] == 2
    assert found["slope"] == pytest.approx(2e-8)


def test_only_rounds_after_the_last_training_count() -> None:
    training = {"stage": "training", "consensus_distance": 100.0}
    found = pace([training, *rounds(2.0, 1.0)])
    assert found is not None
    assert (found["rounds"], found["left"]) == (1, 0.5)


@pytest.mark.parametrize("distances", [(), (1.0,), (1.0, None, 0.5), (0.0, 0.0)])
def test_without_a_distance_for_each_round_nothing_is_said(distances: tuple[float | None, ...]) -> None:
    assert pace(rounds(*distances) if distances else []) is None
