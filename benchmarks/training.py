"""What the fit costs, by preset, next to the notebook's, and how many test images are wrong after it."""

import json
import tempfile
from collections.abc import Callable
from itertools import count
from typing import Any

from benchmarks.measure import Cost, Row, alternate, measure
from tasks.model.processor import has_bfloat16
from tasks.model.recipe import PRESETS


def against_the_seed(repeats: int) -> list[Row]:
    """The notebook's five epochs, and the fit of `make train` in each arithmetic of the processor; seeds from 0 on."""
    precisions = ["bfloat16", "float32"] if has_bfloat16() else ["float32"]
    ways = {"the seed, five epochs": the_seeds_script} | {
        f"make train, {precision}": training(precision=precision) for precision in precisions
    }
    return alternate(ways, repeats)


def presets(repeats: int) -> list[Row]:
    """Each preset in its own arithmetic, and the preset `seed` as a user would run it."""
    ways = {"the seed's script": the_seeds_script} | {preset: training(preset=preset) for preset in PRESETS}
    return alternate(ways, repeats)


def the_seeds_script() -> Cost:
    """The notebook's five epochs, as its script does them."""
    return measure("-m", "benchmarks.seed")


def training(**parameters: Any) -> Callable[[], Cost]:
    """A way to train. Each time, it uses the next seed and a new store, so that nothing is reused."""
    seeds = count()

    def train() -> Cost:
        with tempfile.TemporaryDirectory() as home:
            return measure("-m", "benchmarks.fit", json.dumps(parameters | {"seed": next(seeds)}), MNIST_HOME=home)

    return train
