"""What a user does: `make up`, run the deployment from a shell, read the run, load the model, use the schedule."""

import base64
import json
import stat
import time

import httpx
import numpy as np
import pytest
from dotenv import dotenv_values

from tests.conftest import as_flags, computed

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
    answer = client._client.post(route, json=[every.model_dump(mode="json")])
    answer.raise_for_status()
    print(answer.json()[0]["id"])
"""


def start(deployed, parameters, name, *, check=True):
    flags = [f"--param={key}={json.dumps(value)}" for key, value in parameters.items()]
    return deployed.run(
        "prefect", "deployment", "run", "mnist/train", "--watch", "--flow-run-name", name, *flags, check=check
    )


def read(deployed, name):
    return json.loads(deployed.python(READ_RUN % name))


@pytest.fixture(scope="module")
def run(deployed, sample_parameters):
    """A finished run, started from a shell."""
    start(deployed, sample_parameters, "from-a-shell")
    return read(deployed, "from-a-shell")


def test_a_run_from_a_shell(deployed, run, sample_npz, tmp_path):
    assert run["state"] == "Completed"
    assert set(run["tasks"].values()) == {"Completed"}
    assert {"summary", "data-validation", "learning-curves", "lineage"} <= run["artifacts"].keys()
    assert "version 1 is the champion" in run["artifacts"]["summary"]
    assert (deployed.home / "runs" / run["id"] / "report.html").exists()

    assert deployed.load_champion() == "3156098"

    flags = [f"--param=images={sample_npz}", f"--param=output={tmp_path / 'labels.csv'}"]
    deployed.run("prefect", "deployment", "run", "mnist-score/batch", "--watch", *flags)
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 101


def test_the_command_line_uses_the_same_server_and_store(deployed, run, sample_parameters):
    flags = as_flags(sample_parameters)
    result = deployed.run("python", "-m", "flows", "train", *flags)
    assert "temporary server" not in result.stderr
    assert computed(result.stdout) <= {"register"}


def test_a_bad_value_is_refused_when_the_run_is_created(deployed):
    result = start(deployed, {"train": {"epochs": 0}}, "refused", check=False)
    assert result.returncode != 0
    assert "'train.epochs'" in result.stdout
    assert "0 is less than the minimum of 0.01" in result.stdout


def test_bad_data_fail_with_the_reason_on_the_page(deployed, sample_parameters, tmp_path):
    bad = sample_parameters | {"ingest": {"source": "path", "path": str(tmp_path / "nothing.npz")}}
    result = start(deployed, bad, "no-such-file", check=False)
    assert result.returncode != 0
    run = read(deployed, "no-such-file")
    assert run["state"] == "Failed"
    assert "nothing.npz can't be read: No such file" in run["message"]


def test_nobody_else_can_read_the_secret(deployed):
    for file in (deployed.home / "secret", deployed.checkout / ".env"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_secret_is_nowhere_else(deployed, run):
    """Not in a log, a run's folder, an artifact, the databases, or a command line, not even as a header has it."""
    user, password = secret(deployed)
    forms = (password.encode(), base64.b64encode(f"{user}:{password}".encode()))
    kept = {deployed.home / "secret", deployed.checkout / ".env"}
    files = {path for root in (deployed.home, deployed.checkout) for path in root.rglob("*") if path.is_file()}
    assert kept < files
    assert {path.parent.name for path in files} >= {"server", "prefect", "mlflow", "results", "locks"}
    holders = {path for path in files if any(form in path.read_bytes() for form in forms)}
    assert holders == kept
    assert not [line for line in deployed.processes() if password in line]


def test_a_stranger_gets_401_from_every_route_but_health(deployed):
    prefect, reports, mlflow = addresses(deployed)
    schema = httpx.get(f"{prefect}/openapi.json", timeout=60).json()
    routes = {(method.upper(), path) for path, methods in schema["paths"].items() for method in methods}
    assert len(routes) > 150
    opened = {
        (method, path)
        for method, path in routes
        if httpx.request(method, f"{prefect}/api{path}", timeout=60).status_code != 401
    }
    assert opened == {("GET", "/health"), ("GET", "/ready")}
    for address in (reports, mlflow):
        for method in ("GET", "POST"):
            for path in (
                "/",
                "/health",
                "/api/2.0/mlflow/registered-models/search",
                "/ajax-api/2.0/mlflow/runs/search",
            ):
                assert httpx.request(method, address + path, timeout=60).status_code == 401


