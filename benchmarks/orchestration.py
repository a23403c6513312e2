"""What the orchestration costs: a cold run next to a plain script, a cached run next to an empty flow, the set-up."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from artifacts.settings import CHECKOUT
from benchmarks.measure import Cost, Row, alternate, measure, without_settings

# Runs a server as a run does, until its standard input ends.
SERVE = """
import sys
from service.environment import prepare, temporary_server
prepare()
with temporary_server() as (url, ready):
    ready()
    print(url, flush=True)
    sys.stdin.read()
"""
# By stage of `make train`: the line that ends the stage.
MILESTONES = {
    "the virtual environment and uv": r"installing the locked packages",
    "the locked packages, first imports": r"temporary server",
    "the server's first start": r"Beginning flow run",
    "ingest": r"'ingest-.*Finished",
    "validate": r"'validate-.*Finished",
    "check-labels, with TensorFlow's import": r"'check-labels-.*Finished",
    "the network built": r"'train-.*training baseline",  # check-labels trains as well
    "the first half of the training": r"'train-.*epoch \d\.\d\d of",
}


def cold(repeats: int) -> list[Row]:
    """A first run on the full MNIST, and the same work in plain Python with and without a server.

    Returns:
        Their costs; `outside` is the wall time without that of the fit.
    """
    with tempfile.TemporaryDirectory() as folder:
        homes = (Path(folder) / str(number) for number in count())

        def flow() -> Cost:
            home = next(homes)
            cost = measure("-m", "flows", "train", MNIST_HOME=str(home))
            (metrics,) = (home / "runs").glob("*/metrics.json")
            return without_fit(cost, json.loads(metrics.read_text())["fit_seconds"])

        def plain(*flags: str) -> Cost:
            cost = measure("-m", "benchmarks.plain", *flags, MNIST_HOME=str(next(homes)))
            return without_fit(cost, cost.told["fit"])

        ways = {
            "make train, cold": flow,
            "plain script with a server": lambda: plain("--server"),
            "plain script without a server": plain,
        }
        return alternate(ways, repeats)


def without_fit(cost: Cost, fit: float) -> Cost:
    """The cost, with the seconds of the fit and those outside of the fit."""
    return cost.model_copy(update={"told": {"fit": fit, "outside": cost.wall - fit}})


def cached(repeats: int) -> list[Row]:
    """A cached run, an empty flow, and an empty flow that imports MLflow, with their own and with a running server."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):  # the second one asks the registry, which the first one changed
            measure("-m", "flows", "train", MNIST_HOME=folder)

        def rows(setting: str, **variables: str) -> list[Row]:
            commands = {
                "make train, cached": ("flows", "train"),
                "empty flow": ("benchmarks.empty",),
                "empty flow that imports MLflow": ("benchmarks.empty", "--mlflow"),
            }

            def way(command: tuple[str, ...]) -> Callable[[], Cost]:
                return lambda: measure("-m", *command, MNIST_HOME=folder, **variables)

            return alternate({f"{name}, {setting}": way(command) for name, command in commands.items()}, repeats)

        own = rows("own server")
        with running_server(folder) as url:
            return own + rows("running server", PREFECT_API_URL=url)


@contextmanager
def running_server(home: str) -> Iterator[str]:
    """Run a Prefect server on the database of an MNIST_HOME. Yields the address of its API.

    Raises:
        RuntimeError: Raised if the server doesn't start.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        cwd=CHECKOUT,
        env=without_settings(MNIST_HOME=home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the server has no pipes")
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"no Prefect server started on {home}")
        yield address
    finally:
        process.stdin.close()
        process.wait()


def setup(repeats: int) -> list[Row]:
    """`make train` in fresh clones with empty package caches until the first validation: the seconds of each stage."""
    return alternate({"make train in a fresh clone": to_the_first_validation}, repeats)


def to_the_first_validation() -> Cost:
    """Clone, set up and start; interrupt the run when it trains."""
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        subprocess.run(["git", "clone", "--quiet", CHECKOUT, checkout], check=True)
        environment = without_settings(UV_CACHE_DIR=f"{folder}/uv", PIP_CACHE_DIR=f"{folder}/pip", PYTHONUNBUFFERED="1")
        started = last = time.perf_counter()
        process = subprocess.Popen(
            ["make", "train", f"PYTHON={sys.executable}"],
            cwd=checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        stages: dict[str, float] = {}
        try:
            for line in process.stdout or ():
                for stage, pattern in MILESTONES.items():
                    if stage not in stages and re.search(pattern, line):
                        now = time.perf_counter()
                        stages[stage], last = now - last, now
                if len(stages) == len(MILESTONES):
                    break
            else:
                raise RuntimeError(f"make train ended without {', '.join(MILESTONES.keys() - stages.keys())}")
        finally:
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does; the run ends its server
            for _ in process.stdout or ():
                pass
            _, process.returncode, usage = os.wait4(process.pid, 0)
        return Cost(
            wall=last - started, cpu=usage.ru_utime + usage.ru_stime, peak_mb=usage.ru_maxrss * 1024 / 1e6, told=stages
        )
