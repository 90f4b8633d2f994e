import doctest
import importlib
import pkgutil
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import p2pfl.learn
from p2pfl.errors import ConfigError, LearnerError
from p2pfl.learn.data import load
from p2pfl.learn.factory import build, resolve, samples_of, schema_hash_of, statistics_of
from p2pfl.learn.learner import Site, Update
from p2pfl.learn.numpy_learner import NumpyLearner
from p2pfl.learn.options import DataOptions, LearnerOptions, ModelOptions
from p2pfl.learn.torch_learner import TorchLearner


class Constant:
    """The three methods and nothing else."""

    def __init__(self, vector: Any) -> None:
        self.vector = vector

    def parameters(self) -> Any:
        return self.vector

    def fit(self, parameters: Any, rng: Any) -> Any:
        return Update(parameters=parameters, samples=1)

    def evaluate(self, parameters: Any) -> Any:
        return {}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty current folder, with module search and loaded modules put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "learner"), [("logistic", NumpyLearner), ("mlp", NumpyLearner), ("cnn", TorchLearner)]
)
def test_a_built_in_model_needs_no_code(kind: Any, learner: Any) -> None:
    options = LearnerOptions(
        data=DataOptions(source="sklearn:digits"), model=ModelOptions(kind=kind), local_steps=2, share=("*",)
    )
    built = [build(resolve(options), Site(seed=seed, options=options)) for seed in (1, 1, 2)]
    assert isinstance(built[0], learner)
    vectors = [one.parameters().tobytes() for one in built]
    assert vectors[0] == vectors[1] != vectors[2]
    assert built[0].fit(built[0].parameters(), np.random.default_rng(0)).samples == 64
    assert samples_of(built[0]) == 1346
    assert len(schema_hash_of(built[0])) == 32


def test_the_sites_own_data_comes_before_the_agreements(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=np.zeros((8, 3)), y=np.arange(8) % 2)
    options = LearnerOptions(data=DataOptions(source="sklearn:digits"), model=ModelOptions())
    assert len(build(resolve(options), Site(data=str(tmp_path / "mine.npz"))).parameters()) == 4
    digits = load("sklearn:digits")
    assert len(build(resolve(options), Site(dataset=digits, data="nowhere")).parameters()) == 650
    with pytest.raises(LearnerError, match=r"site.dataset is a list"):
        build(resolve(options), Site(dataset=[1]))


def test_own_code_is_found_in_the_current_folder(here: Path) -> None:
    (here / "ward.py").write_text(
        "import numpy as np\n"
        "from p2pfl.learn.data import load\n"
        "from p2pfl.learn.numpy_learner import NumpyLearner\n"
        "class made:\n"
        "    @staticmethod\n"
        "    def learner(site): return NumpyLearner(load('sklearn:iris'), seed=site.seed)\n"
    )
    site = Site(local_steps=9, should_stop=lambda: False, progress=lambda: 0.5)
    built: Any = build(resolve(LearnerOptions(module="ward:made.learner")), site)
    assert built.local_steps == 9
    assert built.should_stop is site.should_stop
    assert built.progress() == 0.5


