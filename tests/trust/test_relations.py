import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pfl import encoding
from p2pfl.errors import ConfigError, StoreError
from p2pfl.ids import PeerId
from p2pfl.trust import relations
from p2pfl.trust.identity import Identity
from p2pfl.trust.relations import (
    Level,
    Relations,
    accept_level,
    accepts,
    ban,
    forget,
    from_bytes,
    may_share,
    parse_level,
    rename,
    set_level,
    share_level,
    to_bytes,
    weight_limit,
)

PEERS = [Identity(bytes([i]) * 32).peer_id for i in range(1, 7)]
A, B = PEERS[:2]
NONE = Relations()


def test_members_are_told_and_believed_unless_the_site_says_otherwise() -> None:
    assert may_share(NONE, A)
    assert accepts(NONE, A)
    closed = Relations(share_default=Level.DENY, accept_default=Level.QUARANTINE)
    assert not may_share(closed, A)
    assert not accepts(closed, A)


def test_the_two_directions_are_independent() -> None:
    tells = set_level(NONE, A, accept=Level.DENY)
    assert may_share(tells, A)
    assert not accepts(tells, A)
    assert accepts(tells, B)
    hears = set_level(NONE, A, share=Level.DENY)
    assert not may_share(hears, A)
    assert accepts(hears, A)


@pytest.mark.parametrize("level", list(Level))
def test_limited_and_above_carry_updates_and_below_carry_none(level: Level) -> None:
    one = set_level(NONE, A, share=level, accept=level)
    assert may_share(one, A) is accepts(one, A) is (level >= Level.LIMITED)


def test_a_ban_beats_every_level_until_it_is_forgotten() -> None:
    one = set_level(ban(NONE, A), A, share=Level.PINNED, accept=Level.PINNED)
    assert share_level(one, A) is accept_level(one, A) is Level.DENY
    assert not may_share(one, A)
    assert not accepts(one, A)
    assert forget(one, A) == NONE


def test_a_limited_peer_may_bring_half_a_members_fair_part() -> None:
    assert weight_limit(Level.NORMAL, total=8.0, n=4) == 8.0
    assert weight_limit(Level.PINNED, total=8.0, n=4) == 8.0
    assert weight_limit(Level.LIMITED, total=8.0, n=4) == 1.0
    assert weight_limit(Level.QUARANTINE, total=8.0, n=4) == 0.0
    assert weight_limit(Level.DENY, total=8.0, n=4) == 0.0


def test_levels_are_words_to_people() -> None:
    assert parse_level(" Pinned ") is Level.PINNED
    with pytest.raises(ConfigError, match="deny, quarantine, limited, normal, pinned"):
        parse_level("friend")


def test_the_lists_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relations, "MAX_OVERRIDES", 1)
    one = ban(set_level(NONE, A, share=Level.DENY), A)
    with pytest.raises(ConfigError, match="forget"):
        set_level(one, B, share=Level.DENY)
    with pytest.raises(ConfigError, match="forget"):
        ban(one, B)


levels = st.sampled_from(Level)
lists = st.dictionaries(st.sampled_from(PEERS), levels)


@given(levels, levels, lists, lists, st.frozensets(st.sampled_from(PEERS)))
def test_relations_come_back_from_the_disk(
    share: Level,
    accept: Level,
    tells: dict[PeerId, Level],
    hears: dict[PeerId, Level],
    banned: frozenset[PeerId],
) -> None:
    one = Relations(
        share_default=share, accept_default=accept, share_with=tells, accept_from=hears, banned=banned
    )
    assert from_bytes(to_bytes(one)) == one
    for peer, level in tells.items():
        one = set_level(one, peer, share=level, task="features")
        one = set_level(one, peer, accept=level, task="labels")
    assert from_bytes(to_bytes(one)) == one


def test_relations_stored_before_levels_had_kinds_are_read() -> None:
    one = ban(set_level(NONE, A, share=Level.DENY), B)
    document = encoding.unpack(to_bytes(one), "it", keys=range(1, 10), limit=4096)
    assert from_bytes(encoding.pack({key: document[key] for key in range(1, 6)})) == one


def test_levels_for_weights_hold_for_labels_and_features_are_told_to_nobody() -> None:
    one = set_level(NONE, A, share=Level.LIMITED, accept=Level.QUARANTINE)
    assert share_level(one, A, "labels") is Level.LIMITED
    assert accept_level(one, A, "labels") is accept_level(one, A, "features") is Level.QUARANTINE
    assert share_level(one, A, "features") is share_level(NONE, B, "features") is Level.DENY


def test_a_kind_of_message_has_levels_of_its_own_that_a_ban_beats() -> None:
    one = set_level(NONE, A, share=Level.NORMAL, task="features")
    one = set_level(one, A, accept=Level.DENY, task="labels")
    assert share_level(one, A, "features") is Level.NORMAL
    assert accept_level(one, A, "labels") is Level.DENY
    assert accept_level(one, A) is share_level(one, A) is Level.NORMAL
    assert share_level(ban(one, A), A, "features") is Level.DENY
    moved = rename(one, A, B)
    assert share_level(moved, B, "features") is Level.NORMAL
    assert share_level(moved, A, "features") is Level.DENY
    assert share_level(forget(one, A), A, "features") is Level.DENY
    with pytest.raises(ConfigError, match="weights, features, labels"):
        set_level(NONE, A, share=Level.NORMAL, task="gradients")  # type: ignore[arg-type]


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 3))
def test_a_damaged_store_is_read_or_refused(new: bytes, at: int, cut: int) -> None:
    data = to_bytes(ban(set_level(NONE, A, share=Level.DENY), B))
    for changed in (new, data[:at] + new[:3] + data[at + cut :]):
        try:
            from_bytes(changed)
        except StoreError:
            continue


def test_a_hub_named_in_node_toml_is_told_features_unless_the_site_says_otherwise() -> None:
    one = Relations(features_to=frozenset({A}))
    assert share_level(one, A, "features") is Level.NORMAL
    assert share_level(one, B, "features") is Level.DENY
    denied = set_level(one, A, share=Level.DENY, task="features")
    assert share_level(denied, A, "features") is share_level(ban(one, A), A, "features") is Level.DENY
    assert share_level(rename(one, A, B), B, "features") is Level.NORMAL
    # It is node.toml's word, so the disk does not keep it when the line is gone.
    assert share_level(from_bytes(to_bytes(one)), A, "features") is Level.DENY
