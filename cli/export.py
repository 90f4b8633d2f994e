"""The model a node holds, as named tensors."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pfl.errors import ConfigError, NotRunningError, StoreError

from . import home as homes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from p2pfl.events import Vector
    from p2pfl.run import RunSpec

__all__ = ["current_model", "named", "write"]

# A model of some gigabytes, written once to this machine's disk.
_EXPORT_S = 600.0


def current_model(home: Path, spec: RunSpec) -> tuple[dict[str, NDArray[Any]], int]:
    """The de-biased model and its round: from the node when it runs, else from its last commit.

    The node may answer with named tensors, or with one vector `parameters`, (d,) float32.
    Raises StoreError when no round was ever committed.
    """
    from safetensors.numpy import load_file

    from .client import ControlClient

    # In the home: the node writes the file, and the home is where both may.
    with tempfile.TemporaryDirectory(dir=home, prefix=".export-") as folder, ControlClient(home) as node:
        path = Path(folder) / "model.safetensors"
        try:
            answer = node.post("/v1/export", {"path": str(path)}, timeout_s=_EXPORT_S)
        except NotRunningError:
            return _stored_model(home, spec)
        return dict(load_file(path)), int(answer.get("round") or 0)


def _stored_model(home: Path, spec: RunSpec) -> tuple[dict[str, NDArray[Any]], int]:
    import numpy as np

    from p2pfl import ledger
    from p2pfl.node.store import Store
    from p2pfl.run import run_id

    if not (home / homes.STORE).exists():
        raise StoreError(f"{home} holds no state yet: no round was committed; `p2pfl node start` begins")
    with Store.open(home) as store:
        snapshot = store.load(run_id(spec))
    if snapshot is None:
        raise StoreError(f"{home} holds no state of run {spec.run.name!r} yet; `p2pfl node start` begins")
    known, x, model, _ = ledger.read(snapshot)
    if known.w > 0:
        # z = x / w, as push-sum de-biases (gossip/push_sum.py); in d-psgd w is 1.
        model = (x.astype(np.float64) / known.w).astype(np.float32)
    return {"parameters": x if model is None else model}, known.round


def named(home: Path, spec: RunSpec, vector: Vector) -> dict[str, NDArray[Any]]:
    """`vector` as the tensors of the learner's model.

    Builds the learner, because only its code knows the names.  Raises ConfigError and LearnerError.
    """
    from p2pfl.learn import factory
    from p2pfl.learn.flat import Schema, unflatten
    from p2pfl.learn.learner import Site
    from p2pfl.settings import load

    folder = homes.code_folder(home)
    if folder is not None:
        sys.path.insert(0, str(folder))
    node = load(home).node
    site = Site(data=node.data, name=node.name, seed=spec.run.seed, options=spec.learner)
    schema = getattr(factory.build(factory.resolve(spec.learner), site), "schema", None)
    if not isinstance(schema, Schema):
        raise ConfigError("this learner has no `schema`")
    if schema.size != len(vector):
        raise ConfigError(f"the learner has {schema.size} parameters, the model {len(vector)}")
    return dict(unflatten(vector, schema))


def write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Write `arrays` to `path`, whole or not at all; its SHA-256 in hex.  Raises StoreError."""
    from p2pfl.node.snapshots import export

    return export(path, arrays)
