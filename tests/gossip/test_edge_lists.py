"""Edge lists as text."""

import pytest

from p2pfl.errors import ConfigError
from p2pfl.gossip.edge_lists import parse_edges


@pytest.mark.parametrize(
    "text",
    [
        "0,1\n1,2\n",
        "source;target\n0;1\n1 ; 2",
        "# who cables reach\n\n0 1\n1\t2\n",
        "from to\r\n0, 1\r\n1, 2\r\n",
    ],
)
def test_pairs_are_read_whatever_stands_between_them(text: str) -> None:
    assert parse_edges(text, "links") == [(0, 1), (1, 2)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0,1\n1,two\n", "links line 2: '1,two' is not a pair"),
        ("0,1,0.5\n", "line 1"),
        ("0,-1\n", "line 1"),
        ("a,b\nc,d\n", "line 2"),
        ("0,99999999999\n", "line 1"),
        ("# nothing\n", "lists no edge"),
        ("", "lists no edge"),
    ],
)
def test_what_is_no_pair_is_named_by_its_line(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_edges(text, "links")
