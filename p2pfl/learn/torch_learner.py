"""Any torch module as a learner: the model, loaders, loss and optimizer a user already has.

`d` is the number of shared parameters: floating parameters and buffers whose names `share` lets travel.  What
is not shared (a private head, integer buffers) and what the optimizer remembers stays here and goes through
`state`.  The global torch generator is seeded inside `fit` and put back, so dropout repeats.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p2pfl.errors import ConfigError, LearnerError
from p2pfl.events import Metrics, Vector
from p2pfl.learn import dp_sgd
from p2pfl.learn.batches import batches
from p2pfl.learn.distill import check_lesson
from p2pfl.learn.flat import Schema
from p2pfl.learn.learner import VALIDATION_ROWS, DpSgd, Update
from p2pfl.learn.seeding import seeded
from p2pfl.learn.standardise import Rows
from p2pfl.learn.torch_descent import Taught, TaughtCriterion, descend, passes, still, study
from p2pfl.learn.torch_knowledge import (
    Criterion,
    Lesson,
    Pupil,
    distillation,
    embed,
    embedding_layer,
    in_batches,
    near,
    taught,
    two_sided,
)
from p2pfl.learn.torch_metrics import mean_loss, measured
from p2pfl.learn.torch_optimizer import MakeOptimizer, Optimizers, packed_state, unpack_state
from p2pfl.learn.torch_rows import count_of, rows_of
from p2pfl.learn.torch_vector import SeededLoader, Tensors
from p2pfl.release import Release

__all__ = ["TorchLearner"]

Loss = Callable[[Tensor, Tensor], Tensor]
Fit = Callable[[nn.Module, Any], Mapping[str, float] | None]
MeasureMore = Callable[[Tensor, Tensor], Mapping[str, float]]

# Rows of a step where the loader does not say: p2pfl's own default.
_BATCH = 32


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
        embedding: str | None = None,
        lesson: Lesson = distillation,
    ) -> None:
        """train, test: DataLoaders, or any iterables of (inputs, targets) that can be run through again.

        optimizer: from parameters to an optimizer; made anew each fit unless `reset_optimizer` is False.
        fit: `fit(model, train) -> metrics` replaces `loss` and `optimizer`, and counts its own steps.
        metrics: `metrics(outputs, targets)` on all test rows, added to those measured here.
        local_steps: batches a fit; None is the site's, or one epoch.   schedule: factor on the learning rate
        for a share of rounds done, 0..1.   rows: the arrays behind the loaders, where they are standardised.
        schema_hash: adds what the vector's names do not say, such as the order of classes.
        release: what one call of your own `fit` releases, where that protects rows itself, say with Opacus.
        embedding: the module whose input `features` gives; None is the last linear one.   lesson:
        `lesson(logits, p, temperature)` in place of the distillation loss.
        """
        if fit is None and (loss is None or optimizer is None):
            raise ConfigError("TorchLearner needs loss and optimizer, or fit in their place")
        self.local_steps = local_steps
        self.should_stop: Callable[[], bool] = lambda: False
        self.progress: Callable[[], float] = lambda: 0.0
        self.dp_sgd: DpSgd | None = None
        self._model, self._train, self._test = model, train, test
        self._loss, self._user_fit, self._measure_more = loss, fit, metrics
        self._rows, self._widen_hash = rows, schema_hash
        self._optimizers = optimizer and Optimizers(
            optimizer, model, reset=reset_optimizer, schedule=schedule
        )
        self._release, self._embedding_name, self._lesson = release, embedding, lesson
        self._own_rows: tuple[NDArray[Any], NDArray[np.int64]] | None = None
        self._tensors = Tensors(model, tuple(share))

    def parameters(self) -> Vector:
        """The shared parameters now, a copy, (d,)."""
        return self._tensors.vector()

    def fit(self, parameters: Vector, rng: np.random.Generator) -> Update:
        """Train from `parameters`, (d,); `samples` counts the rows seen, `train_loss` is their mean.

        Every loader's generator and the global ones are seeded from `rng`.
        Raises LearnerError when training diverges or the loader gives nothing.  Whatever it raises, the
        private tensors are then as before and the optimizer starts anew, so the round can be tried again.
        """
        if self._user_fit is not None:
            own, model, train = self._user_fit, self._model, self._train
            return self._trained(parameters, rng, lambda: (self.samples(), own(model, train) or {}))
        assert self._loss is not None
        loss, model = self._loss, self._model
        return self._trained(parameters, rng, lambda: self._descend(lambda x, y: loss(model(x), y)))

    def fit_near(
        self,
        parameters: Vector,
        rng: np.random.Generator,
        prototypes: NDArray[np.floating],
        known: NDArray[np.bool_],
        weight: float,
    ) -> Update:
        """`fit`, with the embedding drawn to the prototypes (K, h); see learner.py.

        Raises LearnerError also where the learner has its own `fit`, or embeddings of another size.
        """
        if self._loss is None or self._user_fit is not None:
            raise LearnerError("own fit cannot be drawn to prototypes; give loss and optimizer instead")
        self._refuse_unaccounted("fit_near")
        layer, device = self._embedding(), self._tensors.device
        criterion = near(self._model, layer, self._loss, prototypes, known, weight, device)
        return self._trained(parameters, rng, lambda: self._descend(criterion))

    def answer(self, parameters: Vector, x: NDArray[Any]) -> NDArray[np.float32]:
        """Logits, (n, K), of raw rows (n, ...); a single output z is (0, z)."""
        self._tensors.adopt(parameters)
        return two_sided(self._outputs(x)).cpu().numpy()

    def features(self, parameters: Vector, x: NDArray[Any]) -> NDArray[np.float32]:
        """What enters the embedding layer, (n, h), of raw rows (n, ...)."""
        self._tensors.adopt(parameters)
        self._model.eval()
        return embed(self._model, self._embedding(), self._inputs(x)).cpu().numpy()

    def distill(
        self,
        parameters: Vector,
        x: NDArray[Any],
        targets: NDArray[np.floating],
        rng: np.random.Generator,
        *,
        epochs: int = 1,
        batch: int = 64,
        temperature: float = 3.0,
        alpha: float = 1.0,
        labels: NDArray[np.int64] | None = None,
    ) -> Update:
        """Train on a teacher's beliefs of rows (n, ...), with a new optimizer; see learner.py.

        Raises LearnerError also where the learner has no optimizer of ours, and as `fit` does.
        """
        if self._optimizers is None:
            raise LearnerError("a learner with its own fit cannot distil; give it optimizer too")
        if labels is not None:
            self._refuse_unaccounted("distill with labels")
        check_lesson(len(x), targets, targets.shape[-1], temperature)
        steps = -(-epochs * len(x) // max(1, min(batch, len(x))))
        rows = Taught(x=x, p=targets, labels=labels, order=batches(len(x), batch, steps, rng))
        criterion = taught(self._model, self._lesson, temperature=temperature, alpha=alpha)
        new = partial(self._optimizers.new, self.progress())
        return self._trained(parameters, rng, lambda: self._study(criterion, new(), rows, "distill_loss"))

    def fit_taught(
        self,
        parameters: Vector,
        x: NDArray[Any],
        labels: NDArray[np.int64],
        targets: NDArray[np.floating] | None,
        rng: np.random.Generator,
        *,
        steps: int | None = None,
        batch: int | None = None,
        temperature: float = 3.0,
        alpha: float = 1.0,
        still_part: str = "",
    ) -> Update:
        """`fit` on rows (n, ...) of classes (n,), beside them a teacher's beliefs (n, K) or None.

        On the loss plus alpha times the lesson; steps and batch are as in `fit` unless they are given.
        still_part: a submodule that stays as it is.
        """
        loss, optimizers = self._taught_by("fit_taught")
        if targets is not None:
            check_lesson(len(x), targets, targets.shape[-1], temperature)
        size = batch or getattr(self._train, "batch_size", None) or _BATCH
        rows = Taught(
            x=x, p=targets, labels=labels, order=batches(len(x), size, steps or self.local_steps, rng)
        )
        criterion = taught(self._model, self._lesson, temperature=temperature, alpha=alpha, loss=loss)

        def train() -> tuple[int, Mapping[str, float]]:
            with still(self._model, still_part):
                return self._study(criterion, optimizers.of_fit(self.progress()), rows, "train_loss")

        return self._trained(parameters, rng, train)

    @contextmanager
    def pupil(
        self, parameters: Vector, rng: np.random.Generator, x: NDArray[Any], labels: NDArray[np.int64]
    ) -> Iterator[Pupil]:
        """A fit whose steps the caller takes, on rows (n, ...); the pupil has its `vector` at the end."""
        loss, optimizers = self._taught_by("fit_mutual")
        with self._training(parameters, rng):
            targets = self._to_device(torch.from_numpy(np.array(labels, np.int64)))
            optimizer = optimizers.of_fit(self.progress())
            pupil = Pupil(self._model, optimizer, loss, self._lesson, self._inputs(x), targets)
            yield pupil
            pupil.vector = self._tensors.trained()

    def evaluate(self, parameters: Vector) -> Metrics:
        """On the test rows, in eval mode: `loss` where one was given, `accuracy` for classes, `auc` for two.

        The loss is the mean over batches weighted by rows, so it is the mean over rows for a mean loss.
        """
        if self._rows is not None:
            self._rows.check_ready()
        self._tensors.adopt(parameters)
        return self._measured(self._model)

    def evaluate_above(self, parameters: Vector, above: "TorchLearner", theirs: Vector) -> Metrics:
        """`evaluate` of what `above` with `theirs` makes of the embeddings, (b, h), of the test rows."""
        self._tensors.adopt(parameters)
        above._tensors.adopt(theirs)
        above._model.eval()
        layer = self._embedding()
        return self._measured(lambda inputs: above._model(embed(self._model, layer, inputs)))

    def validate(self, parameters: Vector, rng: np.random.Generator) -> float:
        """The mean loss on training batches of at least VALIDATION_ROWS rows together, in eval mode.

        They are the first of the loader, in an order that `rng` draws; NaN without a loss of our own.
        """
        if self._loss is None:
            return np.nan
        if self._rows is not None:
            self._rows.check_ready()
        self._tensors.adopt(parameters)
        self._model.eval()
        loader_seed, global_seed = (int(seed) for seed in rng.integers(2**63, size=2))
        with seeded(global_seed), SeededLoader(self._train, loader_seed):
            return mean_loss(self._model, self._loss, self._train, self._to_device, VALIDATION_ROWS)

    def predict(self, x: NDArray[Any]) -> NDArray[np.float32]:
        """The model's outputs, as it stands and in eval mode, for raw rows (n, ...)."""
        return self._outputs(x).cpu().numpy()

    def samples(self) -> int:
        """The number of training rows; of a loader without a sized dataset, the rows of one pass."""
        return count_of(self._train)

    def own_rows(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The training rows raw, (n, ...), and their classes, (n,); read once, see torch_rows.py."""
        if self._own_rows is None:
            self._own_rows = rows_of(self._train)
        x, y = self._own_rows
        return (x if self._rows is None else self._rows.raw_train), y

    def data_set(self) -> str:
        """What names the site's rows in its privacy account; empty where they are the user's to read."""
        return "" if self._rows is None else self._rows.digest()

    def release(self) -> Release | None:
        """What a fit releases where it noises the gradients of rows: with `dp_sgd`, or as `fit` was said to.

        Raises ConfigError when this model or loader cannot be trained so.
        """
        if self._user_fit is not None or self.dp_sgd is None:
            return None if self._user_fit is None else self._release
        return dp_sgd.release(self._model, self._train, self.dp_sgd, self.local_steps)

    def schema(self) -> Schema:
        """The names and shapes of the tensors in the vector."""
        return self._tensors.schema

    def schema_hash(self) -> bytes:
        """32 bytes that sites compare at the handshake."""
        own = self._tensors.schema.hash()
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
        return packed_state(self._tensors, self._optimizers)

    def restore(self, state: bytes) -> None:
        """Takes back what `state` gave.  Raises LearnerError when it is of another model."""
        unpack_state(state, self._tensors, self._optimizers, self.progress())

    def _inputs(self, x: NDArray[Any]) -> Tensor:
        """Raw rows as the module sees them."""
        inputs = np.array(x, np.float32) if self._rows is None else self._rows.transform(x)
        rows: Tensor = self._to_device(torch.from_numpy(np.array(inputs)))
        return rows

    def _outputs(self, x: NDArray[Any]) -> Tensor:
        self._model.eval()
        return in_batches(self._model, self._inputs(x)).float()

    def _measured(self, model: Callable[[Tensor], Tensor]) -> Metrics:
        self._model.eval()
        return measured(model, self._test, self._to_device, self._loss, self._measure_more)

    def _refuse_unaccounted(self, what: str) -> None:
        if self.dp_sgd is not None:
            raise LearnerError(f"{what} trains on rows without noise, and privacy is dp-sgd; leave one")

    def _taught_by(self, what: str) -> tuple[Loss, Optimizers]:
        self._refuse_unaccounted(what)
        if self._loss is None or self._optimizers is None or self._user_fit is not None:
            raise LearnerError("own fit cannot be taught; give loss and optimizer instead")
        return self._loss, self._optimizers

    def _embedding(self) -> nn.Module:
        return embedding_layer(self._model, self._embedding_name)

    def _trained(
        self,
        parameters: Vector,
        rng: np.random.Generator,
        train: Callable[[], tuple[int, Mapping[str, float]]],
    ) -> Update:
        """What `train` makes of the module."""
        with self._training(parameters, rng):
            samples, measured = train()
            vector = self._tensors.trained()
        return Update(parameters=vector, samples=samples, metrics={n: float(v) for n, v in measured.items()})

    @contextmanager
    def _training(self, parameters: Vector, rng: np.random.Generator) -> Iterator[None]:
        """Inside, the module is trained; whatever is raised puts back all that is private."""
        if self._rows is not None:
            self._rows.check_ready()
        self._tensors.adopt(parameters)
        loader_seed, global_seed = (int(seed) for seed in rng.integers(2**63, size=2))
        self._model.train()
        try:
            with (
                self._tensors.undone_on_error(),
                seeded(global_seed),
                SeededLoader(self._train, loader_seed),
            ):
                yield
        except BaseException:
            if self._optimizers is not None:
                self._optimizers.forget()
            raise

    def _study(
        self, criterion: TaughtCriterion, optimizer: torch.optim.Optimizer, rows: Taught, name: str
    ) -> tuple[int, Mapping[str, float]]:
        return study(criterion, optimizer, rows, self._inputs, self._to_device, self.should_stop, name)

    def _descend(self, criterion: Criterion) -> tuple[int, dict[str, float]]:
        """The standard loop over batches; gives rows seen and their mean loss."""
        assert self._optimizers is not None
        optimizer = self._optimizers.of_fit(self.progress())
        if self.dp_sgd is not None:
            assert self._loss is not None
            how: dict[str, Any] = {"steps": self.local_steps, "should_stop": self.should_stop}
            return dp_sgd.descend(self._model, optimizer, self._loss, self._train, dp_sgd=self.dp_sgd, **how)
        batches_of = passes(self._train, self.local_steps, self.should_stop)
        return descend(criterion, optimizer, batches_of, self._to_device)

    def _to_device(self, value: Any) -> Any:
        return value.to(self._tensors.device) if isinstance(value, Tensor) else value
