from typing import Any

from p2pfl.cli.grids import grid_text, outcomes_text


def _cell(attack: str, rule: str, mean: float, name: str = "accuracy") -> dict[str, Any]:
    metric = {"name": name, "mean": mean, "worst_seed": mean - 0.01, "min": mean - 0.02, "max": mean + 0.02}
    return {"cell": {"attack": attack, "rule": rule}, "metric": metric, "byzantine": 4}


_AXES = {"attack": ["alie", "foe"], "rule": ["none", "gts"]}
_CELLS = [
    _cell("alie", "none", 0.9),
    _cell("alie", "gts", 0.91),
    _cell("foe", "none", 0.5),
    _cell("foe", "gts", 0.95),
]


def test_two_axes_span_a_matrix() -> None:
    assert grid_text(_CELLS, _AXES).splitlines() == [
        "accuracy: mean over the seeds (worst seed) worst honest peer",
        "attack  none                 gts",
        "alie    0.900 (0.890) 0.880  0.910 (0.900) 0.890",
        "foe     0.500 (0.490) 0.480  0.950 (0.940) 0.930",
    ]


def test_a_cell_whose_rule_bears_fewer_liars_has_a_star() -> None:
    lines = grid_text([*_CELLS[:3], {**_CELLS[3], "bounds_broken": 16}], _AXES).splitlines()
    assert lines[3:] == [
        "foe     0.500 (0.490) 0.480  0.950 (0.940) 0.930 *",
        "* more may lie than the rule bears",
    ]


def test_another_number_of_axes_is_one_line_a_cell_and_the_worst_loss_is_the_greatest() -> None:
    cells = [
        {"cell": {"rule": rule}, "metric": _cell("", rule, mean, "loss")["metric"], "byzantine": None} | more
        for rule, mean, more in (("none", 1.0, {"online_loss": 0.25}), ("gts", 2.0, {}))
    ]
    assert grid_text(cells, {"rule": ["none", "gts"]}).splitlines() == [
        "rule  loss   worst seed  worst peer  online loss",
        "none  1.000  0.990       1.020       0.2500",
        "gts   2.000  1.990       2.020       -",
    ]


def test_an_outcome_says_where_and_by_how_much() -> None:
    base = {
        "text": "a < b",
        "is_met": True,
        "value": 0.5,
        "bound": 0.25,
        "cell": {},
        "seed": None,
        "interval": None,
    }
    lines = outcomes_text(
        [
            base | {"is_met": False, "cell": {"rule": "gts"}, "seed": 3},
            base | {"interval": (-0.1, 0.25)},
            base | {"value": None, "bound": None},
        ]
    ).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "expectation found bound where",
        "NOT MET a < b 0.5 0.25 rule gts, seed 3",
        "met a < b 0.5 0.25 difference -0.1 to 0.25",
        "met a < b - -",
    ]
    assert outcomes_text([]) == ""


def test_cells_that_only_mixed_tell_their_pace() -> None:
    pace = {"exact_after": None, "slope": 0.94926, "contraction": 0.85, "left": 0.0805}
    cells = [
        {"cell": {"topology": kind}, "metric": _cell("", "", 0.2, "rms")["metric"], "byzantine": None} | more
        for kind, more in (
            ("ring", {"mixing": pace}),
            ("base", {"mixing": {**pace, "exact_after": 9, "left": 2e-7}}),
        )
    ]
    head, ring, base = grid_text(cells, {"topology": ["ring", "base"]}).splitlines()
    assert head.split()[-5:] == ["exact", "after", "slope", "contraction", "left"]
    assert ring.split()[-4:] == ["-", "0.9493", "0.8500", "0.081"]
    assert base.split()[-4:] == ["9", "0.9493", "0.8500", "0"]
