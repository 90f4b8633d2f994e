"""The project's words say what its code does: commands, keys, codes, facts, metrics, examples, links."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import re
import types
from collections.abc import Iterator
from pathlib import Path

import click
import guide
import msgspec
import numpy as np
import pytest

import p2pfl
from p2pfl import settings
from p2pfl.cli import exits, main
from p2pfl.gossip import options as gossip
from p2pfl.knowledge.options import EXCHANGE_FIELDS
from p2pfl.learn import options as learn
from p2pfl.learn.learner import Learner, Site
from p2pfl.node.telemetry import Telemetry
from p2pfl.run import RunOptions
from p2pfl.simulations.attacks import KINDS as ATTACK_KINDS
from p2pfl.simulations.attacks import AttackOptions
from p2pfl.simulations.scenario import SimulationOptions
from p2pfl.trust.options import PrivacyOptions, ReputationOptions, TrustOptions

ROOT = Path(__file__).parents[1]
PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
}
# What a person who only wants to use it reads.
_GUIDES = ("README.md", "deploy.md", "configuration.md", "simulate.md", "knowledge.md")
GUIDES = "\n".join(PAGES[name] for name in _GUIDES)
CONFIGURATION = PAGES["configuration.md"]

# The tables of docs/configuration.md, by the line above them.
TABLES: dict[str, type[msgspec.Struct]] = {
    "### `[run]`": RunOptions,
    "### `[learner]`": learn.LearnerOptions,
    "`[learner.data]`": learn.DataOptions,
    "`[learner.model]`": learn.ModelOptions,
    "`[learner.optimizer]`": learn.OptimizerOptions,
    "`[gossip.topology]`": gossip.TopologyOptions,
    "### `[trust]`": TrustOptions,
    "`[trust.reputation]`": ReputationOptions,
    "`[trust.privacy]`": PrivacyOptions,
    "### `[node]`": settings.NodeSection,
    "### `[control]`": settings.ControlSettings,
    "### `[limits]`": settings.LimitSettings,
    "### `[trust]` of a node": settings.TrustSettings,
    "`[simulation]`": SimulationOptions,
    "`[simulation.attack]`": AttackOptions,
}
# Hosts of package indexes: where a user's packages come from is not this project's to say.
REGISTRIES = (
    "pypi.org",
    "pythonhosted.org",
    "anaconda.org",
    "download.pytorch.org",
    "npmjs",
    "crates.io",
    "docker.io",
    "ghcr.io",
    "quay.io",
)


def every_command(
    command: click.Command, path: tuple[str, ...] = ("p2pfl",)
) -> Iterator[tuple[str, click.Command]]:
    """All commands below `command`, with their full names."""
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path[-1])
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from every_command(inner, (*path, name))


def rows_below(line: str) -> dict[str, str]:
    """The table under the line of docs/configuration.md that begins with `line`: default by key."""
    _, found, rest = CONFIGURATION.partition(f"\n{line}")
    assert found, f"docs/configuration.md has no {line}"
    table = re.search(r"\n\|(?:.*\|\n?)+", rest)
    assert table is not None
    rows: dict[str, str] = {}
    for row in table.group().strip().splitlines()[2:]:
        keys, default = row.split("|")[1:3]
        rows.update(dict.fromkeys(re.findall(r"`([a-z_]+)`", keys), default.strip()))
    return rows


def test_every_command_that_is_listed_exists_and_appears_in_the_guides() -> None:
    commands = dict(every_command(main.main))
    assert {name.split()[1] for name in commands if " " in name} == set(main.COMMANDS)
    assert [name for name in commands if name not in GUIDES] == []


def test_every_option_appears_in_the_guides() -> None:
    missing = []
    for name, command in every_command(main.main):
        for parameter in command.params:
            flags = [*parameter.opts, *parameter.secondary_opts]
            if isinstance(parameter, click.Option) and not any(
                re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", GUIDES) for flag in flags
            ):
                missing.append(f"{name} {flags[0]}")
    assert missing == []


def test_every_command_and_option_in_the_guides_exists() -> None:
    commands = dict(every_command(main.main))
    used = re.findall(r"(?:^|`|\$ |&& )p2pfl ((?:[a-z][a-z-]* ?)+)", GUIDES, re.MULTILINE)
    for words in used:
        first, second = (*words.split(), "")[:2]
        assert f"p2pfl {first}" in commands, words
        if isinstance(commands[f"p2pfl {first}"], click.Group) and second:
            assert f"p2pfl {first} {second}" in commands, words
    known = {flag for command in commands.values() for p in command.params for flag in p.opts} | {"--help"}
    # Options of other programs that the guides show.
    others = {"--install", "--user", "--system"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", GUIDES)) - known - others == set()


@pytest.mark.parametrize("line", TABLES)
def test_every_key_of_a_struct_and_no_other_is_in_its_table(line: str) -> None:
    # Keys that are tables of their own have their own heading.
    tables = {"data", "model", "optimizer"} if TABLES[line] is learn.LearnerOptions else set()
    tables |= {"aggregator", "privacy", "reputation"} if TABLES[line] is TrustOptions else set()
    assert set(rows_below(line)) == {f.name for f in msgspec.structs.fields(TABLES[line])} - tables


@pytest.mark.parametrize("line", TABLES)
def test_the_defaults_in_a_table_are_the_struct_s(line: str) -> None:
    rows = rows_below(line)
    for field in msgspec.structs.fields(TABLES[line]):
        shown = rows.get(field.name, "")
        if not shown.startswith("`") or field.default is msgspec.NODEFAULT or "{" in shown:
            continue
        if TABLES[line] is gossip.TopologyOptions and field.default is None:
            continue  # None: the kind's default, which the table says in words.
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        assert json.loads(shown.strip("`")) == default, field.name


def test_every_kind_of_topology_averaging_exchange_and_attack_is_explained() -> None:
    kinds = (
        *gossip.TOPOLOGY_FIELDS,
        *gossip.AVERAGING_KINDS,
        *gossip.COMPRESSION_KINDS,
        *EXCHANGE_FIELDS,
        *ATTACK_KINDS,
    )
    assert [
        kind for kind in kinds if f"`{kind}`" not in CONFIGURATION and f'"{kind}"' not in CONFIGURATION
    ] == []


def test_every_environment_variable_is_listed() -> None:
    read = re.findall(r"\b(?:P2PFL_[A-Z_]+|NO_COLOR)\b", (ROOT / "p2pfl/settings.py").read_text())
    listed = set(re.findall(r"^\| `([A-Z0-9_]+)`", CONFIGURATION, re.MULTILINE))
    assert listed == set(read) | {"NO_COLOR"}


def test_every_exit_code_is_listed_with_its_words() -> None:
    for code, words in exits.EXIT_CODES.items():
        assert f"| {int(code)} | {words} |" in CONFIGURATION
    assert set(exits.EXIT_CODES) == set(exits.Exit)


def facts_in_the_code() -> set[str]:
    """The event of every Fact that is made by name."""
    found = set()
    for path in (ROOT / "p2pfl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("fact", "Fact"):
                said = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "event")]
                found |= {v.value for v in said if isinstance(v, ast.Constant) and isinstance(v.value, str)}
    return found


def test_every_fact_is_listed_and_no_other() -> None:
    section = CONFIGURATION.partition("\n## Facts")[2].partition("\n## ")[0]
    listed = {
        event
        for row in re.findall(r"^\| (`[^|]*`) \|", section, re.MULTILINE)
        for event in re.findall(r"`([^`]+)`", row)
    }
    assert listed == facts_in_the_code()


def test_every_metric_is_listed_and_no_other() -> None:
    rendered = set(re.findall(r"^# TYPE (\w+) ", Telemetry().render().decode(), re.MULTILINE))
    names = {name for name in rendered if not name.endswith("_created")}
    assert set(re.findall(r"`(p2pfl_\w+)(?:\{\w+\})?`", CONFIGURATION)) == names


def test_links_between_pages_resolve() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("http"):
                continue
            place, _, anchor = target.partition("#")
            file = (page.parent / place).resolve() if place else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page.name}: {target}"


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as renderers make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_page_names_the_host_of_a_registry() -> None:
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile", ROOT / ".ci/run"]
    found = [(file.name, host) for file in files for host in REGISTRIES if host in file.read_text().lower()]
    assert found == []


def test_no_page_tells_to_install_the_other_project() -> None:
    for name, text in PAGES.items():
        assert not re.search(r"pip install (?:--\S+ )*p2pfl(?![\w-])", text), name


def modules_with_examples() -> list[str]:
    """Our modules whose docstrings have `>>>`."""
    places = {ROOT / "p2pfl": "p2pfl", ROOT / "cli": "p2pfl.cli", ROOT / "simulations": "p2pfl.simulations"}
    return sorted(
        ".".join((name, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
        for folder, name in places.items()
        for path in folder.rglob("*.py")
        if ">>>" in path.read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_in_the_docstrings_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


def readme_learner() -> str:
    """The python block of the README."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGES["README.md"], re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


