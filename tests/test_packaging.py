"""What is installed: the packages of pyproject.toml are those of the tree, and importing stays light."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Where the tree's folders are imported from.
FOLDERS = {"p2pfl": "p2pfl", "cli": "p2pfl.cli", "simulations": "p2pfl.simulations"}


def packages_of_the_tree() -> set[str]:
    """Every folder that holds an __init__.py, by the name that it is imported under."""
    found = set()
    for folder, name in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join((name, *init.parent.relative_to(ROOT / folder).parts)))
    return found


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after `code`."""
    end = "import sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{end}"], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_packages_of_the_project_are_those_of_the_tree() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages_of_the_tree()


def test_every_folder_with_code_is_a_package() -> None:
    code = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert [str(folder) for folder in sorted(code) if not (folder / "__init__.py").exists()] == []


def test_the_distribution_is_not_named_like_the_other_project() -> None:
    assert PROJECT["project"]["name"] == "p2pfl-node"


def test_importing_p2pfl_loads_neither_torch_nor_libp2p_nor_a_database() -> None:
    loaded = loaded_by("import p2pfl")
    assert "p2pfl" in loaded
    assert loaded.isdisjoint({"torch", "libp2p", "sqlite3", "sklearn", "trio", "numpy"})


def test_asking_for_help_loads_neither_numpy_nor_trio() -> None:
    code = "from p2pfl.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    loaded = loaded_by(code)
    assert "click" in loaded
    assert loaded.isdisjoint({"numpy", "trio", "torch", "libp2p", "msgspec", "rich", "httpx"})


def test_the_layers_in_contributing_are_those_that_are_enforced() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("Layers, top to bottom")[2]
    block = text.split("```")[1].strip()
    enforced = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    assert re.sub(r"\n +", " ", block).splitlines() == [row.replace("p2pfl.", "") for row in enforced]


@pytest.mark.slow
def test_the_wheel_holds_only_p2pfl(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", tmp_path, source], check=True, timeout=300, capture_output=True)
    (wheel,) = tmp_path.glob("p2pfl_node-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    own = {name for name in names if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in own} == {"p2pfl"}
    shipped = {
        "py.typed",
        "simulations/scenarios/digits.toml",
        "cli/main.py",
        "node/daemon.py",
        "node/dashboard/index.html",
        "node/dashboard/app.js",
        "__main__.py",
    }
    assert {f"p2pfl/{name}" for name in shipped} <= own
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            place = "/".join((package.replace(".", "/"), *path.relative_to(ROOT / folder).parts))
            assert place in own
