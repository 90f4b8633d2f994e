import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import ConfigError, StoreError
from p2pfl.ids import PeerId, peer_id_of, public_key_of
from p2pfl.net import discovery, messages
from p2pfl.trust import certificates, envelope
from p2pfl.trust.identity import Identity, create, load, verify

# RFC 8032, section 7.1, test 2.
SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_keys_and_signatures_are_those_of_rfc_8032() -> None:
    one = Identity(SEED)
    assert one.public_key == PUBLIC
    assert one.sign(b"", b"\x72") == SIGNATURE
    assert verify(one.peer_id, b"", b"\x72", SIGNATURE)


def test_the_peer_id_is_the_one_libp2p_gives_the_same_seed() -> None:
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    pair = create_new_key_pair(SEED)
    assert Identity(SEED).peer_id == ID.from_pubkey(pair.public_key).to_base58()
    assert pair.public_key.verify(b"\x72", Identity(SEED).sign(b"", b"\x72"))


def test_the_docstring_example_holds() -> None:
    assert Identity(bytes(32)).peer_id == "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


def test_a_signature_for_one_purpose_does_not_serve_another() -> None:
    one = Identity(SEED)
    signature = one.sign(b"p2pfl-a/1", b"data")
    assert verify(one.peer_id, b"p2pfl-a/1", b"data", signature)
    assert not verify(one.peer_id, b"p2pfl-b/1", b"data", signature)
    assert not verify(one.peer_id, b"p2pfl-a/1", b"datA", signature)
    assert not verify(Identity(bytes(32)).peer_id, b"p2pfl-a/1", b"data", signature)


def test_no_domain_is_the_beginning_of_another() -> None:
    domains = [
        envelope.DOMAIN,
        certificates.CERTIFICATE_DOMAIN,
        certificates.REVOCATION_DOMAIN,
        discovery.ADDRESS_DOMAIN,
    ]
    assert envelope.DOMAIN == messages.DOMAIN
    for one in domains:
        assert not any(other.startswith(one) for other in domains if other != one)


def test_a_key_of_small_order_verifies_nothing() -> None:
    # The neutral element signs everything in a verifier that does not refuse it.
    neutral = bytes([1]) + bytes(31)
    assert not verify(peer_id_of(neutral), b"", b"data", neutral + bytes(32))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.binary(max_size=80), st.binary(max_size=80))
def test_verifying_never_raises(name: str, data: bytes, signature: bytes) -> None:
    assert verify(PeerId(name), b"p2pfl-a/1", data, signature) is False


def test_an_identity_never_shows_its_seed() -> None:
    one = Identity(SEED)
    shown = f"{one!r} {one}"
    assert one.peer_id in shown
    assert SEED.hex() not in shown
    assert repr(SEED) not in shown
    assert public_key_of(one.peer_id) == PUBLIC


def test_a_seed_of_another_length_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError, match="32 bytes, this one has 3") as caught:
        Identity(b"abc")
    assert "abc" not in str(caught.value)


def test_a_key_file_comes_back_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    before = os.umask(0)
    try:
        made = create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load(path) == made
    assert load(path).seed == made.seed
    assert [p.name for p in tmp_path.iterdir()] == ["identity.key"]


def test_two_new_identities_differ(tmp_path: Path) -> None:
    assert create(tmp_path / "a") != create(tmp_path / "b")


def test_openssl_reads_the_key_file(tmp_path: Path) -> None:
    made = create(tmp_path / "identity.key")
    der = subprocess.run(
        ["openssl", "pkey", "-in", str(tmp_path / "identity.key"), "-pubout", "-outform", "DER"],
        check=True,
        capture_output=True,
    ).stdout
    assert der.endswith(made.public_key)


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    made = create(path)
    with pytest.raises(StoreError, match="exists"):
        create(path)
    assert load(path) == made
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("call", ["link", "fsync", "write"])
def test_a_disk_that_fails_leaves_no_key_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen" if call == "write" else call, fail)
    with pytest.raises(StoreError, match="No space left"):
        create(tmp_path / "identity.key")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_hard_links_still_gets_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    made = create(tmp_path / "identity.key")
    assert load(tmp_path / "identity.key") == made
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_key_that_others_may_read_is_refused_with_the_cure(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    create(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        load(path)


@pytest.mark.parametrize(
    "text", ["", "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n", "x" * 5000, "\udcff"]
)
def test_a_damaged_key_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "identity.key"
    path.write_text(text, errors="surrogateescape")
    path.chmod(0o600)
    with pytest.raises(StoreError, match="not an Ed25519 key"):
        load(path)


def test_a_cut_key_is_refused_without_being_shown(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    create(path)
    text = path.read_text()
    path.write_text(text[:60] + text[64:])
    with pytest.raises(StoreError) as caught:
        load(path)
    assert text[40:56] not in str(caught.value)


def test_a_missing_key_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="p2pfl node init"):
        load(tmp_path / "identity.key")
    with pytest.raises(StoreError, match="is the folder there"):
        create(tmp_path / "nowhere" / "identity.key")


def test_a_pipe_in_the_keys_place_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "identity.key", 0o600)
    with pytest.raises(StoreError, match="not a file"):
        load(tmp_path / "identity.key")
