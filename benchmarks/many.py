"""A thousand runs in the store: how long a cached run, the listings and the pages take, next to a store with ten runs.

`python -m benchmarks.many N` runs the pipeline N times in one process. All runs but the first reuse every step.
"""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.settings import CHECKOUT
from benchmarks.measure import Cost, Row, alternate, measure, without_settings

if TYPE_CHECKING:
    from playwright.sync_api import Playwright

FEW, MANY = 10, 1000


def many(repeats: int) -> list[Row]:
    """Fill two stores with real runs, which takes half an hour, and compare them."""
    with tempfile.TemporaryDirectory() as folder:
        homes = {n: Path(folder) / str(n) for n in (FEW, MANY)}
        for n, home in homes.items():
            measure("-m", "benchmarks.many", str(n), MNIST_HOME=str(home))
        return compare(homes, repeats)


def compare(homes: Mapping[int, Path], repeats: int) -> list[Row]:
    """The wall seconds of the same actions in each store, by its number of runs. Pages count until they are drawn."""

    def run(command: str, home: Path) -> Callable[[], Cost]:
        return lambda: measure("-m", "flows", command, MNIST_HOME=str(home))

    rows: list[Row] = []
    for name, command in {"make train, cached": "train", "make history": "history", "make gc": "gc"}.items():
        rows += alternate({f"{name}, {n} runs": run(command, home) for n, home in homes.items()}, repeats)
    from playwright.sync_api import sync_playwright

    opened = []
    with sync_playwright() as playwright:
        # One after the other, because the servers of two stores would slow each other down.
        for n, home in homes.items():
            with pages(home, playwright) as ways:
                opened.append(alternate({f"{page}, {n} runs": way for page, way in ways.items()}, repeats))
    return rows + [row for pair in zip(*opened, strict=True) for row in pair]


@contextmanager
def pages(home: Path, playwright: "Playwright") -> Iterator[dict[str, Callable[[], Cost]]]:
    """Run `make up` on a store. Yields how to open each page in a browser."""
    newest = max((home / "runs").iterdir(), key=lambda path: path.stat().st_mtime).name
    ports = {f"MNIST_{server}_PORT": str(free_port()) for server in ("PREFECT", "REPORT", "MLFLOW")}
    ui, reports = (f"http://127.0.0.1:{ports[f'MNIST_{server}_PORT']}" for server in ("PREFECT", "REPORT"))
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"  # `make up` writes .env there
        subprocess.run(["git", "clone", "--quiet", CHECKOUT, checkout], check=True)
        environment = without_settings(MNIST_HOME=str(home), **ports)

        def make(command: str) -> None:
            subprocess.run(
                [sys.executable, "-m", "service.server", command],
                cwd=checkout,
                env=environment,
                stdout=subprocess.DEVNULL,
                check=True,
            )

        make("up")
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            secret = (home / "secret").read_text().strip()
            user, password = secret.split(":")
            page = browser.new_context(http_credentials={"username": user, "password": password}).new_page()
            page.goto(ui)
            page.locator("input").first.fill(secret)
            page.keyboard.press("Enter")
            page.wait_for_url("**/dashboard**")

            def open_page(address: str, shows: str) -> Cost:
                page.goto("about:blank")
                started, cpu = time.perf_counter(), time.process_time()
                page.goto(address)
                page.locator(shows).first.wait_for()
                return Cost(wall=time.perf_counter() - started, cpu=time.process_time() - cpu, peak_mb=0)

            yield {
                "the reports' index": lambda: open_page(reports, "tbody tr"),
                "a report": lambda: open_page(f"{reports}/runs/{newest}/report.html", "h1"),
                "the runs in Prefect's UI": lambda: open_page(f"{ui}/v2/runs", "a[href*='flow-run/']"),
                "a run in Prefect's UI": lambda: open_page(
                    f"{ui}/v2/runs/flow-run/{newest}?tab=Artifacts", "text=model-card"
                ),
            }
            browser.close()
        finally:
            make("down")


def free_port() -> int:
    """A port that no process uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fill(n: int) -> None:
    """Run the pipeline with the defaults of `make train`."""
    from service.environment import prepare, server

    prepare()
    with server() as ready:
        from flows.train import mnist

        if ready:
            ready()
        for _ in range(n):
            mnist()


if __name__ == "__main__":
    fill(int(sys.argv[1]))
