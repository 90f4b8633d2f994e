"""What [gossip] accepts, and what it says of the rest."""

from typing import Any

import msgspec
import pytest

from p2pfl.errors import ConfigError
from p2pfl.gossip.averaging import MIXERS
from p2pfl.gossip.options import (
    AVERAGING_KINDS,
    TOPOLOGY_FIELDS,
    AveragingOptions,
    CompressionOptions,
    TopologyOptions,
)


def test_the_defaults_are_push_sum_on_the_exponential_graph_uncompressed() -> None:
    assert TopologyOptions().kind == "exponential"
    assert AveragingOptions().kind == "push-sum"
    assert CompressionOptions().kind == "none"


def test_options_read_from_toml_are_values_that_hash() -> None:
    text = b'kind = "explicit"\nedges = [[0, 1], [1, 2]]\ndirected = true'
    options = msgspec.toml.decode(text, type=TopologyOptions)
    assert options == TopologyOptions(kind="explicit", edges=((0, 1), (1, 2)), directed=True)
    assert len({options, TopologyOptions(kind="explicit", edges=((0, 1), (1, 2)), directed=True)}) == 1


def test_an_unknown_key_is_refused_with_its_path() -> None:
    with pytest.raises(msgspec.ValidationError, match="degre"):
        msgspec.convert({"kind": "random-regular", "degre": 3}, TopologyOptions)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "hypercube"}, "choose one of complete, ring"),
        ({"kind": "star", "degree": 3}, "degree does not apply to kind 'star'"),
        ({"kind": "ring", "seed": 3}, "takes directed"),
        ({"kind": "torus", "rows": 0}, "at least 1"),
        ({"kind": "random-regular", "degree": 1}, "at least 2"),
        ({"kind": "watts-strogatz", "degree": 3}, "even degree"),
        ({"kind": "one-way", "degree": 5}, "one-way starts from a ring of even degree"),
        ({"kind": "erdos-renyi", "p": 1.5}, "from 0 to 1"),
        ({"kind": "erdos-renyi", "p": float("nan")}, "from 0 to 1"),
        ({"kind": "erdos-renyi", "p": 0.0}, "joins nobody"),
        ({"kind": "erdos-renyi", "seed": -1}, "expected 0 to"),
        ({"kind": "explicit"}, "edges is missing"),
        ({"kind": "explicit", "edges": ((0, 0),)}, "keeps its own part"),
        ({"kind": "explicit", "edges": ((0, -1),)}, "start at 0"),
    ],
)
def test_a_topology_that_could_never_be_built_says_why(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TopologyOptions(**options)
    with pytest.raises(ConfigError, match=says):
        msgspec.convert(options, TopologyOptions)


def test_averaging_and_compression_that_do_not_exist_name_what_does() -> None:
    with pytest.raises(ConfigError, match="push-sum, push-pull, d-psgd"):
        AveragingOptions(kind="all-reduce")
    with pytest.raises(ConfigError, match=r"'top-k'.*choose 'none'"):
        CompressionOptions(kind="top-k")


def test_every_averaging_kind_has_its_mixer() -> None:
    assert tuple(MIXERS) == AVERAGING_KINDS
    assert all(mixer.name == kind for kind, mixer in MIXERS.items())


def test_the_schema_for_editors_lists_the_kinds() -> None:
    schema = msgspec.json.schema(TopologyOptions)["$defs"]["TopologyOptions"]
    assert schema["properties"]["kind"]["enum"] == list(TOPOLOGY_FIELDS)
