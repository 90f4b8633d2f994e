"""Trials side by side and one after the other, kept and found again."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from p2pfl.errors import ConfigError, LocalError, StoreError
from p2pfl.simulations import sweep
from p2pfl.simulations.scenario import Scenario, load
from p2pfl.simulations.sweep import Trial

_TIMES = {"wall_s", "peak_rss_mb", "events_per_s", "peer_rounds_per_s", "file"}
_TOML = """
[run]
rounds = 2
closing_rounds = 0
deadline_s = 20.0

[learner]
local_steps = 1
data = { source = "sklearn:wine" }
model = { kind = "logistic" }

[simulation]
peers = 2
baselines = false

[simulation.grid]
"learner.optimizer.lr" = [0.1, 0.2]
"""

# A learner that learns nothing.
_STILL = """
import time
import numpy as np

class Still:
    def parameters(self): return np.ones(2, np.float32)
    def fit(self, parameters, rng): return parameters, 1, {}
    def evaluate(self, parameters): return {"accuracy": 1.0}

def learner(site): return Still()
"""


def _own(module: str) -> str:
    """The scenario with a learner of the user's own."""
    built_in = 'data = { source = "sklearn:wine" }\nmodel = { kind = "logistic" }'
    return _TOML.replace(built_in, "").replace("local_steps = 1", f'module = "{module}:learner"')


def _scenario(folder: Path, text: str = _TOML, **changes: Any) -> Scenario:
    path = folder / "study.toml"
    path.write_text(text)
    return load(str(path), **changes)


def _timeless(verdicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in v.items() if name not in _TIMES} for v in verdicts]


def test_every_cell_runs_under_every_seed_and_says_so(tmp_path: Path) -> None:
    todo = sweep.trials(_scenario(tmp_path), (3, 5))
    assert [trial.name for trial in todo] == [
        "lr 0.1, seed 3",
        "lr 0.1, seed 5",
        "lr 0.2, seed 3",
        "lr 0.2, seed 5",
    ]
    told: list[str] = []
    verdicts = sweep.run(todo, done=lambda trial, *_: told.append(trial.name))
    assert told == [trial.name for trial in todo]
    assert [(v["cell"], v["seed"]) for v in verdicts] == [(dict(t.cases), t.seed) for t in todo]
    assert len({json.dumps(v["metric"]) + v["run_id"] for v in verdicts}) == 4


@pytest.mark.slow
def test_verdicts_do_not_depend_on_the_number_of_jobs(tmp_path: Path) -> None:
    todo = sweep.trials(_scenario(tmp_path), (0, 1))
    told: list[str] = []
    apart = sweep.run(todo, jobs=2, done=lambda trial, *_: told.append(trial.name))
    assert told == [trial.name for trial in todo]
    assert _timeless(apart) == _timeless(sweep.run(todo))


def test_a_trial_that_is_kept_is_not_run_again(tmp_path: Path) -> None:
    todo = sweep.trials(_scenario(tmp_path), (0, 1))
    results = tmp_path / "results"
    results.mkdir()
    # The sweep was stopped after three of four trials.
    sweep.run(todo[:3], folder=results)
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    assert sorted(before) == [
        "study-lr=0.1-seed-0.json",
        "study-lr=0.1-seed-0.jsonl",
        "study-lr=0.1-seed-1.json",
        "study-lr=0.1-seed-1.jsonl",
        "study-lr=0.2-seed-0.json",
        "study-lr=0.2-seed-0.jsonl",
    ]
    was_found: list[bool] = []
    verdicts = sweep.run(todo, folder=results, done=lambda *told: was_found.append(told[2]))
    assert was_found == [True, True, True, False]
    assert _timeless(verdicts) == _timeless(sweep.run(todo))
    assert before.items() < {path.name: path.read_bytes() for path in results.iterdir()}.items()
    assert [json.loads(Path(v["file"]).read_text())["seed"] for v in verdicts] == [0, 1, 0, 1]
    was_found.clear()
    sweep.run(todo, folder=results, fresh=True, done=lambda *told: was_found.append(told[2]))
    assert was_found == [False] * 4


