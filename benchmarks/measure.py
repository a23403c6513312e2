"""What a command costs in wall seconds, CPU seconds and memory, next to other commands, and on which machine."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from artifacts.settings import CHECKOUT
from tasks.model.processor import describe_processor, has_bfloat16

LIBRARIES = ("prefect", "tensorflow", "keras", "mlflow", "great-expectations", "numpy")


class Cost(BaseModel):
    """The cost of one process and of all processes that it waited for.

    Attributes:
        wall: Seconds from start to end.
        cpu: CPU seconds, user and system.
        peak_mb: Peak memory of the largest process, in MB.
        told: What the process itself reports: the JSON of its last line, if that is an object.
    """

    wall: float
    cpu: float
    peak_mb: float
    told: dict[str, Any] = {}


class Row(BaseModel):
    """The costs of one way to do something, measured several times."""

    name: str
    costs: list[Cost]

    def median(self, what: str) -> float:
        """The median of `wall`, `cpu`, `peak_mb`, or of a number that the process reported."""
        return statistics.median(
            float(cost.told[what] if what in cost.told else getattr(cost, what)) for cost in self.costs
        )


def without_settings(**variables: str) -> dict[str, str]:
    """The caller's environment with these variables, and without our settings and those of libraries."""
    settings = ("MNIST_", "PREFECT_", "MLFLOW_", "TF_")
    return {name: value for name, value in os.environ.items() if not name.startswith(settings)} | variables


def measure(*arguments: str | Path, **variables: str) -> Cost:
    """Run a Python command in the checkout, with these variables instead of the caller's settings.

    Raises:
        RuntimeError: Raised if the command fails. The message has its output.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=CHECKOUT,
            env=without_settings(**variables),
            stdout=output,
            stderr=errors,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (output, errors):
            file.seek(0)
        printed = output.read()
        if process.returncode:
            raise RuntimeError(f"{arguments} ended with {process.returncode}:\n{printed}{errors.read()}")
    last = (printed.strip().splitlines() or [""])[-1]
    return Cost(
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        peak_mb=usage.ru_maxrss * 1024 / 1e6,
        told=json.loads(last) if last.startswith("{") else {},
    )


def alternate(ways: Mapping[str, Callable[[], Cost]], repeats: int) -> list[Row]:
    """Measure the ways in turn, `repeats` times, so that a disturbance of the machine affects all of them."""
    rows = [Row(name=name, costs=[]) for name in ways]
    for repeat in range(repeats):
        for row, way in zip(rows, ways.values(), strict=True):
            cost = way()
            row.costs.append(cost)
            print(f"  {repeat + 1}/{repeats}  {row.name:<44} {cost.wall:7.1f} s wall {cost.cpu:7.1f} CPU-s", flush=True)
    return rows


def machine() -> dict[str, str]:
    """What a reader needs to compare figures: processor, memory, system, versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": describe_processor(),
        "bfloat16": "yes" if has_bfloat16() else "no",
        "memory": f"{memory:.0f} GiB",
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
    }
