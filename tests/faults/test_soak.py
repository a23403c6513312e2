"""Two hundred runs in a row through `make up`: nothing grows but what is new. `make soak` prints the figures."""

import json
import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import as_flags

N_RUNS = int(os.environ.get("SOAK_RUNS", "200"))
EVERY = N_RUNS // 4  # a row of the table
WARM_UP = 10
PROGRAMS = {
    "server": "service.web:prefect",
    "reports": "service.web:reports",
    "mlflow": "service.web:mlflow",
    "worker": "worker start",
}
# What a program may gain between the first quarter and the end, in MB: Python's heap goes up and down by some, the
# worker's most. Of each run Prefect leaves clients in cycles, with 0.9 MB of OpenSSL's, until Python collects them,
# which it does by the number of objects: after a collection 25.4 MB were in use, and 25.4 MB thirty runs later.
NOISE = 40
# And in files and threads: idle connections and pools come and go.
FEW = 15

RUN_BY_WORKER = """
import sys
from json import loads
from prefect.deployments import run_deployment
run = run_deployment("mnist/train", parameters=loads(sys.argv[1]), poll_interval=1, as_subflow=False)
print(run.state.type.value)
"""


@pytest.fixture(scope="module")
def own_checkout(own_checkout, tmp_path_factory):
    """A copy of the checkout with its own folder of temporary files, and a worker that looks for runs each second."""
    own_checkout.environment |= {
        "TMPDIR": str(tmp_path_factory.mktemp("temporary")),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    return own_checkout


def measure(own_deployed):
    """What `make up` takes when no run goes: memory in MB, open files, processes, disk in kB by kind."""
    deadline = time.monotonic() + 60  # a run's process ends a moment after the run
    while any("prefect.engine" in command for command in own_deployed.processes()) and time.monotonic() < deadline:
        time.sleep(1)
    row = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"MNIST_HOME={own_deployed.home}\0".encode() not in (folder / "environ").read_bytes():
                continue
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            status = dict(
                line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line
            )
            row["processes"] = row.get("processes", 0) + 1
            for name, mark in PROGRAMS.items():
                if mark in command:
                    row[f"{name} MB"] = int(status["VmRSS"].split()[0]) // 1024
                    row[f"{name} files"] = len(list((folder / "fd").iterdir()))
                    row[f"{name} threads"] = int(status["Threads"])
        except (FileNotFoundError, PermissionError, ProcessLookupError):  # gone, or not ours
            continue
    return row | disk(own_deployed.home)


def disk(home):
    """What lies under MNIST_HOME, in kB by folder; bytes with several names count where they come first."""
    seen, sizes = set(), Counter()
    for kind in ("store", "mlflow", "runs", "results", "prefect", "server", "checkpoints", "locks"):
        for file in (home / kind).rglob("*"):
            stat = file.lstat()
            if file.is_file() and stat.st_ino not in seen:
                seen.add(stat.st_ino)
                sizes[f"{kind} kB"] += stat.st_blocks // 2
    return {
        **sizes,
        "store entries": len(list((home / "store").glob("*/*"))),
        "lock files": len(list((home / "locks").iterdir())),
    }


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_two_hundred_runs_leave_only_what_is_new(own_deployed, sample_parameters):
    def parameters(number):
        # Every tenth trains anew.
        return sample_parameters | {"train": {**sample_parameters["train"], "seed": number // 10}}

    failed = []
    temporary = Path(own_deployed.environment["TMPDIR"])

    def by_worker(number):
        done = own_deployed.python(RUN_BY_WORKER, json.dumps(parameters(number)))
        if done.strip() != "COMPLETED":
            failed.append((number, done))

    def by_command_line(number):
        done = own_deployed.run("python", "-m", "flows", "train", *as_flags(parameters(number)), check=False)
        if done.returncode:
            failed.append((number, done.stderr))

    def do(numbers):
        """The even ones through the worker, the odd ones from a shell, both at the same time."""
        lanes = [
            threading.Thread(target=lambda lane=lane, part=part: [lane(number) for number in part])
            for lane, part in ((by_worker, numbers[::2]), (by_command_line, numbers[1::2]))
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()

    do(range(WARM_UP))
    rows = {0: measure(own_deployed) | {"temporary files": len(list(temporary.rglob("*")))}}
    for start in range(0, N_RUNS, EVERY):
        do(range(WARM_UP + start, WARM_UP + start + EVERY))
        rows[start + EVERY] = measure(own_deployed) | {"temporary files": len(list(temporary.rglob("*")))}
    for name in sorted({name for row in rows.values() for name in row}):
        print(f"{name:<20}", *(f"{row.get(name, 0):>10,}" for row in rows.values()))  # noqa: T201
    assert failed == []
    first, last = rows[EVERY], rows[N_RUNS]
    for program in PROGRAMS:
        assert last[f"{program} MB"] - first[f"{program} MB"] <= NOISE
        assert last[f"{program} files"] - first[f"{program} files"] <= FEW
        assert last[f"{program} threads"] - first[f"{program} threads"] <= FEW
    assert last["processes"] == first["processes"]
    assert last["temporary files"] <= first["temporary files"]
    assert not list((own_deployed.home / "checkpoints").glob("*"))
    assert not list((own_deployed.home / "store").glob(".writing-*"))
