"""What a user does: `make up`, run the deployment from a shell, read the run, load the model, use the schedule."""

import json
import stat
import time

import numpy as np
import pytest

READ_RUN = """
import json
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
with get_client(sync_client=True) as client:
    runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(name={"any_": ["%s"]}))
    tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [runs[0].id]}))
    artifacts = client.read_artifacts(flow_run_filter=FlowRunFilter(id={"any_": [runs[0].id]}))
    print(json.dumps({
        "id": str(runs[0].id),
        "state": runs[0].state.name,
        "message": runs[0].state.message,
        "tasks": {task.name.rsplit("-", 1)[0]: task.state.name for task in tasks},
        "artifacts": {artifact.key: artifact.data for artifact in artifacts if artifact.key},
    }))
"""

CREATE_SCHEDULE = """
from datetime import timedelta
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import IntervalSchedule
with get_client(sync_client=True) as client:
    every = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(seconds=20)), parameters=%r)
    deployment = client.read_deployment_by_name("mnist/train")
    route = f"/deployments/{deployment.id}/schedules"
    client._client.post(route, json=[every.model_dump(mode="json")]).raise_for_status()
"""


def start(deployed, parameters, name, *, check=True):
    flags = [f"--param={key}={json.dumps(value)}" for key, value in parameters.items()]
    return deployed.run(
        "prefect", "deployment", "run", "mnist/train", "--watch", "--flow-run-name", name, *flags, check=check
    )


def read(deployed, name):
    return json.loads(deployed.python(READ_RUN % name))


def test_a_run_from_a_shell(deployed, sample_parameters, sample_npz, tmp_path):
    start(deployed, sample_parameters, "from-a-shell")
    run = read(deployed, "from-a-shell")
    assert run["state"] == "Completed"
    assert set(run["tasks"].values()) == {"Completed"}
    assert {"summary", "data-validation", "learning-curves", "lineage"} <= run["artifacts"].keys()
    assert "version 1 is the champion" in run["artifacts"]["summary"]
    assert (deployed.home / "runs" / run["id"] / "report.html").exists()

    loaded = deployed.python(
        "import mlflow; from artifacts.settings import Settings; mlflow.set_tracking_uri(Settings().tracking_uri);"
        "print(mlflow.keras.load_model('models:/mnist@champion').count_params())"
    )
    assert loaded.split()[-1] == "3156098"

    flags = [f"--param=images={sample_npz}", f"--param=output={tmp_path / 'labels.csv'}"]
    deployed.run("prefect", "deployment", "run", "mnist-score/batch", "--watch", *flags)
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 101


def test_the_command_line_uses_the_same_server_and_store(deployed, sample_parameters):
    start(deployed, sample_parameters, "before-make-train")
    flags = [f"--{key}={json.dumps(value)}" for key, value in sample_parameters.items()]
    result = deployed.run("python", "-m", "flows", "train", *flags)
    assert "Starting temporary server" not in result.stderr
    assert result.stdout.count("reused from run") == 10


def test_a_bad_value_is_refused_when_the_run_is_created(deployed):
    result = start(deployed, {"train": {"epochs": 0}}, "refused", check=False)
    assert result.returncode != 0
    assert "'train.epochs'" in result.stdout
    assert "0 is less than the minimum of 1" in result.stdout


def test_bad_data_fail_with_the_reason_on_the_page(deployed, sample_parameters, tmp_path):
    bad = sample_parameters | {"ingest": {"source": "path", "path": str(tmp_path / "nothing.npz")}}
    result = start(deployed, bad, "no-such-file", check=False)
    assert result.returncode != 0
    run = read(deployed, "no-such-file")
    assert run["state"] == "Failed"
    assert "nothing.npz can't be read: No such file" in run["message"]


def test_nobody_else_can_read_the_secret_or_the_api(deployed):
    for file in (deployed.home / "secret", deployed.checkout / ".env"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    answer = deployed.python(
        "import httpx; from prefect.settings import PREFECT_API_URL as url;"
        "print(*(httpx.get(f'{url.value()}/{route}').status_code for route in ('work_pools/local', 'health')))"
    )
    assert answer.split() == ["401", "200"]


def test_make_up_again_keeps_the_users_switch(deployed, checkout):
    read_switch = (
        "from prefect.client.orchestration import get_client\n"
        "with get_client(sync_client=True) as c: print(c.read_deployment_by_name('mnist/train').schedules[0].active)"
    )
    assert deployed.python(read_switch).strip() == "False"
    deployed.run("prefect", "deployment", "schedule", "resume", "mnist/train", schedule_id(deployed))
    checkout.run("python", "-m", "flows.server", "up")
    assert deployed.python(read_switch).strip() == "True"
    deployed.run("prefect", "deployment", "schedule", "pause", "mnist/train", schedule_id(deployed))


def schedule_id(deployed):
    return deployed.python(
        "from prefect.client.orchestration import get_client\n"
        "with get_client(sync_client=True) as c: print(c.read_deployment_by_name('mnist/train').schedules[0].id)"
    ).strip()


def test_a_schedule_fires_and_retrains_on_changed_data(deployed, sample_parameters, arrays, tmp_path):
    file = tmp_path / "growing.npz"
    np.savez(file, **arrays)
    scheduled = sample_parameters | {"ingest": {"source": "path", "path": str(file)}}
    deployed.python(CREATE_SCHEDULE % scheduled)
    manifests = wait_for_manifests(deployed, file, 1)
    arrays["x_train"][:, 14, 14] ^= 1
    temporary = tmp_path / "next.npz"
    np.savez(temporary, **arrays)
    temporary.replace(file)
    manifests = wait_for_manifests(deployed, file, 2)
    assert len({manifest["weights_digest"] for manifest in manifests}) == 2


def wait_for_manifests(deployed, file, n_digests):
    """Wait until runs of the file's data have seen so many different data."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        found = [json.loads(path.read_text()) for path in (deployed.home / "runs").glob("*/manifest.json")]
        found = [m for m in found if m["state"] == "completed" and m["parameters"]["ingest"]["path"] == str(file)]
        if len({manifest["data_digest"] for manifest in found}) >= n_digests:
            return found
        time.sleep(1)
    pytest.fail(f"no {n_digests} scheduled runs in time")
