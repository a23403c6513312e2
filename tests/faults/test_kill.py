"""kill -9: of a run's process at any instant, of its worker, of both, of the server; the run completes by itself."""

import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from artifacts.store import digest_file
from service.recovery import MAX_CRASHES, PAUSE, SILENCE
from tests.deployed import Deployed

FINAL = {"Completed", "Failed", "Cancelled"}  # Crashed isn't: the run goes on
# What a restart may take on a busy machine, besides the pause: the worker's poll, imports, the steps again.
RESTART = PAUSE.total_seconds() + 220


class Run:
    """A run of the sample by the deployment, and the kills that it is to survive."""

    def __init__(self, deployed: Deployed, parameters: dict, seed: int):
        from prefect.client.orchestration import SyncPrefectClient

        self.deployed = deployed
        secret = (deployed.home / "secret").read_text().strip()
        self.client = SyncPrefectClient(f"{deployed.ui}/api", auth_string=secret)
        deployment = self.client.read_deployment_by_name("mnist/train")
        own = parameters | {"train": {**parameters["train"], "seed": seed}}  # nothing to reuse: it trains
        self.id = str(self.client.create_flow_run_from_deployment(deployment.id, parameters=own).id)
        self.kills: list[float] = []
        self.checkpoints = set((deployed.home / "checkpoints").glob("*"))  # of a run that `make down` ended, say
        self.seen: set[int] = set()

    def state(self):
        """Its state; none while the server is away."""
        with suppress(httpx.HTTPError):
            return self.client.read_flow_run(self.id).state

    def process(self) -> int | None:
        """The process that runs it, once: the next call waits for the next process. None if the run has ended."""
        deadline = time.monotonic() + RESTART
        while time.monotonic() < deadline:
            for folder in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    mine = f"PREFECT__FLOW_RUN_ID={self.id}".encode() in (folder / "environ").read_bytes()
                    pid = int(folder.name)
                    if mine and b"prefect.engine" in (folder / "cmdline").read_bytes() and pid not in self.seen:
                        self.seen.add(pid)
                        return pid
            if (state := self.state()) and state.name in FINAL:
                return None
            time.sleep(0.1)
        return pytest.fail(f"the run wasn't started in {RESTART:.0f} s; it is {self.state()}")

    def kill(self, *processes: int) -> None:
        """Kill -9, in one go."""
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.kills.append(time.time())

    def end(self, within: float) -> str:
        """The name of the state in which it ends."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if (state := self.state()) and state.name in FINAL:
                return state.name
            time.sleep(0.5)
        return pytest.fail(f"the run hasn't ended in {within:.0f} s; it is {self.state()}")

    def assert_whole(self) -> None:
        """It trained never twice at once, registered once; no file of the store is torn; the champion loads."""
        folder = self.deployed.home / "runs" / self.id
        steps = {step["name"]: step for step in json.loads((folder / "manifest.json").read_text())["steps"]}
        assert steps["train"]["state"] == "computed", "it never trained"
        # Lines that were sent while the server was away are lost.
        started = sorted(log.timestamp.timestamp() for log in self.training_logs())
        for first, second in pairwise(started):
            assert any(first < kill < second for kill in self.kills), "it was trained twice at once"
        from mlflow import MlflowClient

        registry = MlflowClient(f"sqlite:///{self.deployed.home}/mlflow/mlflow.db")
        versions = registry.search_model_versions("name = 'mnist'")
        assert len([v for v in versions if v.tags["prefect_flow_run_id"] == self.id]) == 1
        champion = registry.get_model_version_by_alias("mnist", "champion")
        assert champion.version in {v.version for v in versions}
        for file in (self.deployed.home / "store").glob("??/*"):
            assert digest_file(file) == file.name.partition(".")[0]
        assert list(folder.glob(".*")) == []
        assert set((self.deployed.home / "checkpoints").glob("*")) <= self.checkpoints

    def training_logs(self):
        """The lines with which the step `train` begins to train; `check-labels` trains too."""
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        of_this_run = FlowRunFilter(id=FlowRunFilterId(any_=[self.id]))
        steps = {
            run.id for run in self.client.read_task_runs(flow_run_filter=of_this_run) if run.name.startswith("train-")
        }
        return [log for log in self.logs() if log.task_run_id in steps and log.message.startswith("training ")]

    def logs(self):
        """What the server has of its log; what a killed process hadn't sent is lost."""
        from prefect.client.schemas.filters import LogFilter

        found = []
        while True:
            page = self.client.read_logs(LogFilter(flow_run_id={"any_": [self.id]}), limit=200, offset=len(found))
            found += page
            if len(page) < 200:
                return found


