"""That a run stays as cheap as it was: CPU seconds as a ratio to something that doesn't change, measured in turns.

To change a ratio on purpose, run these tests with `--capture=no`, on a machine with nothing else to do, and write what
they print.
"""

from itertools import count

import pytest

from benchmarks.measure import alternate, measure
from benchmarks.orchestration import running_server
from tasks.model.recipe import TrainParameters, dtype_policy
from tests.conftest import as_flags

# By the arithmetic that the processor has: the seed's five epochs cost so many times the fit of `make train`.
FIT = {"mixed_bfloat16": 11.0, "float32": 10.5}
# A run that reuses every step costs so many times an empty flow, with a server that runs.
CACHED = 1.6
LOSS = 0.3
# A longer look follows only if the first one says that something became dearer: it may have been the machine.
LOOKS = (1, 3)
# Each fit has a process of its own, in which it alone decides what TensorFlow is to use. The seed's needs half as many
# images for as good a measurement.
SPLITS = """
from service.environment import prepare
prepare()
import json, time
import numpy as np
from artifacts.dataset import Split
from tasks.data.sources import package_file, read_package
arrays = read_package(package_file())
train, validation = (
    Split((arrays["x_train"][part] / np.float32(255))[..., np.newaxis], arrays["y_train"][part])
    for part in (slice(n), slice(n, n + n // 10))
)
def tell(work):
    started = time.process_time()
    work()
    print(json.dumps({"fit_cpu": time.process_time() - started}))
"""
HALF_AN_EPOCH_OF_THE_SEEDS = f"""n = 6_400
{SPLITS}
from benchmarks.seed import compiled
tell(lambda: compiled().fit(train.x, train.y, validation_data=validation, verbose=0))
"""
OURS = f"""n = 12_800
{SPLITS}
from tasks.model.checkpoint import Checkpoint
from tasks.model.fit import build, fit
from tasks.model.recipe import TrainParameters, dtype_policy
from tasks.model.saved import import_keras
from tasks.running.logs import Progress
parameters = TrainParameters()
import_keras()
policy = dtype_policy(parameters)
model = build(parameters.network, policy, parameters.seed)
tell(lambda: fit(model, train, validation, parameters, Checkpoint("key"), Progress()))
"""


def test_what_this_process_told_libraries_is_not_told_to_what_is_measured(monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")  # as importing Keras here does
    code = (
        "import json, os; print(json.dumps({name: value for name, value in os.environ.items() if name[:3] == 'TF_'}))"
    )
    assert measure("-c", code).told == {}
    assert measure("-c", code, TF_ENABLE_ONEDNN_OPTS="0").told == {"TF_ENABLE_ONEDNN_OPTS": "0"}


@pytest.mark.timeout(900)  # a slow or busy machine may take long; only the ratio counts
def test_a_fit_costs_no_larger_share_of_the_seeds_than_it_did(tmp_path):
    codes = {"half an epoch of the seed's": HALF_AN_EPOCH_OF_THE_SEEDS, "ours": OURS}
    homes = (str(tmp_path / str(number)) for number in count())  # so that none goes on from another's checkpoint
    ways = {name: lambda code=code: measure("-c", code, MNIST_HOME=next(homes)) for name, code in codes.items()}
    arithmetic = dtype_policy(TrainParameters())
    least = FIT[arithmetic] * (1 - LOSS)
    for repeats in LOOKS:
        theirs, ours = alternate(ways, repeats)
        ratio = 10 * theirs.median("fit_cpu") / ours.median("fit_cpu")
        print(f"the seed's five epochs cost {ratio:.2f} times the fit in {arithmetic}")
        if ratio > least:
            break
    assert ratio > least


@pytest.mark.timeout(900)
def test_a_cached_run_costs_no_more_beside_an_empty_flow_than_it_did(sample_parameters, tmp_path):
    home = str(tmp_path)
    with running_server(home) as url:

        def run(*command):
            return measure("-m", *command, MNIST_HOME=home, PREFECT_API_URL=url)

        def train():
            return run("flows", "train", *as_flags(sample_parameters))

        for _ in range(2):  # the second one asks the registry, which the first one changed
            train()
        for repeats in LOOKS:
            cached, empty = alternate({"cached run": train, "empty flow": lambda: run("benchmarks.empty")}, repeats)
            ratio = cached.median("cpu") / empty.median("cpu")
            print(f"a cached run costs {ratio:.2f} times an empty flow")
            if ratio < CACHED * (1 + LOSS):
                break
    assert ratio < CACHED * (1 + LOSS)
