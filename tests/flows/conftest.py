"""Flow runs of the tiny sample on a real server, read back through the API."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.gate import GateParameters
from tasks.ingest import IngestParameters
from tests.conftest import FAST, TINY


class Run:
    """What the server and the store have of a flow run."""

    def __init__(self, flow_run_id: str, home: Path):
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import (
            ArtifactFilter,
            ArtifactFilterFlowRunId,
            FlowRunFilter,
            FlowRunFilterId,
        )

        self.id = flow_run_id
        self.folder = home / "runs" / flow_run_id
        with get_client(sync_client=True) as client:
            self.flow_run = client.read_flow_run(flow_run_id)
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
            self.tasks = {run.name.rsplit("-", 1)[0]: run for run in runs}
            self.states = {name: run.state.name for name, run in self.tasks.items()}
            artifacts = client.read_artifacts(
                artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
            )
            self.artifacts = {artifact.key: artifact.data for artifact in artifacts if artifact.key}

    @property
    def manifest(self) -> dict[str, Any]:
        """The run's manifest."""
        return json.loads((self.folder / "manifest.json").read_text())

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        """The manifest's steps by name."""
        return {step["name"]: step for step in self.manifest["steps"]}


@pytest.fixture
def sample(sample_npz) -> dict[str, Any]:
    """Parameters for a run of the sample that ends in a registered model."""
    return {
        "ingest": IngestParameters(source="path", path=sample_npz),
        "validate": TINY,
        "train": FAST,
        "gate": GateParameters(minimum_accuracy=0, maximum_calibration_error=1),
    }


@pytest.fixture
def run_flow(prefect_server, home):
    """Run the flow in this process, to its end or failure."""
    from flows.train import mnist

    def run(**parameters: Any) -> Run:
        state = mnist(**parameters, return_state=True)
        return Run(str(state.state_details.flow_run_id), home)

    return run