def test_who_is_signed_in_still_needs_a_token_against_cross_site_requests(deployed):
    prefect, _, mlflow = addresses(deployed)
    answer = httpx.post(f"{prefect}/api/flow_runs/filter", auth=secret(deployed))
    assert (answer.status_code, answer.json()) == (403, {"detail": "Missing CSRF token."})
    search = {"url": f"{mlflow}/ajax-api/2.0/mlflow/experiments/search", "json": {"max_results": 9}}
    assert httpx.post(**search, auth=secret(deployed)).status_code == 200
    assert httpx.post(**search, auth=secret(deployed), headers={"Origin": prefect}).status_code == 403


def test_reports_and_registry_are_served(deployed, run):
    prefect, reports, mlflow = addresses(deployed)
    assert "connect-src 'self'" in httpx.get(prefect).headers["Content-Security-Policy"]  # the UI calls nobody else
    with httpx.Client(auth=secret(deployed)) as client:
        assert f"/runs/{run['id']}/report.html" in client.get(reports).text
        report = client.get(f"{reports}/runs/{run['id']}/report.html")
        assert report.text == (deployed.home / "runs" / run["id"] / "report.html").read_text()
        assert "MLflow" in client.get(mlflow).text
        model = client.get(f"{mlflow}/ajax-api/2.0/mlflow/registered-models/get", params={"name": "mnist"}).json()
        assert "champion" in {alias["alias"] for alias in model["registered_model"]["aliases"]}
        version = model["registered_model"]["latest_versions"][0]
        files = client.get(f"{mlflow}/ajax-api/2.0/mlflow/artifacts/list", params={"run_id": version["run_id"]}).json()
        assert "model.h5" in {file["path"] for file in files["files"]}


def addresses(deployed):
    """Of Prefect, the reports and MLflow, as `.env` has them."""
    settings = dotenv_values(deployed.checkout / ".env")
    return settings["PREFECT_API_URL"].removesuffix("/api"), settings["MNIST_REPORT_URL"], settings["MNIST_MLFLOW_URL"]


def secret(deployed):
    """User and password."""
    return tuple((deployed.home / "secret").read_text().strip().split(":"))


def test_make_up_again_keeps_the_users_switch(deployed, checkout):
    read_switch = (
        "from prefect.client.orchestration import get_client\n"
        "with get_client(sync_client=True) as c: print(c.read_deployment_by_name('mnist/train').schedules[0].active)"
    )
    assert deployed.python(read_switch).strip() == "False"
    deployed.run("prefect", "deployment", "schedule", "resume", "mnist/train", schedule_id(deployed))
    checkout.run("python", "-m", "service.server", "up")
    assert deployed.python(read_switch).strip() == "True"
    deployed.run("prefect", "deployment", "schedule", "pause", "mnist/train", schedule_id(deployed))


def schedule_id(deployed):
    return deployed.python(
        "from prefect.client.orchestration import get_client\n"
        "with get_client(sync_client=True) as c: print(c.read_deployment_by_name('mnist/train').schedules[0].id)"
    ).strip()


def test_make_down_ends_a_run_that_is_marked_as_crashed(deployed, checkout, sample_parameters):
    long = sample_parameters | {"train": {**sample_parameters["train"], "epochs": 1000, "seed": 7}}
    flags = [f"--param={key}={json.dumps(value)}" for key, value in long.items()]
    deployed.run("prefect", "deployment", "run", "mnist/train", "--flow-run-name", "cut-short", *flags)
    deadline = time.monotonic() + 120
    while "for 1000 epochs" not in (deployed.home / "server" / "worker.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    checkout.run("python", "-m", "service.server", "down")
    assert checkout.processes() == []
    checkout.run("python", "-m", "service.server", "up")
    run = read(deployed, "cut-short")
    assert run["state"] == "Crashed"
    assert run["tasks"]["train"] == "Crashed"


def test_a_schedule_fires_and_retrains_on_changed_data(deployed, sample_parameters, arrays, tmp_path):
    file = tmp_path / "growing.npz"
    np.savez(file, **arrays)
    scheduled = sample_parameters | {"ingest": {"source": "path", "path": str(file)}}
    schedule = deployed.python(CREATE_SCHEDULE % scheduled).strip()
    manifests = wait_for_manifests(deployed, file, 1)
    arrays["x_train"][:, 14, 14] ^= 1
    temporary = tmp_path / "next.npz"
    np.savez(temporary, **arrays)
    temporary.replace(file)
    manifests = wait_for_manifests(deployed, file, 2)
    deployed.run("prefect", "deployment", "schedule", "delete", "mnist/train", schedule, "--accept-yes")
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
