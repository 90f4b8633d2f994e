"""[knowledge]: what is refused, and the words of it."""

from typing import Any

import msgspec
import pytest

from p2pfl.knowledge.options import DEFAULTS, EXCHANGE_FIELDS, ExchangeOptions, KnowledgeOptions

PROBE = {"source": "npz:probe.npz", "digest": "0f" * 32, "samples": 1000}


def options(**exchange: Any) -> ExchangeOptions:
    return msgspec.convert({"exchange": exchange, **probe_for(exchange)}, KnowledgeOptions).exchange


def probe_for(exchange: dict[str, Any]) -> dict[str, Any]:
    return {"probe": PROBE} if exchange.get("kind") == "probe" else {}


def test_every_option_has_a_default_and_a_kind() -> None:
    fields = set(ExchangeOptions.__struct_fields__) - {"kind"}
    assert fields == set(DEFAULTS) == {field for names in EXCHANGE_FIELDS.values() for field in names}


def test_the_agreement_without_a_word_exchanges_nothing() -> None:
    assert msgspec.convert({}, KnowledgeOptions).exchange.kind == "none"


@pytest.mark.parametrize("kind", ["probe", "proto", "proxy", "none"])
def test_a_kind_with_its_defaults_is_accepted(kind: str) -> None:
    chosen = options(kind=kind)
    assert chosen.given() == ()
    assert chosen["alpha"] == (0.5 if kind == "proxy" else 1.0)


def test_features_travel_only_when_the_agreement_says_so() -> None:
    with pytest.raises(msgspec.ValidationError, match="share_features = true"):
        options(kind="hub")
    assert options(kind="hub", share_features=True)["coding"] == "int8"


@pytest.mark.parametrize(
    ("exchange", "words"),
    [
        ({"kind": "probe", "cache_mb": 5}, "does not apply to kind 'probe'"),
        ({"kind": "none", "alpha": 1.0}, "no options"),
        ({"kind": "gkt"}, "exchange.kind"),
        ({"kind": "probe", "temperature": 0.0}, "temperature = 0.0"),
        ({"kind": "probe", "keep": 0.0}, "keep = 0.0"),
        ({"kind": "probe", "coding": "float32"}, "int8 or float16"),
        ({"kind": "hub", "share_features": True, "coding": "float16"}, "int8 or float32"),
        ({"kind": "proxy", "alpha": 1.5}, "alpha = 1.5"),
        ({"kind": "proto", "least_count": 0}, "least_count = 0"),
        ({"kind": "proto", "surprise": 1}, "surprise"),
    ],
)
def test_what_does_not_apply_or_is_out_of_range_is_refused(exchange: dict[str, Any], words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        options(**exchange)


def test_a_probe_set_is_named_where_it_is_needed_and_nowhere_else() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"needs knowledge\.probe"):
        msgspec.convert({"exchange": {"kind": "probe"}}, KnowledgeOptions)
    with pytest.raises(msgspec.ValidationError, match="leave it out"):
        msgspec.convert({"exchange": {"kind": "proto"}, "probe": PROBE}, KnowledgeOptions)
    for field, value in (("digest", "0F" * 32), ("source", ""), ("samples", 0)):
        with pytest.raises(msgspec.ValidationError, match=f"probe.{field}"):
            msgspec.convert(
                {"exchange": {"kind": "probe"}, "probe": PROBE | {field: value}}, KnowledgeOptions
            )
    assert options(kind="hub", share_features=True, tier="none")["tier"] == "none"
