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

# A folder for each arithmetic, because figures of processors with and without bfloat16 can't be compared.
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
    """Measure what a run costs, side by side on this machine. The results go to benchmarks/results/."""

    parts: list[Part] = Field(
        default=["training", "cold", "cached", "setup", "growth"],
        description="What to measure. `training`: the fit next to the notebook's; `presets`: each with three seeds, "
        "which takes hours; `cold`: a first run next to plain Python; `cached`: a run that reuses every step, next to "
        "an empty flow; `setup`: a fresh clone; `growth`: ten times the data; `many`: a thousand runs, an hour.",
    )
    repeats: int = Field(default=3, ge=1, description="How often to measure. The tables have the medians.")

    def cli_cmd(self) -> None:
        """Measure part after part, and write each result at once."""
        for part in self.parts:
            load = os.getloadavg()[0]  # so that a figure from a busy machine can be recognised
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
