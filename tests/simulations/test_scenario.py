from pathlib import Path

import pytest

from p2pfl import run
from p2pfl.errors import ConfigError
from p2pfl.simulations.scenario import load, parse_seeds, set_key, shipped


def test_every_shipped_scenario_loads_and_expects_something() -> None:
    assert set(shipped()) >= {"crash", "digits", "loss"}
    for name in shipped():
        assert load(name).expectations


def test_a_scenario_without_its_simulation_table_is_an_agreement(tmp_path: Path) -> None:
    scenario = load("digits")
    path = tmp_path / "run.toml"
    path.write_text(run.write_toml(__import__("msgspec").to_builtins(scenario.spec)))
    assert run.run_id(run.load(path)) == run.run_id(scenario.spec)


def test_attacks_that_forge_models_are_refused_where_shares_hold_a_tracker() -> None:
    settings = ["gossip.averaging.kind=push-pull", "simulation.attack={kind='sign-flip', byzantine=1}"]
    with pytest.raises(ConfigError, match="hold a tracker"):
        load("digits", settings=settings)


def test_flags_and_settings_change_a_scenario() -> None:
    scenario = load(
        "digits",
        peers=6,
        rounds=3,
        seed=9,
        settings=["learner.optimizer.lr=0.05", "simulation.network.loss=0.1", "run.name=mine"],
    )
    assert scenario.simulation.peers == 6
    assert scenario.spec.run.members_at_start == 6
    assert (scenario.spec.run.rounds, scenario.spec.run.seed, scenario.spec.run.name) == (3, 9, "mine")
    assert scenario.spec.learner.optimizer.lr == 0.05
    assert scenario.simulation.network.link().loss == 0.1


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ("simulation.bogus=1", "bogus"),
        ("run.bogus=1", "bogus"),
        ("simulation.network.loss=2.0", "loss"),
        ("simulation.churn.crashes=-1", "churn"),
        ("simulation.expect=['metric']", "expectation"),
        ("simulation.fit_s=-1.0", "fit_s"),
        ("simulation.seeds='4-0'", "seeds"),
        ("run.members_at_start=9", "never begin"),
        ("nonsense", "key=value"),
        ("run.name.first=1", "not a table"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(setting: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load("digits", settings=[setting])


def test_an_unknown_scenario_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=", ".join(shipped())):
        load("no-such")
    with pytest.raises(ConfigError, match="cannot be read"):
        load("no-such.toml")


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[run\n")
    with pytest.raises(ConfigError, match="not TOML"):
        load(str(path))


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-4", (0, 1, 2, 3, 4)), ("7", (7,)), ("1,3,5-6", (1, 3, 5, 6))]
)
def test_seeds_are_read_as_people_write_them(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,1", "0-1000000", "-1"])
def test_seeds_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="seeds"):
        parse_seeds(text)


def test_a_setting_may_be_any_toml_value() -> None:
    table: dict[str, object] = {}
    set_key(table, 'a.b = {c = [1, 2], d = "x"}')
    assert table == {"a": {"b": {"c": [1, 2], "d": "x"}}}
