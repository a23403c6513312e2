"""`make bench`: measure what was asked for, and write it to benchmarks/results/ as JSON, tables and figures."""

import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, CliApp

from artifacts.settings import CHECKOUT
from benchmarks import growth, many, orchestration, page, training
from benchmarks.measure import Row, machine
from tasks.model.processor import has_bfloat16

# By the arithmetic of the processor: figures of one kind are no measure of the other.
RESULTS = CHECKOUT / "benchmarks" / "results" / ("bfloat16" if has_bfloat16() else "float32")
Part = Literal["training", "presets", "cold", "cached", "setup", "growth", "many"]
PARTS: dict[Part, Callable[[int], Any]] = {
    "training": training.against_the_seed,
    "presets": training.presets,
    "cold": orchestration.cold,
    "cached": orchestration.cached,
    "setup": orchestration.setup,
    "growth": growth.growth,
    "many": many.many,
}


class Bench(BaseSettings):
    """Measure what a run costs, side by side on this machine; the results go to benchmarks/results/."""

    parts: list[Part] = Field(
        default=["training", "cold", "cached", "setup", "growth"],
        description="What to measure. `training`: the fit beside the notebook's; `presets`: each with three seeds, "
        "which takes hours; `cold`: a first run beside plain Python; `cached`: a run that reuses every step beside an "
        "empty flow; `setup`: a fresh clone; `growth`: ten times the data; `many`: a thousand runs, an hour.",
    )
    repeats: int = Field(default=3, ge=1, description="How often; the tables have the medians.")

    def cli_cmd(self) -> None:
        """Measure part after part; each is written as soon as it is there."""
        for part in self.parts:
            load = os.getloadavg()[0]  # a figure from a busy machine says so
            print(f"{part} (load before: {load:.1f})", flush=True)
            rows: Iterable[Row] = PARTS[part](self.repeats)
            content = {
                "part": part,
                "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
                "load_before": load,
                "machine": machine(),
                "rows": [row.model_dump() for row in rows],
            }
            RESULTS.mkdir(parents=True, exist_ok=True)
            (RESULTS / f"{part}.json").write_text(json.dumps(content, indent=1) + "\n")
            page.write(RESULTS)
        print(RESULTS / "README.md")


if __name__ == "__main__":
    CliApp.run(Bench)
