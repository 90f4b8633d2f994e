from pathlib import Path
from typing import Any

import pytest

from p2pfl.errors import ConfigError
from p2pfl.simulations.grid import axes_of, combinations
from p2pfl.simulations.scenario import load

_GRID = """
[run]
rounds = 2

[learner]
data = { source = "sklearn:digits" }

[simulation]
peers = 3
expect = ["metric.mean > metric.mean[method=alone] when lr is 0.1"]

[simulation.grid]
"learner.optimizer.lr" = [0.1, 0.2]

[simulation.grid.method]
graph = { "gossip.topology" = { kind = "ring", directed = true }, "run.closing_rounds" = 1 }
alone = { "gossip.topology" = { kind = "explicit", edges = [] } }
"""


def _scenario(folder: Path, text: str = _GRID) -> str:
    path = folder / "study.toml"
    path.write_text(text)
    return str(path)


def test_every_combination_of_the_axes_is_a_cell(tmp_path: Path) -> None:
    scenario = load(_scenario(tmp_path))
    assert [(axis.name, [case.label for case in axis.cases]) for axis in scenario.axes] == [
        ("lr", ["0.1", "0.2"]),
        ("method", ["graph", "alone"]),
    ]
    assert [dict(cell.cases) for cell in scenario.cells] == [
        {"lr": "0.1", "method": "graph"},
        {"lr": "0.1", "method": "alone"},
        {"lr": "0.2", "method": "graph"},
        {"lr": "0.2", "method": "alone"},
    ]
    cells = [cell.scenario for cell in scenario.cells]
    assert [cell.spec.learner.optimizer.lr for cell in cells] == [0.1, 0.1, 0.2, 0.2]
    assert [cell.spec.gossip.topology.kind for cell in cells] == ["ring", "explicit"] * 2
    assert [cell.spec.run.closing_rounds for cell in cells] == [1, 3, 1, 3]
    assert all(not cell.expectations and not cell.simulation.grid for cell in cells)
    assert len(scenario.expectations) == 1


def test_a_scenario_without_a_grid_is_its_only_cell() -> None:
    [cell] = load("digits").cells
    assert dict(cell.cases) == {}
    assert cell.scenario.spec == load("digits").spec


def test_a_case_replaces_a_whole_table_as_a_setting_does(tmp_path: Path) -> None:
    text = _GRID.replace("[simulation]\n", '[gossip.topology]\nkind = "torus"\nrows = 1\n\n[simulation]\n')
    assert {cell.scenario.spec.gossip.topology.rows for cell in load(_scenario(tmp_path, text)).cells} == {
        None
    }


def test_flags_change_every_cell_but_not_what_the_grid_varies(tmp_path: Path) -> None:
    path = _scenario(tmp_path)
    for cell in load(path, peers=2, rounds=7, settings=["learner.batch_size=8"]).cells:
        assert cell.scenario.simulation.peers == cell.scenario.spec.run.members_at_start == 2
        assert (cell.scenario.spec.run.rounds, cell.scenario.spec.learner.batch_size) == (7, 8)
    for setting in ("learner.optimizer.lr=1.0", "learner.optimizer={}", "gossip.topology.kind='ring'"):
        with pytest.raises(ConfigError, match="varied by the grid"):
            load(path, settings=[setting])
    narrowed = ['simulation.grid={"learner.optimizer.lr"=[1.0]}', "simulation.expect=[]"]
    assert [dict(cell.cases) for cell in load(path, settings=narrowed).cells] == [{"lr": "1"}]


def test_a_cell_that_is_no_scenario_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lr 0.2, method graph: .*directd"):
        load(_scenario(tmp_path, _GRID.replace("[0.1, 0.2]", "[0.2, 0.1]").replace("directed", "directd")))
    with pytest.raises(ConfigError, match="no case 'alone'"):
        load(_scenario(tmp_path, _GRID.replace("\nalone", "\nlonely")))


def test_labels_are_what_a_person_would_write() -> None:
    [axis] = axes_of({"simulation.crypto": [True, False]})
    assert (axis.name, [case.label for case in axis.cases]) == ("crypto", ["true", "false"])
    [axis] = axes_of({"gossip.topology": [{"kind": "ring"}, {"kind": "torus", "rows": 2}]})
    assert (axis.name, [case.label for case in axis.cases]) == ("topology", ["ring", "torus"])
    [axis] = axes_of({"learner.optimizer.lr": [1, 0.1, 1e-5, 0.123456789]})
    assert [case.label for case in axis.cases] == ["1", "0.1", "1e-05", "0.123456789"]
    assert list(combinations(())) == [({}, {})]


@pytest.mark.parametrize(
    ("grid", "match"),
    [
        ({"learner": {"optimizer": {"lr": [1]}}}, "quote"),
        ({"lr": [1, 2]}, "quote dotted keys"),
        ({"method": {"one": {"gossip": {"averaging": {}}}}}, "quote dotted keys"),
        ({"learner.optimizer.lr": 0.1}, "neither a list nor"),
        ({"learner.optimizer.lr": []}, "no cases"),
        ({"learner.optimizer.lr": [1, 1.0]}, "one twice"),
        ({"learner.model.hidden": [[1], [2]]}, "no short name"),
        ({"learner.data.source": ["csv:a b.csv"]}, "no short name"),
        ({"trust.aggregator.kind": ["none"], "aggregator": {"x": {"run.rounds": 1}}}, "two axes of one name"),
        ({"run.rounds": [1], "length": {"x": {"run.rounds": 2}}}, "both set run.rounds"),
        ({"gossip.topology.kind": ["ring"], "x": {"y": {"gossip.topology": {}}}}, "both set"),
        ({"run.seed": [1, 2]}, "--seeds"),
        ({"simulation.expect": [["a > 1"]]}, "no short name"),
        ({"x": {"y": {"simulation.expect": ["a > 1"]}}}, "cannot vary"),
        ({"Big.LR": [1]}, "lowercase"),
        ({f"run.a{i}": list(range(10)) for i in range(5)}, "100,000 cells"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(grid: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        axes_of(grid)