def test_local_steps_come_from_the_agreement_unless_the_learner_says() -> None:
    options = LearnerOptions(module="any:thing", local_steps=11)
    iris = load("sklearn:iris")
    silent: Any = build(lambda _: NumpyLearner(iris), Site(options=options))
    decided: Any = build(lambda _: NumpyLearner(iris, local_steps=3), Site(options=options))
    assert (silent.local_steps, decided.local_steps) == (11, 3)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("ward", 'is not "module:attribute"'),
        (":learner", 'is not "module:attribute"'),
        ("wart:learner", "no module 'wart'; start in the folder that holds wart.py"),
        ("wart.deep:learner", "no module 'wart.deep'; start in the folder that holds wart.py"),
        ("ward:lerner", "has no 'lerner'; it has learner"),
        ("ward:SIZE", "is a int; expected a function"),
        ("needy:learner", "imports 'nowhere_at_all', which is not installed"),
        ("broken:learner", "importing 'broken' raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_cannot_serve_is_refused_with_the_cure(here: Path, module: Any, message: str) -> None:
    (here / "ward.py").write_text("SIZE = 3\ndef learner(site): ...\n")
    (here / "needy.py").write_text("import nowhere_at_all\n")
    (here / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=message):
        resolve(LearnerOptions(module=module))


def test_module_and_model_exclude_each_other_and_one_is_needed() -> None:
    with pytest.raises(ConfigError, match="both module and model"):
        resolve(LearnerOptions(module="a:b", model=ModelOptions()))
    with pytest.raises(ConfigError, match="neither module"):
        resolve(LearnerOptions())


def test_the_factory_runs_under_the_runs_seed_and_leaves_the_generators_as_they_were() -> None:
    def draws() -> Any:
        return [random.random(), np.random.random(), torch.rand(()).item()]  # noqa: NPY002

    def factory(site: Any) -> Any:
        return Constant(np.array(draws(), np.float32))

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = draws()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    vectors = [build(factory, Site(seed=seed)).parameters().tobytes() for seed in (5, 5, 2**63)]
    assert vectors[0] == vectors[1] != vectors[2]
    assert draws() == expected


@pytest.mark.slow
def test_a_factory_that_imports_torch_itself_is_seeded_too(tmp_path: Path) -> None:
    script = """
import sys
import numpy as np
from p2pfl.learn.factory import build
from p2pfl.learn.learner import Site, Update
class Learner:
    def __init__(self):
        import torch
        self.vector = torch.rand(3).numpy()
    def parameters(self): return self.vector
    def fit(self, parameters, rng): ...
    def evaluate(self, parameters): ...
assert "torch" not in sys.modules
first, second = (build(lambda _: Learner(), Site(seed=4)).parameters() for _ in range(2))
assert first.tobytes() == second.tobytes(), (first, second)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (3, "gave a int; a learner has parameters"),
        (Constant([1.0]), "gave list , expected one float32 vector"),
        (Constant(np.zeros((2, 2), np.float32)), r"gave float32 \(2, 2\), expected"),
        (Constant(np.zeros(2)), r"gave float64 \(2,\), expected"),
        (Constant(np.array([np.nan], np.float32)), "empty or not finite"),
        (Constant(np.zeros(0, np.float32)), "empty or not finite"),
    ],
)
def test_what_is_no_learner_is_refused(made: Any, message: str) -> None:
    with pytest.raises(LearnerError, match=message):
        build(lambda _: made, Site())


def test_a_factory_that_raises_is_a_learner_error_and_its_config_errors_pass() -> None:
    def careless(site: Any) -> Any:
        raise KeyError("age")

    def careful(site: Any) -> Any:
        raise ConfigError("no such table")

    with pytest.raises(LearnerError, match="raised KeyError: 'age'"):
        build(careless, Site())
    with pytest.raises(ConfigError, match="no such table"):
        build(careful, Site())


def test_standardisation_across_sites_needs_a_learner_with_statistics() -> None:
    options = LearnerOptions(module="any:thing", standardise="federation")
    with pytest.raises(ConfigError, match=r"gives no statistics\(\)"):
        build(lambda _: Constant(np.zeros(2, np.float32)), Site(options=options))


def test_three_methods_are_enough() -> None:
    learner = build(lambda _: Constant(np.zeros(5, np.float32)), Site())
    assert samples_of(learner) == 1
    assert len(statistics_of(learner)) == 0
    assert schema_hash_of(learner) == schema_hash_of(Constant(np.ones(5, np.float32)))
    assert schema_hash_of(learner) != schema_hash_of(Constant(np.ones(6, np.float32)))


def test_importing_the_built_in_learners_loads_neither_torch_nor_sklearn() -> None:
    script = (
        "import sys, p2pfl.learn.factory;"
        "assert not {'torch', 'sklearn', 'scipy'} & set(sys.modules), set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_every_docstring_example_runs() -> None:
    for found in pkgutil.iter_modules(p2pfl.learn.__path__):
        module = importlib.import_module(f"p2pfl.learn.{found.name}")
        assert doctest.testmod(module, extraglobs={"np": np}).failed == 0, found.name