def made_up_rows(path: Path) -> None:
    """400 rows of the shape that the README's learner reads."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 20)).astype(np.float32)
    np.savez(path, x=x, y=(x[:, 0] > 0).astype(np.int64))


def test_the_learner_in_the_readme_trains_a_round_in_fifteen_lines(tmp_path: Path) -> None:
    code = readme_learner()
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 15
    made_up_rows(tmp_path / "rows.npz")
    module = types.ModuleType("readme")
    exec(compile(code, "README.md", "exec"), module.__dict__)
    learner: Learner = module.learner(Site(data=str(tmp_path / "rows.npz"), local_steps=20))
    first = learner.parameters().copy()
    before = learner.evaluate(first)["accuracy"]
    update = learner.fit(first, np.random.default_rng(0))
    assert update.samples == 300
    assert learner.evaluate(update.parameters)["accuracy"] > before


@pytest.mark.slow
def test_the_commands_of_the_readme_run_as_written(tmp_path: Path) -> None:
    made_up_rows(tmp_path / "rows.npz")
    steps = guide.commands(PAGES["README.md"])
    assert len(steps) == 5
    page = guide.Guide(folder=tmp_path)
    page.extra = {"P2PFL_LISTEN": "/ip4/127.0.0.1/tcp/0", "P2PFL_BULK_LISTEN": "127.0.0.1:0"}
    for step in steps:
        done = page.do(step)
        assert done.returncode == 0, (step, done.stdout, done.stderr)
        if " run new " in step.command:
            (tmp_path / "ward/learner.py").write_text(readme_learner())
    assert (tmp_path / "model.safetensors").stat().st_size > 738 * 4


def test_the_public_names_are_those_that_the_package_promises() -> None:
    assert {name for name in p2pfl.__all__ if getattr(p2pfl, name) is None} == set()


def test_every_test_that_the_threat_model_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGES["trust.md"])
    assert len(named) > 15
    for path, name in named:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not name or re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{path} has no {name}"
