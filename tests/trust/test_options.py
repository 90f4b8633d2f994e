import msgspec
import pytest

from p2pfl.trust.identity import Identity
from p2pfl.trust.options import TrustOptions

FOUNDERS = [Identity(bytes([i]) * 32).peer_id for i in range(1, 4)]


def test_the_agreement_of_a_consortium_is_read() -> None:
    options = msgspec.convert(
        {"founders": FOUNDERS, "quorum": 2, "aggregator": {"kind": "none"}, "max_norm": 1000.0}, TrustOptions
    )
    assert options.founders == tuple(FOUNDERS)
    assert options.max_norm == 1000.0


def test_a_simulation_needs_no_founders() -> None:
    assert TrustOptions().founders == ()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"aggregator": {"kind": "best"}}, r"'best'.*krum.*at `\$.aggregator`"),
        ({"aggregator": {"kind": "monna", "f": 0.5}}, "below one half"),
        ({"aggregator": {"kind": "monna", "f": 1.5}}, "whole number"),
        ({"aggregator": {"kind": "monna", "tau": 1.0}}, "no parameter 'tau'"),
        ({"aggregator": {"tau": 1.0}}, "takes no tau"),
        ({"aggregator": {"kind": "ubar"}}, "losses"),
        ({"privacy": {"kind": "dp"}}, r'"dp"; it is "none".* - at `\$.privacy`'),
        ({"privacy": {"clip": 1.0}}, 'kind = "none" takes no clip'),
        ({"privacy": {"kind": "gaussian", "clip": 1.0}}, "noise_multiplier is missing"),
        ({"privacy": {"kind": "gaussian", "clip": -1.0, "noise_multiplier": 1.0}}, "clip = -1 is not"),
        ({"privacy": {"delta": 1.0}}, "delta = 1 is not between"),
        ({"founders": ["12D3KooWnobody"]}, "not "),
        ({"founders": [f"{FOUNDERS[0]} "]}, "spaces"),
        ({"founders": FOUNDERS, "quorum": 1}, "expected 2 to 3"),
        ({"founders": [FOUNDERS[0]] * 2, "quorum": 2}, "twice"),
        ({"quorum": 2}, "without trust.founders"),
        ({"max_norm": 0.0}, "above 0"),
        ({"max_norm": float("nan")}, "above 0"),
        ({"founder": FOUNDERS}, "unknown field"),
    ],
)
def test_what_is_wrong_with_an_agreement_is_said_with_its_path(table: object, message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(table, TrustOptions)
