"""From the agreement's `[learner]` table to a learner at one site."""

import hashlib
import sys
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import ConfigError, LearnerError, P2PFLError
from p2pfl.learn.data import Dataset, load
from p2pfl.learn.flat import Schema
from p2pfl.learn.learner import Learner, LearnerFactory, Site
from p2pfl.learn.numpy_learner import NumpyLearner
from p2pfl.learn.options import DataOptions, LearnerOptions, ModelOptions, at_role
from p2pfl.learn.random_vector import RandomVector
from p2pfl.learn.seeding import seeded
from p2pfl.release import Release
from p2pfl.user_code import imported

__all__ = [
    "dataset_of",
    "resolve",
    "build",
    "data_set_of",
    "release_of",
    "samples_of",
    "schema_hash_of",
    "statistics_of",
    "tensors_of",
]


# Names of a proxy's tensors begin with it, also in `learner.share`.
_PROXY = "proxy."


def resolve(options: LearnerOptions) -> LearnerFactory:
    """The factory the table asks for: the user's `module`, or a built-in `model` on `data`.

    `module` is "package.module:attribute"; see user_code.py.
    Where there are roles, each site is built as its own says.
    Raises ConfigError that says what is missing and what there is.
    """
    if options.roles:
        by_role = {role: at_role(options, role) for role in options.roles}
        factories = {role: resolve(chosen) for role, chosen in by_role.items()}
        only = next(iter(options.roles)) if len(options.roles) == 1 else ""

        def of_role(site: Site) -> Learner:
            role = site.role or only
            if role not in factories:
                at_role(options, role)
            return factories[role](replace(site, options=by_role[role]))

        return of_role
    if options.module and options.model is not None:
        raise ConfigError(
            "[learner] has both module and model; keep module for own code, model for a built-in one"
        )
    if options.proxy is not None and (
        options.model is None or "gkt" in (options.proxy.kind, options.model.kind)
    ):
        raise ConfigError(
            "learner.proxy goes with a built-in learner.model that is not gkt; own code builds"
            " p2pfl.ProxyLearner itself"
        )
    if options.module:
        found: LearnerFactory = imported(options.module, "learner module")
        return found
    if options.model is None:
        raise ConfigError('[learner] has neither module = "mine:learner" nor model = {kind = "logistic"}')

    def factory(site: Site) -> Learner:
        return _built_in(options, site)

    return factory


def build(factory: LearnerFactory, site: Site) -> Learner:
    """The learner of one site, made under the run's seed and checked.

    Python's, numpy's and torch's global generators are seeded with `site.seed` while the factory runs, so
    that all sites start from one model, and put back.  `local_steps` (where the learner left it open),
    `should_stop`, `progress` and `dp_sgd` are set from the site on learners that have them.
    Raises LearnerError when the factory fails or gives no learner; ConfigErrors of the factory pass.
    """
    had_torch = "torch" in sys.modules
    learner = _call(factory, site)
    if not had_torch and "torch" in sys.modules:
        # The factory itself imported torch, which therefore was not seeded: once more, now that it is there.
        learner = _call(factory, site)
    if not isinstance(learner, Learner):
        raise LearnerError(
            f"the learner factory gave a {type(learner).__name__}; a learner has parameters(),"
            " fit(parameters, rng) and evaluate(parameters)"
        )
    options = site.options if isinstance(site.options, LearnerOptions) else None
    steps = site.local_steps or (options.local_steps if options else None)
    if getattr(learner, "local_steps", 0) is None:
        learner.local_steps = steps  # type: ignore[attr-defined]
    for name in ("should_stop", "progress", "dp_sgd"):
        if hasattr(learner, name):
            setattr(learner, name, getattr(site, name))
    if site.dp_sgd is not None and release_of(learner) is None:
        raise ConfigError(
            'trust.privacy "dp-sgd" asks for noise on the gradients of rows, and this '
            f"{type(learner).__name__} adds none; use a built-in model, TorchLearner with loss and"
            " optimizer, or give your own learner release()"
        )
    parameters = learner.parameters()
    if not isinstance(parameters, np.ndarray) or parameters.ndim != 1 or parameters.dtype != np.float32:
        found = (
            f"{getattr(parameters, 'dtype', type(parameters).__name__)} {getattr(parameters, 'shape', '')}"
        )
        raise LearnerError(f"parameters() gave {found}, expected one float32 vector (d,)")
    if not len(parameters) or not np.isfinite(parameters).all():
        raise LearnerError("parameters() of a fresh learner is empty or not finite; check its initialisation")
    if options and options.standardise == "federation" and not len(statistics_of(learner)):
        raise ConfigError(
            'standardise = "federation" and this learner gives no statistics(); use a built-in model, or'
            " standardise in your own code"
        )
    return learner


def samples_of(learner: Learner) -> int:
    """The site's number of training rows; 1 for a learner that does not say."""
    method = getattr(learner, "samples", None)
    count = 1 if method is None else method()
    if not isinstance(count, int | np.integer) or count < 1:
        raise LearnerError(f"samples() gave {count!r}, expected a positive number of rows")
    return int(count)