@pytest.fixture
def start(deployed, sample_parameters):
    def start(seed: int) -> Run:
        return Run(deployed, sample_parameters, seed)

    return start


def supervised(deployed: Deployed, name: str) -> tuple[int, int]:
    """The process ids of the supervisor, and of one of what it keeps running."""
    supervisor = int((deployed.home / "server" / "supervisord.pid").read_text())
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for file in Path(f"/proc/{supervisor}/task").glob("*/children"):
            for child in file.read_text().split():
                with suppress(OSError):
                    if name in Path(f"/proc/{child}/cmdline").read_text():
                        return supervisor, int(child)
        time.sleep(0.2)
    return pytest.fail(f"no {name} is running")


def test_a_killed_run_goes_on_by_itself(deployed, start, came):
    run = start(1)
    process = run.process()
    while not run.training_logs():
        time.sleep(0.2)
    run.kill(process)
    assert run.end(RESTART) == "Completed"
    came("the run's process, in its training", "recovered", time.time() - run.kills[-1])
    run.assert_whole()
    assert deployed.load_champion() == "3156098"


@pytest.fixture(scope="module")
def undisturbed(deployed, sample_parameters) -> float:
    """Seconds from the start of a run's process to its end, if nobody kills it."""
    run = Run(deployed, sample_parameters, 100)
    run.process()
    begun = time.monotonic()
    assert run.end(RESTART) == "Completed"
    return time.monotonic() - begun


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 207))
def test_a_run_survives_kills_at_any_instant(deployed, start, came, undisturbed, seed):
    """As many kills as a run may have, each at an instant of its share of an undisturbed run's time.

    Finished steps are reused after a kill, so the next one comes by the distance of the two later.
    """
    run, chance = start(seed), random.Random(seed)  # noqa: S311 - no secret
    share = undisturbed / (MAX_CRASHES - 1)
    instants = [share * (n + chance.random()) for n in range(MAX_CRASHES - 1)]
    for before, instant in pairwise([0.0, *instants]):
        process = run.process()
        if process is None:
            break
        time.sleep(instant - before)
        if (state := run.state()) and state.name in FINAL:
            break
        run.kill(process)
    assert run.end(RESTART) == "Completed"
    for _ in run.kills:
        came("the run's process, at a random instant", "recovered", time.time() - run.kills[-1])
    run.assert_whole()
    assert deployed.load_champion() == "3156098"


@pytest.mark.slow
def test_a_run_that_crashes_each_time_fails(start, came):
    run = start(300)
    for _ in range(MAX_CRASHES):
        run.kill(run.process())
    assert run.end(RESTART) == "Failed"
    assert f"it crashed {MAX_CRASHES} times and isn't started again" in run.state().message
    came("the run's process, each time", "clear error", time.time() - run.kills[-1])


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_run_survives_its_worker(deployed, start, came, undisturbed, share):
    run = start(400 + int(10 * share))
    run.process()
    time.sleep(share * undisturbed)
    run.kill(supervised(deployed, "worker")[1])
    assert run.end(2 * RESTART) == "Completed"
    came("the worker", "recovered", time.time() - run.kills[-1])
    run.assert_whole()


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_run_survives_its_worker_and_its_process(deployed, start, came, undisturbed, share):
    run = start(500 + int(10 * share))
    process = run.process()
    time.sleep(share * undisturbed)
    run.kill(supervised(deployed, "worker")[1], process)
    assert run.end(SILENCE.total_seconds() + RESTART) == "Completed"
    came("the worker and the run's process", "recovered", time.time() - run.kills[-1])
    run.assert_whole()


@pytest.mark.slow
@pytest.mark.parametrize("away", [10, 120])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_run_survives_the_server(deployed, start, came, undisturbed, away, share):
    run = start(600 + away + int(10 * share))
    run.process()
    time.sleep(share * undisturbed)
    supervisor, server = supervised(deployed, "web:prefect")
    os.kill(supervisor, signal.SIGSTOP)  # else it would start the server again at once
    try:
        run.kill(server)
        time.sleep(away)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    assert run.end(SILENCE.total_seconds() + 2 * RESTART) == "Completed"
    came(f"the server, away for {away} s", "recovered", time.time() - run.kills[-1])
    run.assert_whole()


@pytest.mark.slow
def test_gc_removes_what_killed_processes_were_writing(deployed, start):
    deployed.run(sys.executable, "-m", "flows", "gc", "--keep.days=0", "--apply")
    assert list((deployed.home / "store").glob(".writing-*")) == []
    assert deployed.load_champion() == "3156098"
