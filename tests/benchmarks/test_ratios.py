"""That a run stays as cheap as it was: CPU seconds as a ratio to something that doesn't change, measured in turns.

To change a ratio on purpose, run these tests with `--capture=no`, on a machine with nothing else to do, and write what
they print.
"""

import statistics
import time
from itertools import count

import numpy as np
import pytest

from artifacts.dataset import Split
from benchmarks import seed
from benchmarks.measure import alternate, measure
from tasks.checkpoint import Checkpoint
from tasks.ingest import package_file, read_package
from tasks.train import TrainParameters, build, dtype_policy, fit
from tests.conftest import as_flags

# By the arithmetic that the processor has: the seed's five epochs cost so many times the fit of `make train`.
FIT = {"mixed_bfloat16": 11.0, "float32": 6.5}
# A run that reuses every step costs so many times an empty flow.
CACHED = 1.6
LOSS = 0.3
N_IMAGES, N_VALIDATION = 12_800, 1_200


def cpu_seconds(work):
    started = time.process_time()
    work()
    return time.process_time() - started


@pytest.mark.timeout(900)  # a slow or busy machine may take long; only the ratio counts
@pytest.mark.usefixtures("home")
def test_a_fit_costs_no_larger_share_of_the_seeds_than_it_did():
    arrays = read_package(package_file())
    train, validation = (
        Split((arrays["x_train"][part] / np.float32(255))[..., np.newaxis], arrays["y_train"][part])
        for part in (slice(N_IMAGES), slice(N_IMAGES, N_IMAGES + N_VALIDATION))
    )
    parameters, keys = TrainParameters(), count()

    def ours():
        model = build(parameters.network, dtype_policy(parameters))
        fit(model, train, validation, parameters, Checkpoint(f"{next(keys)}"))

    def an_epoch_of_the_seeds():
        seed.compiled().fit(train.x, train.y, validation_data=validation, verbose=0)

    ratio = statistics.median(5 * cpu_seconds(an_epoch_of_the_seeds) / cpu_seconds(ours) for _ in range(3))
    print(f"the seed's five epochs cost {ratio:.2f} times the fit in {dtype_policy(parameters)}")
    assert ratio > FIT[dtype_policy(parameters)] * (1 - LOSS)


@pytest.mark.timeout(900)
def test_a_cached_run_costs_no_more_beside_an_empty_flow_than_it_did(sample_parameters, tmp_path):
    flags = as_flags(sample_parameters)

    def run():
        return measure("-m", "flows", "train", *flags, MNIST_HOME=str(tmp_path))

    for _ in range(2):  # the second one asks the registry, which the first one changed
        run()
    ways = {"cached run": run, "empty flow": lambda: measure("-m", "benchmarks.empty", MNIST_HOME=str(tmp_path))}
    cached, empty = alternate(ways, repeats=3)
    ratio = cached.median("cpu") / empty.median("cpu")
    print(f"a cached run costs {ratio:.2f} times an empty flow")
    assert ratio < CACHED * (1 + LOSS)
