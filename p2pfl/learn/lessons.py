"""Lessons: what a learner does in an exchange of knowledge, job by job (p2pfl/work.py).

Kinds: `hub` needs a learner that Splits (split_learner.py), `probe` one that Answers and Distills, `proto`
one that Embeds and is drawn Near, `proxy` a pair of models (proxy_learner.py).  In a hub run every fit leaves
the held-out rows out, by which the edge judges its teacher; in other kinds a fit without more is the
learner's own.  What a learner gives is checked here: shapes, and that numbers are finite.

`n` samples, `K` classes, `d` hidden values of a sample, `h` values of an embedding, `m` parameters of a hub's
model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pfl.errors import LearnerError
from p2pfl.events import Metrics, Vector
from p2pfl.ids import PeerId
from p2pfl.learn import probes
from p2pfl.learn.distill import log_softmax
from p2pfl.learn.given import numbers
from p2pfl.learn.learner import DISTILL_ROWS, Site
from p2pfl.learn.own_rows import held_out, own_rows
from p2pfl.work import (
    Answer,
    Answered,
    Distill,
    Distilled,
    Expected,
    Extract,
    Extracted,
    Fit,
    Fitted,
    Job,
    Judge,
    Judged,
    Learn,
    Learned,
    Mix,
    Mixed,
    Result,
    Samples,
    Summarise,
    Summarised,
    Teacher,
)

__all__ = ["Done", "Lessons"]

# What a learner must have for each kind of exchange.
_NEEDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "hub": ("fit_taught", "features", "answer", "learn", "hub_answer", "expected", "own_rows"),
    "probe": ("answer", "distill"),
    "proto": ("features", "fit_near", "own_rows"),
    "proxy": ("fit_mutual",),
}
_CURES = {
    "hub": 'use model = {kind = "gkt"}, or p2pfl.SplitLearner of your own two modules',
    "probe": "use a built-in model, TorchLearner or SklearnLearner, or write them",
    "proto": 'use model = {kind = "mlp"} or "cnn", or TorchLearner, or write them',
    "proxy": "say learner.proxy, or use p2pfl.ProxyLearner of your own two models",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A job's result, the model after it (None: as it was), and what was measured."""

    result: Result
    parameters: Vector | None = None
    metrics: Metrics = field(default_factory=dict)


