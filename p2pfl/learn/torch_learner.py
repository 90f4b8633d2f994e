"""Any torch module as a learner: the model, loaders, loss and optimizer a user already has.

`d` is the number of shared parameters: floating parameters and buffers whose names `share` lets travel.  What
is not shared (a private head, integer buffers) and what the optimizer remembers stays here and goes through
`state`.  The global torch generator is seeded inside `fit` and put back, so dropout repeats.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.events import Metrics, Vector
from p2pfl.learn import dp_sgd
from p2pfl.learn.flat import Schema, schema_of_specs
from p2pfl.learn.learner import VALIDATION_ROWS, DpSgd, Update
from p2pfl.learn.optimizer_state import pack_optimizer, unpack_optimizer
from p2pfl.learn.seeding import seeded
from p2pfl.learn.standardise import Rows
from p2pfl.learn.torch_metrics import Measurement
from p2pfl.release import Release

__all__ = ["TorchLearner"]

Loss = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Fit = Callable[[nn.Module, Any], Mapping[str, float] | None]
MeasureMore = Callable[[Tensor, Tensor], Mapping[str, float]]

_OPTIMIZER = "optimizer."


class TorchLearner:
    """A torch module, trained by `loss` and `optimizer`, or by the user's own `fit`.

    Two fits from the same parameters, state and rng give the same bits on one machine with one thread.
    `evaluate` leaves the model at the parameters it was given.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Any,
        test: Any,
        loss: Loss | None = None,
        optimizer: MakeOptimizer | None = None,
        *,
        fit: Fit | None = None,
        share: Iterable[str] = ("*",),
        metrics: MeasureMore | None = None,
        local_steps: int | None = None,
        reset_optimizer: bool = True,
        schedule: Callable[[float], float] | None = None,
        rows: Rows | None = None,
        schema_hash: Callable[[bytes], bytes] | None = None,
        release: Release | None = None,
    ) -> None:
        """train, test: DataLoaders, or any iterables of (inputs, targets) that can be run through again.

        optimizer: from parameters to an optimizer; made anew each fit unless `reset_optimizer` is False.
        fit: `fit(model, train) -> metrics` replaces `loss` and `optimizer`, and counts its own steps.
        metrics: `metrics(outputs, targets)` on all test rows, added to those measured here.
        local_steps: batches a fit; None is the site's, or one epoch.   schedule: factor on the learning rate
        for a share of rounds done, 0..1.   rows: the arrays behind the loaders, where they are standardised.
        schema_hash: adds what the vector's names do not say, such as the order of classes.
        release: what one call of your own `fit` releases, where that protects rows itself, say with Opacus.
        """
        if fit is None and (loss is None or optimizer is None):
            raise ConfigError("TorchLearner needs loss and optimizer, or fit in their place")
        self.local_steps = local_steps
        self.should_stop: Callable[[], bool] = lambda: False
        self.progress: Callable[[], float] = lambda: 0.0
        self.dp_sgd: DpSgd | None = None
        self._model, self._train, self._test = model, train, test
        self._loss, self._make_optimizer, self._user_fit = loss, optimizer, fit
        self._measure_more, self._schedule, self._rows = metrics, schedule, rows
        self._reset_optimizer, self._widen_hash = reset_optimizer, schema_hash
        self._release = release
        self._optimizer: torch.optim.Optimizer | None = None
        self._base_rates: list[float] = []
        # Tied weights appear under two names in a state dict and travel once, under the first.
        tensors: dict[str, Tensor] = {}
        seen: set[int] = set()
        for name, tensor in model.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                tensors[name] = tensor
        self._schema = schema_of_specs(
            (
                (name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
                for name, tensor in tensors.items()
            ),
            tuple(share),
        )
        places = dict(zip(self._schema.names, self._schema.slices(), strict=True))
        self._shared = [(tensors[name], place) for name, place in places.items()]
        self._private = {name: tensor for name, tensor in tensors.items() if name not in places}

    def parameters(self) -> Vector:
        """The shared parameters now, a copy, (d,)."""
        vector = np.empty(self._schema.size, np.float32)
        for tensor, place in self._shared:
            vector[place] = tensor.detach().to("cpu", torch.float32).reshape(-1).numpy()
        return vector

    def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
        """Train from `parameters`, (d,); `samples` counts the rows seen, `train_loss` is their mean.

        Every loader's generator and the global ones are seeded from `rng`.
        Raises LearnerError when training diverges or the loader gives nothing.  Whatever it raises, the
        private tensors are then as before and the optimizer starts anew, so the round can be tried again.
        """
        if self._rows is not None:
            self._rows.check_ready()
        self._adopt(parameters)
        loader_seed, global_seed = (int(seed) for seed in rng.integers(2**63, size=2))
        before = {name: tensor.detach().clone() for name, tensor in self._private.items()}
        self._model.train()
        try:
            with seeded(global_seed), _SeededLoader(self._train, loader_seed):
                if self._user_fit is not None:
                    measured = dict(self._user_fit(self._model, self._train) or {})
                    samples = self.samples()
                else:
                    samples, measured = self._descend()
            vector = self.parameters()
            if not np.isfinite(vector).all() or not all(map(_is_finite, self._private.values())):
                raise LearnerError("training diverged: parameters are not finite; lower the learning rate")
        except BaseException:
            self._optimizer = None
            with torch.no_grad():
                for name, tensor in before.items():
                    self._private[name].copy_(tensor)
            raise
        return Update(
            parameters=vector, samples=samples, metrics={name: float(v) for name, v in measured.items()}
        )

    def evaluate(self, parameters: Vector) -> Metrics:
        """On the test rows, in eval mode: `loss` where one was given, `accuracy` for classes, `auc` for two.

        The loss is the mean over batches weighted by rows, so it is the mean over rows for a mean loss.
        """
        if self._rows is not None:
            self._rows.check_ready()
        self._adopt(parameters)
        self._model.eval()
        measurement = Measurement(self._loss, self._measure_more)
        with torch.no_grad():
            for inputs, targets in self._test:
                inputs, targets = self._to_device(inputs), self._to_device(targets)
                measurement.add(self._model(inputs), targets)
        return measurement.result()

    def validate(self, parameters: Vector, rng: np.random.Generator) -> float:
        """The mean loss on training batches of at least VALIDATION_ROWS rows together, in eval mode.

        They are the first of the loader, in an order that `rng` draws; NaN without a loss of our own.
        """
        if self._loss is None:
            return np.nan
        if self._rows is not None:
            self._rows.check_ready()
        self._adopt(parameters)
        self._model.eval()
        loader_seed, global_seed = (int(seed) for seed in rng.integers(2**63, size=2))
        total, rows = 0.0, 0
        with torch.no_grad(), seeded(global_seed), _SeededLoader(self._train, loader_seed):
            for inputs, targets in self._train:
                inputs, targets = self._to_device(inputs), self._to_device(targets)
                total += float(self._loss(self._model(inputs), targets)) * len(targets)
                rows += len(targets)
                if rows >= VALIDATION_ROWS:
                    break
        loss = total / rows if rows else np.nan
        return np.inf if rows and not np.isfinite(loss) else loss

    def predict(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """The model's outputs, as it stands and in eval mode, for raw rows (n, ...)."""
        inputs = x.astype(np.float32) if self._rows is None else self._rows.transform(x)
        self._model.eval()
        with torch.no_grad():
            outputs: Tensor = self._model(self._to_device(torch.from_numpy(inputs)))
        return np.asarray(outputs.to("cpu", torch.float32).numpy())

    def samples(self) -> int:
        """The number of training rows; of a loader without a sized dataset, the rows of one pass."""
        rows = getattr(self._train, "dataset", None)
        if rows is not None and hasattr(rows, "__len__"):
            return len(rows)
        return sum(len(targets) for _, targets in self._train)

    def data_set(self) -> str:
        """What names the site's rows in its privacy account; empty where they are the user's to read."""
        return "" if self._rows is None else self._rows.digest()

    def release(self) -> Release | None:
        """What a fit releases where it noises the gradients of rows: with `dp_sgd`, or as `fit` was said to.

        Raises ConfigError when this model or loader cannot be trained so.
        """
        if self._user_fit is not None:
            return self._release
        if self.dp_sgd is None:
            return None
        return dp_sgd.release(self._model, self._train, self.dp_sgd, self.local_steps)

    def schema(self) -> Schema:
        """The names and shapes of the tensors in the vector."""
        return self._schema

    def schema_hash(self) -> bytes:
        """32 bytes that sites compare at the handshake."""
        own = self._schema.hash()
        return own if self._widen_hash is None else self._widen_hash(own)

    def statistics(self) -> NDArray[np.float64]:
        """Sums to pool across sites, (3k,); empty without rows to standardise."""
        return np.zeros(0) if self._rows is None else self._rows.statistics()

    def standardise(self, sums: NDArray[np.float64]) -> None:
        """Standardise the rows with pooled sums, (3k,)."""
        if self._rows is not None:
            self._rows.standardise(sums)
        elif len(sums):
            raise LearnerError("statistics came for a learner that reads its own data; standardise it there")

    def state(self) -> bytes:
        """What must survive a crash, as safetensors: private tensors, and the optimizer where it is kept."""
        tensors = {
            f"model.{name}": tensor.detach().to("cpu").clone().contiguous()
            for name, tensor in self._private.items()
        }
        if self._optimizer is not None and not self._reset_optimizer:
            packed = pack_optimizer(self._optimizer)
            tensors |= {_OPTIMIZER + name: tensor for name, tensor in packed.items()}
        return save(tensors) if tensors else b""

    def restore(self, state: bytes) -> None:
        """Takes back what `state` gave.  Raises LearnerError when it is of another model."""
        tensors = load(state) if state else {}
        saved = {n.removeprefix("model."): t for n, t in tensors.items() if not n.startswith(_OPTIMIZER)}
        kept = {name: tuple(tensor.shape) for name, tensor in self._private.items()}
        if {name: tuple(tensor.shape) for name, tensor in saved.items()} != kept:
            raise LearnerError(
                f"saved learner state holds {sorted(saved)}, this model keeps {sorted(kept)};"
                " the model changed since it was saved"
            )
        with torch.no_grad():
            for name, tensor in saved.items():
                self._private[name].copy_(tensor)
        packed = {n.removeprefix(_OPTIMIZER): t for n, t in tensors.items() if n.startswith(_OPTIMIZER)}
        self._optimizer = None
        if packed and not self._reset_optimizer:
            unpack_optimizer(self._fresh_optimizer(), packed)

    def _adopt(self, parameters: Vector) -> None:
        if parameters.shape != (self._schema.size,):
            raise LearnerError(
                f"parameters have shape {parameters.shape}, this model has {self._schema.size};"
                " check that all sites run the same model"
            )
        # A copy: torch warns about arrays it may not write, and drivers hand out read-only ones.
        source = torch.from_numpy(np.array(parameters, np.float32))
        with torch.no_grad():
            for tensor, place in self._shared:
                tensor.copy_(source[place].view(tensor.shape))

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        assert self._make_optimizer is not None
        self._optimizer = self._make_optimizer(self._model.parameters())
        self._base_rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        return self._optimizer

    def _descend(self) -> tuple[int, dict[str, float]]:
        """The standard loop over batches; gives rows seen and their mean loss."""
        assert self._loss is not None
        optimizer = self._optimizer
        if optimizer is None or self._reset_optimizer:
            optimizer = self._fresh_optimizer()
        if self._schedule is not None:
            factor = self._schedule(self.progress())
            for group, rate in zip(optimizer.param_groups, self._base_rates, strict=True):
                group["lr"] = rate * factor
        if self.dp_sgd is not None:
            how: dict[str, Any] = {"steps": self.local_steps, "should_stop": self.should_stop}
            return dp_sgd.descend(self._model, optimizer, self._loss, self._train, dp_sgd=self.dp_sgd, **how)
        samples, total = 0, 0.0
        for inputs, targets in self._batches():
            inputs, targets = self._to_device(inputs), self._to_device(targets)
            optimizer.zero_grad()
            loss = self._loss(self._model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            samples += len(targets)
            total += float(loss.detach()) * len(targets)
        return samples, {"train_loss": total / samples} if samples else {}

    def _batches(self) -> Iterator[tuple[Any, Any]]:
        """`local_steps` batches, through the loader again and again, until the site says stop."""
        left = self.local_steps
        while True:
            found = False
            for inputs, targets in self._train:
                found = True
                if self.should_stop():
                    return
                yield inputs, targets
                if left is not None:
                    left -= 1
                    if left <= 0:
                        return
            if not found:
                raise LearnerError("the training loader gave no batch; check the site's data and drop_last")
            if left is None:
                return

    def _to_device(self, value: Any) -> Any:
        device = self._shared[0][0].device
        return value.to(device) if isinstance(value, Tensor) else value


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


class _SeededLoader:
    """Inside, the loader and its samplers draw from one generator of the given seed; afterwards as before."""

    def __init__(self, loader: Any, seed: int) -> None:
        sampler = getattr(loader, "sampler", None)
        inner = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
        self._owners: list[Any] = [o for o in (loader, sampler, inner) if hasattr(o, "generator")]
        self._before = [owner.generator for owner in self._owners]
        self._generator = torch.Generator().manual_seed(seed)

    def __enter__(self) -> None:
        for owner in self._owners:
            owner.generator = self._generator

    def __exit__(self, *_: object) -> None:
        for owner, generator in zip(reversed(self._owners), reversed(self._before), strict=True):
            owner.generator = generator
