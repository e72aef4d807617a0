"""MLflow's pages of a finished run, as a person's browser shows them."""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import Page, browser, executable
from tests.support.tracking_run import SILOS, figures, record
from tracking import ui
from tracking.follower import Follower
from tracking.plots import COLOURS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(executable() is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]
LAST = 12
CHART = """
[...document.querySelector('.js-plotly-plot')?.data ?? []].map(line => ({
    name: line.name, colour: line.line?.color ?? line.marker?.color, x: [...line.x ?? []], y: [...line.y ?? []],
}))
"""
"""The lines of the first chart, as given to the plotting library."""


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The run's page and the page of its charts, served by MLflow."""
    folder = tmp_path_factory.mktemp("mlflow")
    record(folder / "run", LAST)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)  # MLflow sets it; processes of later tests would inherit it
        follower = Follower(folder / "run", uri)
        while not follower.done:
            follower.step()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    server = ui.serve(uri, port)
    try:
        assert ui.wait_until_up(base)
        yield str(ui.page_of(folder / "run", base)), str(ui.charts_of(folder / "run", base))
    finally:
        server.terminate()
        server.wait(20)


def visit(look: Callable[[Page], Coroutine[Any, Any, None]]) -> None:
    async def go() -> None:
        async with browser(1600, 1200) as page:
            await look(page)

    asyncio.run(go())


def test_the_page_of_the_run(addresses: tuple[str, str]) -> None:
    async def look(page: Page) -> None:
        await page.open(addresses[0])
        await page.wait_for("document.body.innerText.includes('Best version')")
        text = await page.wait_for(
            "document.body.innerText.includes('Child runs') && document.body.innerText"
        )
        for word in ("heart-disease-1", "Finished", *SILOS, "siloray.job_digest", "accuracy_worst"):
            assert word in text, word
        assert "Evaluation runs" not in text, "this is MLflow's GenAI side"

    visit(look)


def test_the_charts_lay_the_silos_over_one_another(addresses: tuple[str, str], tmp_path: Path) -> None:
    async def look(page: Page) -> None:
        await page.open(addresses[1])
        await page.wait_for("[...document.querySelectorAll('.js-plotly-plot')].length >= 4")
        await page.evaluate("document.querySelector('button[aria-label=Close]')?.click()")
        whole = f"({CHART}).filter(line => line.y.length === {LAST + 1}).map(line => line.name)"
        await page.wait_for(f"new Set({whole}).size === {len(SILOS) + 1}")
        lines = {line["name"]: line for line in await page.evaluate(CHART)}
        assert set(lines) == {"heart-disease-1", *SILOS}
        for silo, colour in zip(SILOS, COLOURS, strict=False):
            expected = [figures(SILOS, version).silos[silo]["accuracy"] for version in range(LAST + 1)]
            assert lines[silo]["x"] == list(range(LAST + 1))
            assert lines[silo]["y"] == pytest.approx(expected)
            assert lines[silo]["colour"].upper().startswith(colour)
        pooled = [figures(SILOS, version).overall["accuracy"] for version in range(LAST + 1)]
        assert lines["heart-disease-1"]["y"] == pytest.approx(pooled)
        sections = await page.evaluate("document.body.innerText")
        assert "Model metrics" in sections
        await page.screenshot(tmp_path / "charts.png")
        assert (tmp_path / "charts.png").stat().st_size > 50_000

    visit(look)
