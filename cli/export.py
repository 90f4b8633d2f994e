"""The model a node holds, as named tensors."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pfl.errors import NotRunningError, StoreError

from . import home as homes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from p2pfl.events import Vector
    from p2pfl.ledger import Ledger
    from p2pfl.run import RunSpec

__all__ = ["export_model", "last_model"]

# A model of some gigabytes, written once to this machine's disk.
_EXPORT_S = 600.0


def export_model(home: Path, spec: RunSpec, path: Path) -> dict[str, Any]:
    """Write the de-biased model to the safetensors file `path`; its sha256 and round.

    From the node when it runs, else from its last commit.  Tensors have the names that the learner gave them;
    one that gives none has one vector `parameters`, (d,) float32.
    Raises StoreError when no round was ever committed, or the disk refuses.
    """
    from .client import ControlClient

    with ControlClient(home) as node, contextlib.suppress(NotRunningError):
        answer = node.post("/v1/export", {"path": str(path)}, timeout_s=_EXPORT_S)
        return {"sha256": answer.get("digest"), "round": answer.get("round")}
    from p2pfl.node import snapshots

    arrays, at_round = _stored_model(home, spec)
    return {"sha256": snapshots.export(path, arrays), "round": at_round}


def _stored_model(home: Path, spec: RunSpec) -> tuple[dict[str, NDArray[Any]], int]:
    import msgspec

    from p2pfl.learn.flat import Schema, unflatten

    vector, known, names = last_model(home, spec)
    # "null" where the learner does not name its tensors.
    schema = msgspec.json.decode(names, type=Schema | None) if names else None
    return dict(unflatten(vector, schema)) if schema else {"parameters": vector}, known.round


def last_model(home: Path, spec: RunSpec) -> tuple[Vector, Ledger, bytes | None]:
    """The de-biased model of the last commit, (d,), the ledger beside it, and the tensors' names as JSON.

    Raises StoreError when no round was ever committed.
    """
    import numpy as np

    from p2pfl import ledger
    from p2pfl.node.store import Store
    from p2pfl.run import run_id

    nothing = f"{home} holds no state of run {spec.run.name!r} yet; `p2pfl node start` begins"
    if not (home / homes.STORE).exists():
        raise StoreError(nothing)
    run = run_id(spec)
    with Store.open(home) as store:
        snapshot, names = store.load(run), store.get(f"schema:{run}")
    if snapshot is None:
        raise StoreError(nothing)
    known, x, model, _ = ledger.read(snapshot)
    # z = x / w, as push-sum de-biases (gossip/push_sum.py), unless the model lies beside; in d-psgd w is 1.
    vector: Vector = (x.astype(np.float64) / known.w).astype(np.float32) if model is None else model
    return vector, known, names
