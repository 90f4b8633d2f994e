from typing import Any

from p2pfl.simulations import summary


def _verdict(seed: int, rule: str, mean: float, least: float, **more: Any) -> dict[str, Any]:
    return {
        "engine": "world",
        "peers": 4,
        "metric": {"name": "accuracy", "mean": mean, "min": least, "max": mean},
        "pooled": None,
        "mass": {"sum": 4.0, "error": seed * 1e-9},
        "bytes_sent": 100,
        "wall_s": 0.5,
        "seed": seed,
        "run_id": f"run-{rule}-{seed}",
        "per_peer": [{"peer": 0}],
        "cell": {"rule": rule},
        **more,
    }


_VERDICTS = [
    _verdict(0, "gts", 0.9, 0.8),
    _verdict(1, "gts", 0.8, 0.7),
    _verdict(0, "none", 0.1, 0.0),
    _verdict(1, "none", 0.3, 0.2),
]


def test_seeds_become_a_mean_the_worst_seed_and_the_worst_peer() -> None:
    one = summary.over_seeds(_VERDICTS[:2])
    assert one["metric"] == {
        "name": "accuracy",
        "mean": (0.9 + 0.8) / 2,
        "min": 0.7,
        "max": 0.9,
        "worst_seed": 0.8,
    }
    assert (one["engine"], one["peers"], one["pooled"], one["bytes_sent"], one["wall_s"]) == (
        "world",
        4,
        None,
        200,
        1.0,
    )
    assert one["mass"] == {"sum": 4.0, "error": 1e-9}
    assert (one["seed"], one["run_id"], one["per_peer"]) == (None, None, None)


def test_the_worst_seed_of_a_loss_is_the_greatest() -> None:
    losses = [
        _verdict(
            seed, "gts", mean, mean, metric={"name": "online_loss", "mean": mean, "min": 0.0, "max": 1.0}
        )
        for seed, mean in enumerate((0.1, 0.3))
    ]
    assert summary.over_seeds(losses)["metric"]["worst_seed"] == 0.3


def test_cells_keep_their_order_and_share_what_they_share() -> None:
    cells = summary.cells(_VERDICTS)
    assert [(cell["cell"], cell["metric"]["mean"]) for cell in cells] == [
        ({"rule": "gts"}, (0.9 + 0.8) / 2),
        ({"rule": "none"}, (0.1 + 0.3) / 2),
    ]
    whole = summary.over_cells(cells)
    assert (whole["engine"], whole["metric"], whole["bytes_sent"], whole["wall_s"]) == (
        "world",
        None,
        400,
        2.0,
    )


def test_a_number_that_some_seed_lacks_is_none() -> None:
    some = [
        _verdict(0, "gts", 0.9, 0.8, reference={"mean": 1.0}),
        _verdict(1, "gts", 0.9, 0.8, reference=None),
    ]
    assert summary.over_seeds(some)["reference"] is None