def release_of(learner: Learner) -> Release | None:
    """What one fit releases of the rows; None for a learner that adds no noise.

    Raises LearnerError on what is no Release, ConfigError when it cannot add the noise it is asked for.
    """
    method = getattr(learner, "release", None)
    found = method() if callable(method) else None
    if found is None:
        return None
    if not (
        isinstance(found, Release)
        and 0 < found.sigma < float("inf")
        and 0 < found.q <= 1
        and isinstance(found.steps, int)
        and found.steps > 0
    ):
        raise LearnerError(
            f"release() gave {found!r}; expected Release(sigma above 0, q above 0 to 1, steps 1 or more)"
        )
    return found


def data_set_of(learner: Learner, site: Site) -> str:
    """What names the site's rows in its privacy account: their digest, or else where they come from.

    Rows that a learner reads itself are known by `site.data`: another file there is taken for the same rows.
    """
    method = getattr(learner, "data_set", None)
    return f"rows {found}" if (found := method() if callable(method) else "") else f"source {site.data}"


def schema_hash_of(learner: Learner) -> bytes:
    """32 bytes compared at the handshake; they stand for the dimension alone where there is no schema."""
    method = getattr(learner, "schema_hash", None)
    if method is None:
        return hashlib.sha256(b"p2pfl-dimension/1\n%d" % len(learner.parameters())).digest()
    digest = method()
    if not isinstance(digest, bytes) or len(digest) != 32:
        raise LearnerError("schema_hash() must give 32 bytes")
    return digest


def tensors_of(learner: Learner) -> Schema | None:
    """What the vector holds, tensor by tensor; None for a learner that does not say."""
    method = getattr(learner, "schema", None)
    schema = method() if callable(method) else None
    return schema if isinstance(schema, Schema) else None


def statistics_of(learner: Learner) -> NDArray[np.float64]:
    """The site's sums to pool before round 0, (3k,) float64; empty for a learner that has none."""
    method = getattr(learner, "statistics", None)
    sums = np.zeros(0) if method is None else np.asarray(method(), np.float64)
    if sums.ndim != 1 or not np.isfinite(sums).all():
        raise LearnerError(f"statistics() gave shape {sums.shape}, expected finite sums in one vector")
    return sums


def _call(factory: LearnerFactory, site: Site) -> Learner:
    try:
        with seeded(site.seed):
            return factory(site)
    except P2PFLError:
        raise
    except Exception as error:
        # Any exception at all: it is the user's code, and the daemon reports it and goes on.
        raise LearnerError(f"the learner factory raised {type(error).__name__}: {error}") from error


def dataset_of(site: Site) -> Dataset:
    """A site's rows as its agreement's `[learner.data]` reads them, for a factory of your own.

    Those that a simulation dealt it, else those of `site.data`, or where that is empty of
    `learner.data.source`.   Raises ConfigError when there are none, LearnerError.
    """
    if site.dataset is not None and not isinstance(site.dataset, Dataset):
        raise LearnerError(f"site.dataset is a {type(site.dataset).__name__}, expected a Dataset")
    options = site.options.data if isinstance(site.options, LearnerOptions) else DataOptions()
    return site.dataset or load(site.data or options.source, options, site.seed)


def _built_in(options: LearnerOptions, site: Site) -> Learner:
    assert options.model is not None
    if options.model.kind == "vector":
        return RandomVector(options.model.size)
    dataset = dataset_of(site)
    how: dict[str, Any] = {
        "optimizer": options.optimizer,
        "local_steps": site.local_steps or options.local_steps,
        "batch_size": options.batch_size,
        "standardise": options.standardise,
        "seed": site.seed,
        "per_class": options.per_class,
    }
    if options.proxy is not None:
        # Imported here, so that sites with numpy models never load torch.
        from p2pfl.learn.proxy_learner import ProxyLearner

        shared = tuple(pattern.replace(_PROXY, "", 1) for pattern in options.share)
        return ProxyLearner(
            _model(dataset, options.model, site, how),
            _model(dataset, options.proxy, site, how | {"share": shared}),
            batch_size=options.batch_size,
        )
    if options.model.kind == "gkt":
        from p2pfl.learn.torch_gkt import gkt_learner

        hub: dict[str, Any] = {
            "capacity": options.capacity,
            "hub_epochs": options.hub_epochs,
            "hub_batch_size": options.hub_batch_size,
            "hub_optimizer": options.hub_optimizer,
        }
        return gkt_learner(dataset, share=options.share, **how, **hub)
    return _model(dataset, options.model, site, how | {"share": options.share})


def _model(dataset: Dataset, model: ModelOptions, site: Site, how: dict[str, Any]) -> Learner:
    if model.kind == "cnn" or site.dp_sgd is not None:
        if model.init != "uniform":
            raise ConfigError(
                f"learner.model.init {model.init!r} is for logistic and mlp without dp-sgd; leave it out"
            )
        from p2pfl.learn.torch_models import module_learner

        return module_learner(dataset, model=model, **how)
    return NumpyLearner(dataset, model=model, **how)
