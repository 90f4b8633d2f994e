import msgspec
import pytest
from worlds import agreement, tiny_world

from p2pfl.errors import ConfigError
from p2pfl.simulations import churn
from p2pfl.simulations.churn import ChurnOptions
from p2pfl.simulations.scenario import load


def test_a_schedule_has_what_was_asked_for_and_follows_from_the_seed() -> None:
    options = ChurnOptions(crashes=5, lost_disks=2, restored_backups=1, down_s=(1.0, 2.0))
    schedule = churn.draw(options, 4, 20.0, seed=3)
    assert schedule == churn.draw(options, 4, 20.0, seed=3)
    assert schedule != churn.draw(options, 4, 20.0, seed=4)
    assert sorted(event.what for event in schedule) == ["crash"] * 5 + ["lost-disk"] * 2 + ["restored-backup"]
    assert all(1.0 <= event.time <= 20.0 and 1.0 <= event.down_s <= 2.0 for event in schedule)
    assert [event.time for event in schedule] == sorted(event.time for event in schedule)


def test_only_those_who_were_named_are_hit() -> None:
    options = ChurnOptions(crashes=20, peers=(1, 3))
    assert {event.index for event in churn.draw(options, 5, 20.0, seed=3)} == {1, 3}
    with pytest.raises(ConfigError, match=r"churn\.peers are numbers from 0 to 3"):
        load("digits", settings=["simulation.churn={crashes=1, peers=[4]}"])


def test_nonsense_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="down_s"):
        msgspec.convert({"down_s": [3.0, 1.0]}, ChurnOptions)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_run_survives_its_churn_with_its_books_in_order(seed: int) -> None:
    world = tiny_world(5, spec=agreement(5, rounds=20, seed=seed))
    options = ChurnOptions(crashes=4, lost_disks=1, restored_backups=2, age_s=4.0)
    churn.apply(world, churn.draw(options, 5, 20.0, seed))
    assert world.run(until_s=5000)
    assert world.mass().error < 1e-9
    assert sum(machine.life > 1 for machine in world.machines) >= 2
