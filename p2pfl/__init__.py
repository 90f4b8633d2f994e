"""p2pfl: serverless peer-to-peer federated learning.

What a data scientist needs is here; torch, sklearn and libp2p are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2pfl.errors import P2PFLError
    from p2pfl.events import Metrics, Vector
    from p2pfl.learn.factory import dataset_of
    from p2pfl.learn.learner import DpSgd, Learner, LearnerFactory, Site, Update
    from p2pfl.learn.numpy_learner import NumpyLearner
    from p2pfl.learn.proxy_learner import ProxyLearner
    from p2pfl.learn.sklearn_learner import SklearnLearner
    from p2pfl.learn.split_learner import SplitLearner
    from p2pfl.learn.torch_learner import TorchLearner
    from p2pfl.release import Release
    from p2pfl.run import RunSpec

__all__ = [
    "Learner",
    "LearnerFactory",
    "Site",
    "Update",
    "DpSgd",
    "Release",
    "Vector",
    "Metrics",
    "TorchLearner",
    "SklearnLearner",
    "NumpyLearner",
    "SplitLearner",
    "ProxyLearner",
    "dataset_of",
    "RunSpec",
    "P2PFLError",
]

_HOMES = {
    "Learner": "p2pfl.learn.learner",
    "LearnerFactory": "p2pfl.learn.learner",
    "Site": "p2pfl.learn.learner",
    "Update": "p2pfl.learn.learner",
    "DpSgd": "p2pfl.learn.learner",
    "Release": "p2pfl.release",
    "Vector": "p2pfl.events",
    "Metrics": "p2pfl.events",
    "TorchLearner": "p2pfl.learn.torch_learner",
    "SklearnLearner": "p2pfl.learn.sklearn_learner",
    "NumpyLearner": "p2pfl.learn.numpy_learner",
    "SplitLearner": "p2pfl.learn.split_learner",
    "ProxyLearner": "p2pfl.learn.proxy_learner",
    "dataset_of": "p2pfl.learn.factory",
    "RunSpec": "p2pfl.run",
    "P2PFLError": "p2pfl.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'p2pfl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
