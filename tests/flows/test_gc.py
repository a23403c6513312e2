"""`make gc` and `make train` on a real server: what is removed and comes back, and a run that goes meanwhile."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.ingest import IngestParameters
from tasks.operations.gc import GcParameters
from tasks.registry.versions import connect
from tests.flows.conftest import Run
from tests.flows.test_train import FILES, STEPS

ALL = GcParameters(days=0, runs=1, versions=1)


@pytest.fixture
def gc(prefect_server, home):
    """Run the flow, with Prefect's results in MNIST_HOME."""
    from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings

    from flows.gc import gc

    with temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: home / "results"}):
        yield gc


def flow_runs(collection):
    return next(row.removed for row in collection.rows if row.what == "Prefect flow runs")


def test_what_goes_can_be_made_again_and_what_stays_is_whole(gc, run_flow, sample, home, tmp_path):
    from prefect.exceptions import ObjectNotFound

    # The first waits for an approval that never comes, the second becomes champion, the newest run fails.
    held = sample | {"gate": sample["gate"].model_copy(update={"hold_for_approval": True})}
    promoted = sample | {"train": sample["train"].model_copy(update={"seed": 1})}
    first, second = run_flow(**held), run_flow(**promoted)
    run_flow(**sample | {"ingest": IngestParameters(source="path", path=tmp_path / "nothing.npz")})
    weights = first.manifest["weights_digest"]
    client = connect()
    mlflow_run = client.get_model_version("mnist", "1").run_id

    dry = gc(ALL)
    assert [row.names for row in dry.rows if row.names] == [(first.id,), ("1",)]
    assert {path.name for path in first.folder.iterdir()} == FILES
    done = gc(ALL, apply=True)
    assert done.size == dry.size > 4 * 12_000_000  # a model of 12 MB in two formats, in the store and in MLflow
    # The first gc's own run went too: its flow leaves no folder.
    assert flow_runs(done) == flow_runs(dry) + 1

    assert not first.folder.exists()
    assert [int(version.version) for version in client.search_model_versions("name = 'mnist'")] == [2]
    assert not [path for path in (home / "mlflow" / "artifacts" / mlflow_run).rglob("*") if path.is_file()]
    with pytest.raises(ObjectNotFound):
        Run(first.id, home)
    assert {path.name for path in second.folder.iterdir()} == FILES
    assert Run(second.id, home).artifacts == second.artifacts

    again, remade = run_flow(**promoted), run_flow(**held)
    assert {again.states[step] for step in STEPS} == {"Cached"}
    assert {step for step in STEPS if remade.states[step] != "Cached"} >= {"train", "evaluate", "infra-validate"}
    assert (remade.manifest["weights_digest"], remade.manifest["version"]) == (weights, 3)
    assert {path.name for path in remade.folder.iterdir()} >= FILES


def test_a_run_that_goes_keeps_the_files_of_the_results_that_it_reuses(gc, run_flow, sample, home, tmp_path):
    from prefect.settings import PREFECT_API_URL

    # Two runs that end before anything is registered: no version and no newest run holds on to the first one's data.
    strict = sample["validate"].model_copy(update={"n_train": 201})
    refused = run_flow(**sample | {"validate": strict})
    run_flow(**sample | {"ingest": IngestParameters(source="path", path=tmp_path / "nothing.npz")})

    going = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "flows",
            "train",
            *(f"--{name}={value.model_dump_json()}" for name, value in sample.items()),
        ],
        env=os.environ
        | {"PREFECT_API_URL": PREFECT_API_URL.value(), "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "results")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while "Finished in state Cached" not in (line := going.stderr.readline()):
            assert line, "the run ended before it reused the first one's data"
        assert going.poll() is None
        done = gc(ALL, apply=True)
        output, _ = going.communicate(timeout=100)
    finally:
        going.kill()
    assert going.returncode == 0
    folder = next(Path(line.split()[-1]) for line in output.splitlines() if "the run's folder" in line)
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "manifest.json").read_text())["steps"][0]["reused_from"] == refused.id
    # The data are the new run's now; the folders of the two others are old.
    assert next(row for row in done.rows if row.what == "run folders").removed == 2
    assert run_flow(**sample).states["ingest"] == "Cached"
