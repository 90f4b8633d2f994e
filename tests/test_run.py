"""Agreements that name a file of edges: what is agreed on is the edges."""

from pathlib import Path

import pytest

from p2pfl.errors import ConfigError
from p2pfl.run import load, run_id, self_contained
from p2pfl.simulations import scenario

WITH_FILE = '[gossip]\ntopology = { file = "links.csv", directed = true }  # as cabled\n'
WITH_EDGES = '[gossip]\ntopology = { kind = "explicit", edges = [[0, 1], [1, 2], [2, 0]], directed = true }\n'


def written(folder: Path, text: str, name: str = "run.toml") -> Path:
    (folder / "links.csv").write_text("from,to\n0,1\n1,2\n2,0\n")
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_of_edges_is_the_same_agreement_as_the_edges_themselves(tmp_path: Path) -> None:
    named, listed = written(tmp_path, WITH_FILE), written(tmp_path, WITH_EDGES, "listed.toml")
    assert load(named).gossip.topology.edges == ((0, 1), (1, 2), (2, 0))
    assert run_id(load(named)) == run_id(load(listed))


def test_what_a_home_keeps_needs_no_file_any_more(tmp_path: Path) -> None:
    kept = tmp_path / "kept.toml"
    kept.write_text(self_contained(written(tmp_path, WITH_FILE)))
    (tmp_path / "links.csv").unlink()
    assert run_id(load(kept)) == run_id(load(written(tmp_path, WITH_EDGES)))
    assert self_contained(written(tmp_path, WITH_EDGES)) == WITH_EDGES


def test_a_scenario_and_the_cells_of_its_grid_may_name_files_beside_it(tmp_path: Path) -> None:
    text = """
        [simulation]
        peers = 3
        [simulation.grid.graph]
        cabled = { "gossip.topology" = { file = "links.csv" } }
        ring = { "gossip.topology" = { kind = "ring" } }
    """
    cells = scenario.load(str(written(tmp_path, text))).cells
    assert [cell.scenario.spec.gossip.topology.edges for cell in cells] == [((0, 1), (1, 2), (2, 0)), None]


@pytest.mark.parametrize(
    ("topology", "says"),
    [
        ('{ file = "none.csv" }', "none.csv cannot be read"),
        ('{ kind = "ring", file = "links.csv" }', "is for kind 'explicit'"),
        ('{ file = "links.csv", edges = [[0, 1]] }', "instead of edges"),
        ("{ file = 3 }", "file"),
    ],
)
def test_a_file_that_cannot_be_the_graph_is_refused(tmp_path: Path, topology: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(written(tmp_path, f"[gossip]\ntopology = {topology}\n"))
