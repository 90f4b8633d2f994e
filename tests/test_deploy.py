"""The commands of docs/deploy.md, in their order, as real daemons at four loopback addresses."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import guide
import numpy as np
import pytest
from guide import Guide, Step

PAGE = (Path(__file__).parents[1] / "docs/deploy.md").read_text(encoding="utf-8")
UNHURRIED = Path(__file__).parent / "support/unhurried"
SITES = ("cleveland", "hungarian", "switzerland", "va")


def a_hospital(rng: np.random.Generator, rows: int) -> str:
    """Lines like those of the Heart Disease files: 13 numbers, some missing, and the grade they explain."""
    x = rng.normal(size=(rows, 13))
    grade = np.clip(np.round(x[:, :4].sum(axis=1)), 0, 4).astype(int)
    missing = rng.random((rows, 13)) < 0.1
    return "".join(
        ",".join("?" if m else f"{v + 5:.1f}" for v, m in zip(values, gone, strict=True)) + f",{g}\n"
        for values, gone, g in zip(x, missing, grade, strict=True)
    )


def free_ports(count: int) -> list[str]:
    """Ports that nothing listens on now."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Guide]:
    rng = np.random.default_rng(0)
    for site, rows in zip(SITES, (200, 150, 80, 100), strict=True):
        (tmp_path / f"processed.{site}.data").write_text(a_hospital(rng, rows))
    control, bulk = free_ports(2)
    replace = {f"10.0.0.1{i}": f"127.0.0.1{i}" for i in (1, 2, 3, 4)}
    replace |= {"4911": control, "4912": bulk, "/srv/heart": str(tmp_path)}
    made = Guide(folder=tmp_path, replace=replace, extra={"PYTHONPATH": str(UNHURRIED)})
    try:
        yield made
    finally:
        made.stop()


def write_agreements(page: Guide) -> None:
    """The run.toml files of the page, with this page's ids, and too many rounds to end meanwhile."""
    for name, text in guide.files(PAGE).items():
        for variable, value in page.variables.items():
            text = text.replace(f"${variable}", value)
        path = page.folder / name
        path.parent.mkdir(exist_ok=True)
        text = re.sub(r"^rounds = \d+", "rounds = 100000", text, flags=re.MULTILINE)
        path.write_text(re.sub(r"^deadline_s = \d+", "deadline_s = 5", text, flags=re.MULTILINE))


def mass_of(page: Guide, sites: tuple[str, ...]) -> list[dict[str, float]]:
    found = [page.do(Step(site=site, command="p2pfl status --json")) for site in sites]
    return [json.loads(one.stdout)["mass"] for one in found]


@pytest.mark.slow
def test_every_command_of_the_deployment_guide_does_what_the_guide_says(page: Guide) -> None:
    started: dict[str, int] = {}
    for step in guide.commands(PAGE):
        if "run check run.toml" in step.command and not (page.folder / "run.toml").exists():
            assert set(page.variables) == {*(site.upper() for site in SITES), "VA_RECOVERY"}
            write_agreements(page)
        done = page.do(step)
        assert done.returncode == 0, (step, done.stdout, done.stderr)
        if step.command == "p2pfl node start --detach":
            started[step.site] = started.get(step.site, 0) + 1
            # From the moment the last member is there, who starts takes part in rounds.
            if step.site == "va" or started.get("va"):
                is_new_run = step.site in ("cleveland", "hungarian") and started[step.site] == 2
                if not is_new_run:
                    page.wait_for_a_round(step.site)
        if "run leave" in step.command:
            page.wait_until_gone(step.site)
            assert "left the run" in (page.home(step.site) / "node.log").read_text()
        if step.command == "p2pfl status":
            assert "\nstate      running\n" in done.stdout, (step, done.stdout)
        if "and the second" in step.command:
            assert "is revoked" in done.stdout
    assert all(mass["w"] > 0 for mass in mass_of(page, ("cleveland", "hungarian")))


def test_the_guide_names_every_site_and_both_agreements() -> None:
    assert {step.site for step in guide.commands(PAGE)} == set(SITES)
    assert set(guide.files(PAGE)) == {"run.toml", "shared/run.toml"}
