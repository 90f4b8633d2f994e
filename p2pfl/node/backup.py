"""Backups: a node's home as one tar file, taken while the node runs, and put back elsewhere.

A backup holds the database, the snapshots that it names, and the home's other small files (key,
configuration), so it is as secret as the home itself: the file is readable by its owner only.

A restored home is older than what its neighbours have seen.  The entry `restored` says so; at the first
HELLO a neighbour whose watermark is ahead makes the node a new incarnation, and nothing is counted twice.
"""

import contextlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from p2pfl.errors import StoreError
from p2pfl.node import snapshots
from p2pfl.node.store import Store

__all__ = ["backup", "restore"]

# What the store copies in its own way, or what only a running process means something to.
_LEFT_OUT_NAMES = frozenset({"lock", "store.db", "store.db-wal", "store.db-shm", "snapshots"})
_LEFT_OUT_SUFFIXES = frozenset({".log", ".sock", ".tmp", ".tar"})


def backup(store: Store, path: Path) -> None:
    """Write everything of `store`'s node to the tar file `path`, whole or not at all.

    Rounds may be committed meanwhile; the backup holds one of them.  Raises StoreError.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with snapshots.disk_errors(path), _scratch(store.home) as scratch:
        store.copy_to(scratch)
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                with tarfile.open(fileobj=file, mode="w") as tar:
                    for source, name in (*_files(scratch, frozenset()), *_files(store.home, _LEFT_OUT_NAMES)):
                        tar.add(source, arcname=name, recursive=False)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def restore(path: Path, home: Path) -> None:
    """Put the backup `path` into `home`, which must be absent or empty; every digest is verified first.

    Raises StoreError when `home` holds a node already, or when the file is not a whole backup.
    """
    home = home.expanduser().absolute()
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise StoreError(f"{home} is not empty; give the restored node a --home of its own")
    with snapshots.disk_errors(home):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _scratch(home) as scratch:
            _unpack(path, scratch)
            with Store.open(scratch) as store:
                for run in store.runs():
                    store.load(run["run"])
                store.put("restored", b"1")
            # The database last: without it nothing takes the folder for a node's.
            for entry in sorted(scratch.iterdir(), key=lambda entry: entry.name == "store.db"):
                entry.rename(home / entry.name)


def _unpack(path: Path, folder: Path) -> None:
    """Copy the regular files out of the tar file, each within `folder` whatever its name says."""
    try:
        with snapshots.disk_errors(path), tarfile.open(path, mode="r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                content = tar.extractfile(member) if member.isreg() else None
                if content is None or name.is_absolute() or ".." in name.parts:
                    raise StoreError(f"{path} holds {member.name!r}, which no backup of a node does")
                target = folder / name
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with content, os.fdopen(descriptor, "wb") as file:
                    shutil.copyfileobj(content, file)
    except tarfile.TarError as cause:
        raise StoreError(f"{path} is not a whole backup ({cause}); use another one") from cause
    if not (folder / "store.db").is_file():
        raise StoreError(f"{path} is not a backup: it holds no store.db; use what `p2pfl node backup` wrote")


def _files(folder: Path, left_out: frozenset[str]) -> Iterator[tuple[Path, str]]:
    """The regular files below `folder` and their names relative to it, in order."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if hidden or name.parts[0] in left_out or path.suffix in _LEFT_OUT_SUFFIXES:
            continue
        if path.is_file() and not path.is_symlink():
            yield path, name.as_posix()


@contextlib.contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    """A hidden folder within `home`, so on its file system and for its owner only; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix=".scratch-", dir=home))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
