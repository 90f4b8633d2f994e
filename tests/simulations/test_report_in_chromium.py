"""The page in a real browser: it draws, follows choices, fits every width, and asks for nothing."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from p2pfl.simulations import comparison, report, scenario, sweep

pytestmark = pytest.mark.slow

# Debian's name first; Chromium's sandbox does not start for root, as whom CI runs.
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
_RUN = """
[run]
rounds = 6
closing_rounds = 2

[learner]
local_steps = 1
data = { source = "sklearn:wine" }
model = { kind = "logistic" }

[simulation]
peers = 5
"""
_GRID = """
engine = "population"
baselines = false

[simulation.grid]
"gossip.topology.kind" = ["ring", "complete"]
"learner.optimizer.lr" = [0.001, 0.01, 0.1, 0.2]
"""
_HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
# Text against what is behind it, as WCAG 2 has it.
_CONTRAST = """([front, back]) => {
  const light = (text) => {
    const parts = text.match(/[\\d.]+/g).slice(0, 3).map((part) => Number(part) / 255);
    const [r, g, b] = parts.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const style = (selector) => getComputedStyle(document.querySelector(selector));
  const [a, b] = [light(style(front).color), light(style(back).backgroundColor)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(_BROWSERS)} is installed; Debian, Ubuntu: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield opened
        opened.close()


def _study(folder: Path, text: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    path = folder / "study.toml"
    path.write_text(text)
    return sweep.run(sweep.trials(scenario.load(str(path)), seeds), folder=folder)


def _written(folder: Path, verdicts: Sequence[dict[str, Any]], name: str, axes: dict[str, list[str]]) -> Path:
    outcome: dict[str, Any] = {"text": "metric.mean >= 0.5", "value": 0.6, "bound": 0.5, "interval": None}
    outcomes = [{**outcome, "is_met": True, "cell": {}, "seed": None}]
    events = report.study_events(
        verdicts, scenario=name, axes=axes, outcomes=outcomes, command="p2pfl simulate"
    )
    return report.write(folder / "report.html", events)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on one trial of a world, under a hostile name."""
    folder = tmp_path_factory.mktemp("single")
    return _written(folder, _study(folder, _RUN, (0,)), _HOSTILE, {})


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on a grid of eight cells under two seeds."""
    folder = tmp_path_factory.mktemp("grid")
    axes = {"topology": ["ring", "complete"], "lr": ["0.001", "0.01", "0.1", "0.2"]}
    return _written(folder, _study(folder, _RUN + _GRID, (0, 1)), "grid", axes)


class _Opened:
    """A page in a browser, and everything it said, asked for or shifted while it was open."""

    def __init__(self, browser: Browser, path: Path, width: int = 1280, scheme: Any = "light") -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.url = path.as_uri()
        self.page.goto(self.url)

    def paths(self) -> list[str]:
        """The data of every path that is drawn."""
        found: list[str] = self.page.eval_on_selector_all(
            "svg.chart path", "paths => paths.map(path => path.getAttribute('d'))"
        )
        return found

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        root = "document.documentElement"
        return int(self.page.evaluate(f"{root}.scrollWidth - {root}.clientWidth"))


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("name", ["single", "grid"])
def test_charts_have_finite_lines_and_the_page_fits_and_asks_for_nothing(
    browser: Browser, name: str, width: int, request: pytest.FixtureRequest
) -> None:
    opened = _Opened(browser, request.getfixturevalue(name), width)
    paths = opened.paths()
    assert len(paths) > 12
    assert all(re.fullmatch(r"(?:[MLQZ]?-?\d+(?:\.\d+)?(?:e-?\d+)? ?)+Z?", path) for path in paths), paths
    assert opened.page.locator("svg.chart").count() >= 5
    assert opened.page.locator("text=undefined").count() == opened.page.locator("text=NaN").count() == 0
    assert opened.overflow() <= 0
    assert opened.said == []
    assert opened.asked == [opened.url]
    opened.page.close()


def test_a_hostile_name_is_text_and_an_injected_script_does_not_run(browser: Browser, single: Path) -> None:
    opened = _Opened(browser, single)
    assert opened.page.locator("h1").inner_text() == _HOSTILE
    assert opened.page.locator("img").count() == 0
    assert opened.said == []
    opened.page.evaluate(
        "() => { const injected = document.createElement('script');"
        " injected.textContent = 'window.ran = 1'; document.body.append(injected); }"
    )
    assert opened.page.evaluate("window.ran") is None
    assert any("Content Security Policy" in said for said in opened.said)
    opened.page.close()


def test_the_axis_can_be_chosen_and_lines_move(browser: Browser, single: Path) -> None:
    opened = _Opened(browser, single)
    first = opened.page.locator("svg.chart").first
    before = opened.paths()
    for name, label in (("Bytes sent a peer", "kB"), ("Virtual time", "s")):
        button = opened.page.get_by_role("button", name=name)
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert first.locator("text.label").text_content() == name
        assert first.locator("text.tick", has_text=label).count() >= 2
    assert opened.paths() != before
    assert opened.said == []
    opened.page.close()


def test_arrow_keys_read_a_chart_aloud_and_every_chart_has_its_table(browser: Browser, single: Path) -> None:
    opened = _Opened(browser, single)
    first = opened.page.locator("svg.chart").first
    first.focus()
    first.press("End")
    assert re.match(r"Round 8; Mean 0\.\d+", opened.page.locator(".spoken").first.inner_text())
    first.press("ArrowLeft")
    assert opened.page.locator(".spoken").first.inner_text().startswith("Round 7")
    for chart in opened.page.locator("svg.chart").all():
        assert chart.locator("title").first.inner_html()
        assert chart.locator("desc").inner_html()
    figures = opened.page.locator("figure")
    for i in range(figures.count()):
        figures.nth(i).locator("summary").click()
        figures.nth(i).locator("tbody tr").first.wait_for(timeout=5000)
    opened.page.close()


def test_a_cell_of_the_matrix_is_what_all_charts_show(browser: Browser, grid: Path) -> None:
    opened = _Opened(browser, grid)
    buttons = opened.page.locator("button.heat")
    assert buttons.count() == 8
    assert buttons.nth(0).get_attribute("aria-pressed") == "true"
    buttons.nth(7).click()
    assert buttons.nth(0).get_attribute("aria-pressed") == "false"
    assert opened.page.locator("#cell").input_value() == "7"
    described = opened.page.locator("svg.chart desc").first.inner_html()
    assert described.startswith("topology complete, lr 0.2: ")
    opened.page.locator("#cell").select_option("1")
    assert buttons.nth(1).get_attribute("aria-pressed") == "true"
    assert opened.said == []
    opened.page.close()


def test_exchanges_stand_by_what_they_are_worth_and_cost(browser: Browser, tmp_path: Path) -> None:
    axes = {"exchange": ["hub", "weights"]}
    study = _study(tmp_path, _RUN + "baselines = false\n", (0, 1))
    worth = {"kind": "hub", "edge": 0.5, "hub": 0.9, "holders": 5, "bytes": 7.0}
    cells = [{"exchange": "hub"}, {"exchange": "weights"}]
    verdicts = [
        {**verdict, "cell": cell, "knowledge": known, "compute": {"mean": 2e6, "min": 1e6, "max": 4e6}}
        for cell, known in zip(cells, (worth, None), strict=True)
        for verdict in study
    ]
    opened = _Opened(browser, _written(tmp_path, verdicts, "exchanges", axes))
    found = opened.page.locator("section[aria-labelledby=worth-and-cost]")
    assert found.locator("svg.chart").count() == 2
    # Each chart has a dot a cell, and one ring, above them, for the hub's model.
    assert found.locator("circle.dot").count() == 4
    assert found.locator("circle.ring").count() == 2
    title = found.locator("circle.ring title").first.text_content()
    assert title is not None
    assert title.startswith("exchange hub, the hub's model: 0.9, ")
    assert not opened.said


def test_two_results_have_a_line_each(browser: Browser, grid: Path, tmp_path: Path) -> None:
    side = [v for v in comparison.read(grid.parent) if v["cell"] == {"topology": "ring", "lr": "0.1"}]
    rows = comparison.compare(side, side)
    events = report.comparison_events(rows, ("a", "b"), (side, side), command="p2pfl simulate compare a b")
    opened = _Opened(browser, report.write(tmp_path / "report.html", events))
    assert opened.page.locator("svg.chart").first.locator("path.stroke").count() == 2
    assert opened.page.locator(".legend button").count() == 2
    assert opened.said == []
    opened.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(browser: Browser, single: Path, scheme: str) -> None:
    opened = _Opened(browser, single, scheme=scheme)
    least = {
        ("body", "body"): 7,
        (".lede", "body"): 4.5,
        (".card .lead", ".card"): 4.5,
        (".eyebrow", "body"): 4.5,
    }
    for (front, back), ratio in least.items():
        assert opened.page.evaluate(_CONTRAST, [front, back]) >= ratio, (front, back)
    back = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", back)[0]) < 128) == (scheme == "dark")
    opened.page.close()


_MOVED = """() => {
  window.moved = 0;
  const add = (list) => list.getEntries().forEach((entry) => (window.moved += entry.value));
  new PerformanceObserver(add).observe({ type: 'layout-shift', buffered: true });
}"""
_PAINTED = """() => new Promise((done) =>
  requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(() => done(true), 50))))"""


@contextmanager
def _in_two_parts(path: Path) -> Iterator[tuple[str, threading.Event]]:
    """Where the page is served, its data and scripts only once the event is set."""
    rest = threading.Event()
    first, mark, second = path.read_bytes().partition(b'<script type="application/json"')
    assert mark

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(first)
            rest.wait()
            self.wfile.write(mark + second)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", rest
        finally:
            rest.set()
            server.shutdown()
            serving.join()


def test_nothing_moves_while_the_page_arrives(browser: Browser, single: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    with _in_two_parts(single) as (url, rest):
        page.goto(url, wait_until="commit")
        page.wait_for_selector("footer", state="attached")
        page.evaluate(_MOVED)
        assert page.evaluate(_PAINTED)
        rest.set()
        page.locator("svg.chart").first.wait_for()
        assert page.evaluate(_PAINTED)
        assert page.locator("footer").is_visible()
        assert page.evaluate("window.moved") < 0.01
        page.close()


def test_nothing_moves_while_the_page_is_used(browser: Browser, single: Path) -> None:
    opened = _Opened(browser, single)
    opened.page.evaluate(_MOVED)
    opened.page.get_by_role("button", name="Virtual time").click()
    opened.page.locator("svg.chart").first.hover()
    opened.page.locator("svg.chart").nth(1).hover()
    assert opened.page.evaluate(_PAINTED)
    assert opened.page.evaluate("window.moved") < 0.01
    opened.page.close()