def test_the_key_follows_from_all_that_the_verdict_follows_from(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("x,y\n" + "1,0\n2,1\n" * 20)
    text = _TOML.replace("sklearn:wine", f"csv:{rows}").replace("data = {", 'data = { label = "y",')

    def keys(**changes: Any) -> list[str]:
        return [sweep.key(trial) for trial in sweep.trials(_scenario(tmp_path, text, **changes), (0, 1))]

    first = keys()
    assert len(set(first)) == 4
    assert keys() == first
    assert not set(keys(rounds=3)) & set(first)
    assert not set(keys(settings=["simulation.network.loss=0.1"])) & set(first)
    # What only judges, and the cells around it, do not change a trial.
    assert keys(settings=["simulation.expect=['metric.mean > 0']", "simulation.seeds='7'"]) == first
    one_cell = ['simulation.grid={"learner.optimizer.lr"=[0.1]}']
    assert keys(settings=one_cell) == first[:2]
    os.utime(rows, ns=(1, 1))
    assert not set(keys()) & set(first)


def test_a_module_of_the_users_own_is_never_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_found.py").write_text(_STILL)
    [one, _] = sweep.trials(_scenario(tmp_path, _own("mine_found")), (0,))
    was_found: list[bool] = []
    for _ in range(2):
        sweep.run([one], folder=tmp_path, done=lambda *told: was_found.append(told[2]))
    assert was_found == [False, False]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_trial_that_fails_names_its_cell_and_seed(tmp_path: Path, jobs: int) -> None:
    stuck = _scenario(tmp_path, settings=["simulation.network.loss=1.0", "simulation.until_s=50.0"])
    with pytest.raises(LocalError, match=r"^lr 0\.[12], seed [01]: the run has not ended"):
        sweep.run(sweep.trials(stuck, (0, 1)), jobs=jobs)
    no_data = _scenario(tmp_path, _TOML.replace("wine", "whine"))
    with pytest.raises(ConfigError, match=r"^lr 0\.[12], seed [01]: .*whine"):
        sweep.run(sweep.trials(no_data, (0, 1)), jobs=jobs)


def test_a_process_that_dies_names_its_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_dies.py").write_text("import os\ndef learner(site): os.kill(os.getpid(), 9)\n")
    with pytest.raises(LocalError, match=r"^lr 0\.[12], seed 0: its process ended with -9"):
        sweep.run(sweep.trials(_scenario(tmp_path, _own("mine_dies")), (0,)), jobs=2)


@pytest.mark.slow
def test_a_trial_may_take_longer_than_an_idle_thread_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # trio's threads end after ten idle seconds; a process started from one would die with it.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_slow.py").write_text(_STILL.replace("return Still()", "time.sleep(3); return Still()"))
    verdicts = sweep.run(sweep.trials(_scenario(tmp_path, _own("mine_slow")), (0,)), jobs=2)
    assert [verdict["metric"]["mean"] for verdict in verdicts] == [1.0, 1.0]


def test_a_damaged_file_is_named_with_the_cure(tmp_path: Path) -> None:
    [one, _] = sweep.trials(_scenario(tmp_path), (0,))
    (tmp_path / one.file_name).write_text("{")
    with pytest.raises(StoreError, match=r"seed-0\.json cannot be read.*--fresh"):
        sweep.run([one], folder=tmp_path)


def test_names_of_files_are_told_apart(tmp_path: Path) -> None:
    text = _TOML.partition("[simulation.grid]")[0] + (
        "[simulation.grid]\n"
        'a = { x = { "run.rounds" = 1 }, x-b = { "run.rounds" = 2 } }\n'
        'b = { y = { "learner.local_steps" = 1 }, b-y = { "learner.local_steps" = 2 } }\n'
    )
    names = [trial.file_name for trial in sweep.trials(_scenario(tmp_path, text), (0, 1))]
    assert len(set(names)) == len(names) == 8
    assert isinstance(sweep.trials(load("digits"), (4,))[0], Trial)
    assert sweep.trials(load("digits"), (4,))[0].file_name == "digits-seed-4.json"
