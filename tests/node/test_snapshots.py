"""Snapshots are whole or absent, verified, and pruned to what is named."""

import errno
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from p2pfl.errors import LocalError, StoreError
from p2pfl.node import snapshots


def payload(data: bytes) -> tuple[str, np.ndarray[Any, Any]]:
    array = np.frombuffer(data, np.uint8)
    return "payload:" + hashlib.sha256(data).hexdigest(), array


def test_what_is_written_is_read_back_with_its_shapes_and_dtypes(tmp_path: Path) -> None:
    name, body = payload(b"a share")
    arrays = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "w": np.asarray(0.25),
        "none": np.zeros((0, 3)),
        "mask": np.array([True, False]),
        "bytes": np.arange(5, dtype=np.uint8),
        name: body,
    }
    file = snapshots.write(tmp_path / "a" / "b", arrays)
    back = snapshots.read(tmp_path / "a" / "b", file.name, file.digest)
    assert set(back) == set(arrays)
    for key, array in arrays.items():
        assert back[key].dtype == array.dtype
        assert back[key].shape == array.shape
        np.testing.assert_array_equal(back[key], array)


_dtypes = st.sampled_from([np.float32, np.float64, np.uint8, np.int64, np.bool_, np.float16])
_arrays = st.dictionaries(
    st.text(max_size=8).filter(lambda name: not name.startswith(("payload:", "__metadata__"))),
    _dtypes.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_side=4))),
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(_arrays)
def test_any_named_arrays_round_trip_bit_for_bit(arrays: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = snapshots.write(Path(folder), arrays)
        back = snapshots.read(Path(folder), file.name, file.digest)
        assert {k: (a.shape, a.dtype, a.tobytes()) for k, a in back.items()} == {
            k: (a.shape, a.dtype, a.tobytes()) for k, a in arrays.items()
        }


def test_equal_arrays_give_equal_digests_and_any_reader_opens_the_file(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {"b": np.ones(3, np.float32), "a": np.ones(2)}
    first = snapshots.write(tmp_path / "one", arrays)
    second = snapshots.write(tmp_path / "two", dict(reversed(arrays.items())))
    assert first == second
    opened = safetensors.numpy.load_file(tmp_path / "one" / first.name)
    np.testing.assert_array_equal(opened["b"], arrays["b"])


def test_an_array_in_big_endian_order_is_stored_little_endian(tmp_path: Path) -> None:
    file = snapshots.write(tmp_path, {"x": np.arange(3, dtype=">f8")})
    np.testing.assert_array_equal(snapshots.read(tmp_path, file.name, file.digest)["x"], [0.0, 1.0, 2.0])


def test_a_payload_is_written_once_and_only_referenced_afterwards(tmp_path: Path) -> None:
    name, body = payload(b"x" * 1000)
    first = snapshots.write(tmp_path, {"x": np.zeros(1), name: body})
    (stored,) = (tmp_path / p for p in first.payloads)
    before = stored.stat()
    second = snapshots.write(tmp_path, {"x": np.ones(1), name: body})
    after = stored.stat()
    assert second.payloads == first.payloads
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert (tmp_path / second.name).stat().st_size < 1000


def test_a_payload_whose_name_is_not_its_digest_is_refused(tmp_path: Path) -> None:
    _, body = payload(b"this")
    name, _ = payload(b"that")
    with pytest.raises(LocalError, match="not named by the SHA-256"):
        snapshots.write(tmp_path, {name: body})
    with pytest.raises(LocalError, match="64 lowercase hex"):
        snapshots.write(tmp_path, {"payload:../../etc/passwd": body})
    assert not list(tmp_path.iterdir())


def test_an_object_array_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="dtype object"):
        snapshots.write(tmp_path, {"x": np.array([None])})


@pytest.mark.parametrize("which", [".safetensors", ".payload"])
def test_one_changed_bit_is_found_and_the_cure_is_named(tmp_path: Path, which: str) -> None:
    name, body = payload(b"body")
    file = snapshots.write(tmp_path, {"x": np.zeros(3), name: body})
    (victim,) = (p for p in tmp_path.iterdir() if p.suffix == which)
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    with pytest.raises(StoreError, match=r"p2pfl node restore") as raised:
        snapshots.read(tmp_path, file.name, file.digest)
    assert victim.name in str(raised.value)


def test_a_missing_file_is_a_store_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"gone\.safetensors.*restore"):
        snapshots.read(tmp_path, "gone.safetensors", "0" * 64)


def test_prune_keeps_what_is_named_and_what_is_not_ours(tmp_path: Path) -> None:
    name, body = payload(b"old share")
    snapshots.write(tmp_path, {"x": np.zeros(1), name: body})
    keep = snapshots.write(tmp_path, {"x": np.ones(1)})
    (tmp_path / "snapshot.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    assert snapshots.prune(tmp_path, keep.files) == 3
    assert {p.name for p in tmp_path.iterdir()} == {keep.name, "notes.txt"}
    assert snapshots.prune(tmp_path / "absent", set()) == 0


def test_a_full_disk_is_a_store_error_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="free some space"):
        snapshots.write(tmp_path, {"x": np.zeros(3)})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "snapshots").write_bytes(b"")
    with pytest.raises(StoreError):
        snapshots.write(tmp_path / "snapshots", {"x": np.zeros(3)})


def test_an_exported_model_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"an older model")
    weight = np.arange(4, dtype=np.float32).reshape(2, 2)
    digest = snapshots.export(path, {"weight": weight})
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["weight"], weight)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
