"""A topology of the user's own: what it may give, and what is said of everything else."""

from typing import Any

import own_topology
import pytest

from p2pfl.errors import ConfigError
from p2pfl.gossip.averaging import D_PSGD
from p2pfl.gossip.custom import custom
from p2pfl.gossip.mixing import Kind
from p2pfl.gossip.options import TopologyOptions
from p2pfl.gossip.push_sum import PUSH_SUM
from p2pfl.gossip.topology import check, plan, sweep


def own(name: str) -> TopologyOptions:
    return TopologyOptions(kind="custom", function=f"own_topology:{name}")


def test_lists_of_positions_are_mixed_like_those_of_any_kind() -> None:
    one = plan(own("turning"), 2, 6, 0)
    assert one.out_edges == tuple((((i + 3) % 6),) for i in range(6))
    assert one.fractions(0) == (0.5, (0.5,))
    assert one.kinds == frozenset(Kind)
    assert plan(own("turning"), 0, 1, 0).out_edges == ((),)


def test_mappings_say_which_part_goes_where() -> None:
    one = plan(own("uneven"), 3, 7, 1)
    keep, parts = one.fractions(2)
    assert keep == pytest.approx(0.4)
    assert sorted(parts) == [0.1, 0.5]
    assert one.out_edges != plan(own("uneven"), 4, 7, 1).out_edges
    check(one, PUSH_SUM)
    with pytest.raises(ConfigError, match="'d-psgd' needs doubly-stochastic"):
        check(one, D_PSGD)


def test_a_function_that_draws_from_elsewhere_is_found_out() -> None:
    with pytest.raises(ConfigError, match=r"forgetful gave two graphs.*nodes would not agree"):
        plan(own("forgetful"), 0, 9, 0)


def test_rounds_that_never_join_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="200 rounds together do not join all"):
        sweep(own("islands"), 6, 0)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([[1], [0]], "gave 2, expected a list of 3 entries"),
        ("012", "gave 3, expected a list of 3 entries"),
        (None, "gave a NoneType"),
        ([[1], [2], [3]], "entry 2 names 3, expected positions from 0 to 2"),
        ([[1], [-1], [0]], "entry 1 names -1"),
        ([[1], [1.0], [0]], "entry 1 names 1.0"),
        ([[1], [True], [0]], "entry 1 names True"),
        ([[1], [2, 2], [0]], "entry 1 names a peer twice"),
        ([[1], 2, [0]], "entry 1 is a int"),
        ([[1], {2: 0.5}, [0]], "lists and mappings"),
        ([{1: 0.5}, {2: 1.5}, {}], "entry 1 gives the part 1.5"),
        ([{1: 0.5}, {2: float("nan")}, {}], "gives the part nan"),
        ([{1: 0.5}, {2: 0.5, 0: 0.5}, {}], "sum to 1; leave the peer"),
    ],
)
def test_what_is_no_graph_is_refused_in_words(entries: Any, says: str) -> None:
    own_topology._given["entries"] = entries
    with pytest.raises(ConfigError, match=says):
        custom("own_topology:whatever", 3, 0, 0)


def test_nobody_is_told_to_send_to_itself() -> None:
    with pytest.raises(ConfigError, match="entry 0 names 0 itself"):
        plan(own("itself"), 0, 3, 0)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("own_topology:nothing", "has no 'nothing'; it has"),
        ("no_such_module:plan", "no module 'no_such_module'"),
        ("shutil:rmtree", r"rmtree\(n=3, t=0, seed=0\) raised TypeError"),
        ("math:pi", "expected a function"),
    ],
)
def test_a_function_that_cannot_be_called_is_named(function: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan(TopologyOptions(kind="custom", function=function), 0, 3, 0)


def test_the_kind_needs_its_function_and_no_other_takes_one() -> None:
    with pytest.raises(ConfigError, match="needs the user's own"):
        TopologyOptions(kind="custom")
    with pytest.raises(ConfigError, match="function does not apply to kind 'ring'"):
        TopologyOptions(kind="ring", function="own_topology:turning")
