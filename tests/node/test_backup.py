"""A backup taken while rounds go on is one of those rounds, and restores to a working home."""

import io
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from p2pfl.errors import StoreError
from p2pfl.events import Fact, Snapshot
from p2pfl.ids import RunId
from p2pfl.node.backup import backup, restore
from p2pfl.node.store import Store

RUN = RunId("ab" * 32)


def commit(store: Store, number: int) -> None:
    arrays = {"x": np.full(1000, number, np.float32)}
    fact = Fact(event="round committed", fields={"round": number})
    store.commit(RUN, Snapshot(arrays=arrays, ledger=b"%d" % number), [fact], at=float(number))


def test_a_restored_home_is_what_was_backed_up_and_knows_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Store.open(home) as store:
        commit(store, 1)
        (home / "identity.key").write_bytes(b"secret")
        (home / "runs").mkdir()
        (home / "runs" / "run.toml").write_text("[run]")
        (home / "node.log").write_text("chatter")
        backup(store, home / "backup.tar")
        commit(store, 2)
    assert (home / "backup.tar").stat().st_mode & 0o077 == 0
    restore(home / "backup.tar", tmp_path / "new")
    names = {p.relative_to(tmp_path / "new").as_posix() for p in (tmp_path / "new").rglob("*") if p.is_file()}
    assert {"store.db", "identity.key", "runs/run.toml"} <= names
    assert not [n for n in names if n.endswith((".log", ".tar"))]
    assert (tmp_path / "new" / "identity.key").stat().st_mode & 0o077 == 0
    with Store.open(tmp_path / "new") as store:
        loaded = store.load(RUN)
        assert loaded is not None
        assert loaded.ledger == b"1"
        assert store.get("restored") == b"1"
    with Store.open(home) as store:
        assert store.get("restored") is None
    assert not list(home.glob(".scratch-*"))


def test_a_backup_taken_between_commits_of_another_thread_is_consistent(tmp_path: Path) -> None:
    done = threading.Event()
    with Store.open(tmp_path / "home") as store:
        commit(store, 0)

        def go_on() -> None:
            number = 0
            while not done.is_set():
                number += 1
                commit(store, number)

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            for n in range(5):
                backup(store, tmp_path / f"{n}.tar")
        finally:
            done.set()
            thread.join()
    for n in range(5):
        restore(tmp_path / f"{n}.tar", tmp_path / f"restored{n}")
        with Store.open(tmp_path / f"restored{n}") as store:
            loaded = store.load(RUN)
            assert loaded is not None
            assert int(loaded.arrays["x"][0]) == int(loaded.ledger)


def test_a_home_in_use_is_never_restored_over(tmp_path: Path) -> None:
    with Store.open(tmp_path / "home") as store:
        backup(store, tmp_path / "b.tar")
    with pytest.raises(StoreError, match="not empty"):
        restore(tmp_path / "b.tar", tmp_path / "home")
    (tmp_path / "mounted").mkdir()
    restore(tmp_path / "b.tar", tmp_path / "mounted")
    Store.open(tmp_path / "mounted").close()


def test_a_damaged_or_foreign_file_leaves_the_new_home_empty(tmp_path: Path) -> None:
    with Store.open(tmp_path / "home") as store:
        commit(store, 1)
        backup(store, tmp_path / "good.tar")
    data = (tmp_path / "good.tar").read_bytes()
    start = data.index(np.full(1000, 1, np.float32).tobytes())
    (tmp_path / "flipped.tar").write_bytes(data[:start] + b"\x55" + data[start + 1 :])
    (tmp_path / "short.tar").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.tar").write_bytes(b"hello")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("readme"), io.BytesIO())
    for name in ("flipped", "short", "text", "other", "absent"):
        with pytest.raises(StoreError):
            restore(tmp_path / f"{name}.tar", tmp_path / "new")
        assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
def test_a_backup_never_writes_outside_the_home(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(StoreError, match="no backup of a node"):
        restore(tmp_path / "evil.tar", tmp_path / "home" / "new")
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        tar.addfile(link)
    with pytest.raises(StoreError, match="no backup of a node"):
        restore(tmp_path / "link.tar", tmp_path / "home" / "new")
    assert not (tmp_path / "home" / "outside").exists()