class Lessons:
    """One learner in an exchange of knowledge.

    The model is given with every job; what else the jobs share are the probe set and the site's own rows.
    """

    def __init__(self, learner: Any, site: Site) -> None:
        """Raises LearnerError when `learner` cannot do what the site's kind of exchange needs."""
        self._learner, self._site = learner, site
        if site.exchange not in _NEEDS:
            raise LearnerError(f"exchange of knowledge {site.exchange!r} is not one of {', '.join(_NEEDS)}")
        lost = [name for name in _NEEDS[site.exchange] if not hasattr(learner, name)]
        if lost:
            raise LearnerError(
                f"knowledge.exchange.kind = {site.exchange!r} needs a learner with"
                f" {', '.join(_NEEDS[site.exchange])}, and {type(learner).__name__} has no {', '.join(lost)};"
                f" {_CURES[site.exchange]}"
            )
        # Of a hub run, only hubs have to bring the probe set.
        is_edge = site.exchange == "hub" and site.probe_source and not learner.expected().capacity
        self._probe = None if is_edge else probes.of_site(site)
        if site.exchange == "hub" and self._probe is not None and not hasattr(learner, "hub_distill"):
            raise LearnerError(
                f"hubs that exchange predictions need hub_distill, and {type(learner).__name__} has none; use"
                " p2pfl.SplitLearner, or agree on tier = 'weights'"
            )

    def expected(self) -> Expected | None:
        """What the learner can give; None when the run exchanges no knowledge.  Raises LearnerError."""
        match self._site.exchange:
            case "none":
                return None
            case "hub":
                found = self._learner.expected()
                if not isinstance(found, Expected):
                    raise LearnerError(f"expected() gave a {type(found).__name__}; it must be an Expected")
                return found
            case "proto":
                x, _ = self._own
                hidden = numbers(
                    self._learner.features(self._learner.parameters(), x[:1]), (1, -1), "features()"
                )
                return Expected(classes=self._classes, width=hidden.shape[1])
            case _:
                return Expected(classes=self._classes)

    def do(self, job: Job, parameters: Vector, rng: np.random.Generator) -> Done:
        """Carry out `job` with the model `parameters`, (d,).  Raises what the user's code raises."""
        match job:
            case Fit():
                return self._fit(job, parameters, rng)
            case Answer():
                return self._answer_of_hub(parameters) if job.is_of_hub else self._answer(parameters)
            case Extract():
                return self._extract(job, parameters, rng)
            case Summarise():
                x, labels = self._own
                embeddings = numbers(self._learner.features(parameters, x), (len(x), -1), "features()")
                return Done(result=Summarised(embeddings=embeddings, labels=labels))
            case Judge():
                return self._judge(job)
            case Learn():
                return self._learn(job, rng)
            case Mix():
                return self._mix(job)
            case Distill():
                return self._distill(job, parameters, rng)

    # --- on the own samples ----------------------------------------------------------------------------

    def _fit(self, job: Fit, parameters: Vector, rng: np.random.Generator) -> Done:
        learner = self._learner
        if self._site.exchange == "hub":
            update = self._fit_edge(job, parameters, rng)
        elif job.teacher is not None or job.is_frozen:
            raise LearnerError("a fit with a teacher, or of a frozen extractor, is for exchange 'hub' alone")
        elif job.pull is not None:
            pull = job.pull
            update = learner.fit_near(parameters, rng, pull.centres, pull.is_known, pull.strength)
        elif job.mutual is not None:
            how = job.mutual
            update = learner.fit_mutual(
                parameters, rng, alpha=how.alpha, beta=how.beta, temperature=how.temperature
            )
        else:
            update = learner.fit(parameters, rng)
        return _updated(Fitted(), update)

    def _fit_edge(self, job: Fit, parameters: Vector, rng: np.random.Generator) -> Any:
        x, labels = self._own
        fits = ~self._held_out
        p, alpha, temperature = None, 0.0, 1.0
        if job.teacher is not None and job.teacher.alpha > 0:
            alpha, temperature = job.teacher.alpha, job.teacher.temperature
            p = self._taught(job.teacher, parameters)[fits]
        return self._learner.fit_taught(
            parameters,
            x[fits],
            labels[fits],
            p,
            rng,
            alpha=alpha,
            temperature=temperature,
            is_frozen=job.is_frozen,
        )

    def _taught(self, teacher: Teacher, parameters: Vector) -> NDArray[np.float64]:
        """What is believed of every own row, (n, K): by the teacher, or where it is silent, by this model."""
        x, _ = self._own
        rows = np.asarray(teacher.ids)
        if rows.size and int(rows.max()) >= len(x):
            raise LearnerError(f"a soft label is for row {rows.max()}, and there are {len(x)}")
        own = self._logits(self._learner.answer(parameters, x), len(x))
        log_p = log_softmax(own)
        log_p[rows.astype(np.int64)] = log_softmax(
            numbers(teacher.log_p, (rows.size, self._classes), "the teacher")
        )
        p: NDArray[np.float64] = np.exp(log_p)
        return p

    def _extract(self, job: Extract, parameters: Vector, rng: np.random.Generator) -> Done:
        x, labels = self._own
        rows = np.arange(len(x))
        if len(x) > job.most:
            rows = np.sort(rng.permutation(len(x))[: job.most])
        hidden = numbers(self._learner.features(parameters, x[rows]), (rows.size, -1), "features()")
        logits = self._logits(self._learner.answer(parameters, x[rows]), rows.size)
        return Done(
            result=Extracted(
                ids=rows.astype(np.uint64),
                hidden=hidden.astype(np.float32, copy=False),
                logits=logits,
                labels=labels[rows],
                is_held_out=self._held_out[rows],
            )
        )

    # --- on the probe set ------------------------------------------------------------------------------

    def _answer(self, parameters: Vector) -> Done:
        x = self._probe_rows()
        logits = self._logits(self._learner.answer(parameters, x), len(x))
        confidence = np.zeros(0)
        if hasattr(self._learner, "own_rows") and self._held_out.any():
            own, _ = self._own
            kept = own[self._held_out]
            believed = log_softmax(self._logits(self._learner.answer(parameters, kept), len(kept)))
            confidence = np.exp(believed.max(axis=1))
        return Done(result=Answered(logits=logits, confidence=confidence))

    def _answer_of_hub(self, parameters: Vector) -> Done:
        hidden = self._probe_hidden(parameters)
        logits = self._logits(self._learner.hub_answer(hidden), len(hidden))
        return Done(result=Answered(logits=logits, confidence=np.zeros(0)))

    def _probe_hidden(self, parameters: Vector) -> NDArray[np.float32]:
        x = self._probe_rows()
        hidden = numbers(self._learner.features(parameters, x), (len(x), self._width), "features()")
        return hidden.astype(np.float32, copy=False)

    def _distill(self, job: Distill, parameters: Vector, rng: np.random.Generator) -> Done:
        x = self._probe_rows()
        used = np.asarray(job.is_used, np.bool_)
        if used.shape != (len(x),):
            raise LearnerError(f"{used.shape} rows of a probe set of {len(x)} are to be distilled")
        targets = numbers(job.p, (len(x), self._classes), "the teacher's beliefs")[used]
        if not len(targets):
            return Done(result=Distilled())
        if job.is_of_hub:
            metrics = self._learner.hub_distill(
                self._probe_hidden(parameters)[used],
                targets,
                rng,
                epochs=job.epochs,
                temperature=job.temperature,
                alpha=job.alpha,
            )
            return Done(result=Distilled(), metrics={f"hub_{name}": value for name, value in metrics.items()})
        update = self._learner.distill(
            parameters,
            x[used],
            targets,
            rng,
            epochs=job.epochs,
            batch=DISTILL_ROWS,
            temperature=job.temperature,
            alpha=job.alpha,
        )
        return _updated(Distilled(), update)

    def _probe_rows(self) -> NDArray[np.float32]:
        if self._probe is None:
            raise LearnerError("a job on the probe set came, and this run has none; set knowledge.probe")
        return self._probe

    # --- on a hub's model ------------------------------------------------------------------------------

    def _judge(self, job: Judge) -> Done:
        losses: dict[PeerId, float] = {}
        for sender in sorted(job.features):
            samples = job.features[sender]
            hidden, labels = self._hidden(samples)
            if not labels.size:
                losses[sender] = math.nan
                continue
            log_p = log_softmax(self._logits(self._learner.hub_answer(hidden), labels.size))
            losses[sender] = -float(log_p[np.arange(labels.size), labels].mean())
        return Done(result=Judged(losses=losses))

    def _learn(self, job: Learn, rng: np.random.Generator) -> Done:
        senders = sorted(job.features)
        parts = [self._hidden(job.features[sender]) for sender in senders]
        if not sum(labels.size for _, labels in parts):
            raise LearnerError("there is no sample to learn from")
        z = [np.asarray(job.features[sender].z, np.float64) for sender in senders]
        metrics = self._learner.learn(
            np.concatenate([hidden for hidden, _ in parts]),
            np.concatenate([labels for _, labels in parts]),
            np.exp(log_softmax(np.concatenate(z))),
            rng,
            alpha=job.alpha,
            temperature=job.temperature,
        )
        logits = {
            sender: self._logits(self._learner.hub_answer(hidden), labels.size)
            for sender, (hidden, labels) in zip(senders, parts, strict=True)
        }
        for sender in sorted(job.only_answer):
            hidden, labels = self._hidden(job.only_answer[sender])
            logits[sender] = self._logits(self._learner.hub_answer(hidden), labels.size)
        return Done(
            result=Learned(logits=logits, model=self._hub_model()),
            metrics={f"hub_{name}": value for name, value in metrics.items()},
        )

    def _mix(self, job: Mix) -> Done:
        models = [self._model(job.models[sender]) for sender in sorted(job.models)]
        if job.is_adopted and len(models) == 1:
            self._learner.adopt_hub_model(models[0])
            return Done(result=Mixed())
        if job.is_adopted or not models:
            raise LearnerError(f"{len(models)} hub models came where one, or more than none, was expected")
        self._learner.adopt_hub_model(mean_of([self._hub_model(), *models]))
        return Done(result=Mixed())

    def _hidden(self, samples: Samples) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Hidden values (n, d) and labels (n,) of one sender, checked."""
        labels = np.asarray(samples.labels).astype(np.int64)
        hidden = numbers(samples.values(), (labels.size, self._width), "an edge's features")
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < self._classes:
            raise LearnerError(
                f"an edge's labels run from {labels.min()} to {labels.max()}, there are {self._classes}"
                " classes"
            )
        numbers(samples.z, (labels.size, self._classes), "an edge's predictions")
        return hidden.astype(np.float32, copy=False), labels

    def _hub_model(self) -> Vector:
        return self._model(self._learner.hub_model())

    def _model(self, model: Any) -> Vector:
        found = numbers(model, (-1,), "a hub model")
        return np.array(found, np.float32)

    # --- what all of them need -------------------------------------------------------------------------

    @cached_property
    def _own(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        return own_rows(self._learner, self._classes)

    @cached_property
    def _held_out(self) -> NDArray[np.bool_]:
        return held_out(self._site.seed, len(self._own[0]))

    @cached_property
    def _width(self) -> int:
        return int(self._learner.expected().width)

    @cached_property
    def _classes(self) -> int:
        """K: as the learner says, or as many as its answer has columns."""
        learner = self._learner
        if hasattr(learner, "classes"):
            count = learner.classes()
            if not isinstance(count, int | np.integer) or count < 2:
                raise LearnerError(f"classes() gave {count!r}; there are at least 2")
            return int(count)
        if not hasattr(learner, "answer"):
            raise LearnerError(f"{type(learner).__name__} has neither classes() nor answer(...); write one")
        x = learner.own_rows()[0][:1] if self._probe is None else self._probe[:1]
        return int(numbers(learner.answer(learner.parameters(), x), (1, -1), "answer()").shape[1])

    def _logits(self, value: Any, n: int) -> NDArray[np.floating]:
        return numbers(value, (n, self._classes), "answer()")


def mean_of(models: list[Vector]) -> Vector:
    """The mean of models, (m,) each, in float64: the same bits in whatever order they are given.

    Every hub of a tier takes the mean of the same models, and knows its own by no place among them.

    >>> mean_of([np.array([1.0, 4.0], np.float32), np.array([3.0, 0.0], np.float32)]).tolist()
    [2.0, 2.0]
    """
    if len({model.shape for model in models}) != 1:
        raise LearnerError("hub models of different sizes came; check that all hubs run the same model")
    stacked = np.sort(np.stack(models).astype(np.float64), axis=0)
    return np.asarray(stacked.sum(axis=0) / len(models), np.float32)


def _updated(result: Result, update: Any) -> Done:
    # What a user's fit gives may be a bare vector; Workshop checks it.
    metrics: Mapping[str, float] = getattr(update, "metrics", {})
    return Done(result=result, parameters=getattr(update, "parameters", update), metrics=metrics)
