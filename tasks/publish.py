"""Publish: what a run leaves behind, on its page in the UI and in its folder. Runs always, whatever was reused."""

import csv
import io
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import prefect.runtime
from prefect import Flow, State, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import FlowRun
from prefect.logging.loggers import flow_run_logger
from pydantic import BaseModel

from artifacts import report
from artifacts.records import Epoch, Evaluation, Key, Results, RunSummary, StepRecord, Training, Validation, Version
from artifacts.report import RunReport, Step
from artifacts.settings import Settings, home
from artifacts.store import write_atomically
from tasks.caching import digest_code, library_version
from tasks.logs import run_logger
from tasks.revision import git_revision

# By key: the artifact's text, and what the Artifacts page says it is.
ARTIFACTS: dict[str, tuple[Callable[[RunReport], str], str]] = {
    "summary": (report.summary, "The verdict, the figures, and what was computed or reused."),
    "data-validation": (
        lambda run: report.data_validation(run.validation, run.labels),
        "What was expected of the data, and found; which training labels look wrong.",
    ),
    "learning-curves": (report.learning_curves, "Loss and accuracy while training."),
    "confusion-matrix": (report.confusion_matrix, "Which digit was taken for which."),
    "wrong-predictions": (report.wrong_predictions, "The test images that the model gets wrong, and why."),
    "robustness": (report.robustness, "How it does on parts of the test set, and on changed images."),
    "confidence": (report.confidence, "Whether it is as right as it is sure, and what asking a person gains."),
    "model-card": (report.model_card, "What the model is, what it is for, and how to load it."),
    "lineage": (report.lineage, "Which data, code and parameters made this model."),
}
LIBRARIES = ("great-expectations", "keras", "matplotlib", "mlflow", "numpy", "pandas", "prefect", "tensorflow")


@task(name="publish", cache_policy=NO_CACHE)
def publish_run(parameters: dict[str, BaseModel], results: Results) -> RunSummary:
    """Write the run's folder, its manifest last, and create its artifacts.

    Returns:
        What to tell the person who started the run.
    """
    flow_run = prefect.runtime.flow_run
    folder = run_folder(flow_run.id or "without-a-run")
    training, evaluation, drawn, registration = (
        results.training,
        results.evaluation,
        results.report,
        results.registration,
    )
    records = {
        "ingest": results.dataset,
        "validate": results.validation,
        "check-labels": results.labels,
        "train": training,
        "evaluate": evaluation,
        "robustness": results.robustness,
        "infra-validate": results.infra,
        "gate": results.verdict,
        "explain": results.explanation,
        "report": drawn,
        "register": registration,
    }
    before = last_keys(folder)
    run = RunReport(
        id=folder.name,
        name=flow_run.name or "",
        started=flow_run.scheduled_start_time or datetime.now(UTC),
        parameters={step: model.model_dump(mode="json") for step, model in parameters.items()},
        **{name: getattr(results, name) for name in Results.model_fields},
        # Register has a key only if all was registered already.
        code_digest=digest_code(code_of_all(record for name, record in records.items() if name != "register")),
        git_revision=git_revision(),
        libraries={name: library_version(name) for name in LIBRARIES},
        steps=tuple(describe_step(name, record, folder.name, before.get(name)) for name, record in records.items()),
        links=links(folder.name, registration.version),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(".*"):  # by a process of this run that was killed
        unfinished.unlink()
    files = {
        "validation.json": results.validation.result,
        "data_docs.html": results.validation.data_docs,
        "training_labels.csv": results.labels.csv,
        "test_labels.csv": results.explanation.suspects,
        "learning_curves.png": drawn.learning_curves,
        "confusion_matrix.png": drawn.confusion_matrix,
        "wrong_predictions.png": drawn.wrong_predictions,
        "wrong_predictions.csv": drawn.wrong_predictions_csv,
        "wrong_predictions.json": results.explanation.cases,
        "robustness.png": drawn.robustness,
        "confidence.png": drawn.confidence,
        "model.keras": training.model.keras,
        "model.h5": training.model.h5,
    }
    if drawn.disagreements:
        files["disagreements.png"] = drawn.disagreements
    for name, file in files.items():
        file.link_to(folder / name)
    for name, content in {
        "history.csv": history_csv(training.history),
        "metrics.json": _json(metrics(training, evaluation)),
        "report.html": report.report_html(run),
        "report.md": report.report_markdown(run),
    }.items():
        write_atomically(folder / name, content)
    for key, (render, description) in ARTIFACTS.items():
        create_markdown_artifact(render(run), key=key, description=description)
    write_atomically(folder / "manifest.json", _json(manifest(run, records)))
    run_logger().info(f"report: {folder / 'report.html'}")
    return RunSummary(
        flow_run_id=folder.name,
        folder=folder,
        accuracy=evaluation.accuracy,
        n_wrong=evaluation.n_wrong,
        n_test=evaluation.n_test,
        headline=run.headline,
        version=registration.version.version,
        steps=tuple(step.line for step in run.steps),
    )


def publish_validation(validation: Validation) -> None:
    """Leave what there is to see of a run that the validation stopped: its outcome."""
    folder = run_folder(prefect.runtime.flow_run.id or "without-a-run")
    folder.mkdir(parents=True, exist_ok=True)
    validation.result.link_to(folder / "validation.json")
    validation.data_docs.link_to(folder / "data_docs.html")
    _, description = ARTIFACTS["data-validation"]
    create_markdown_artifact(report.data_validation(validation), key="data-validation", description=description)


def run_folder(flow_run_id: str) -> Path:
    """The folder of a run."""
    return home() / "runs" / flow_run_id


def links(flow_run_id: str, version: Version) -> dict[str, str]:
    """Where `make up` serves the report and the version, by name; empty without it."""
    settings = Settings()
    found = {}
    if settings.report_url:
        found["the report"] = f"{settings.report_url}/runs/{flow_run_id}/report.html"
    if settings.mlflow_url:
        found[f"version {version.version} in MLflow"] = (
            f"{settings.mlflow_url}/#/models/{version.name}/versions/{version.version}"
        )
    return found


def describe_step(name: str, record: StepRecord, flow_run_id: str, before: Key | None) -> Step:
    """Say whether this run computed a step or reused it, and if computed, what had changed since the last run."""
    origin = record.origin
    if origin is None or origin.flow_run_id != flow_run_id:
        return Step(
            name=name,
            state="reused",
            seconds=origin.seconds if origin else 0.0,
            reused_from=origin.flow_run_id if origin else None,
        )
    if origin.key is None:
        changes: tuple[str, ...] = ("always runs",)
    elif before is None:
        changes = ("for the first time",)
    else:
        changes = origin.key.changes_since(before) or ("asked for anew, or its result was missing from the store",)
    return Step(name=name, state="computed", seconds=origin.seconds, changes=changes)


def last_keys(folder: Path) -> dict[str, Key]:
    """The keys of the last finished run's steps, by step; none before the first."""
    manifests = [path for path in folder.parent.glob("*/manifest.json") if path.parent != folder]
    for path in sorted(manifests, key=lambda path: path.stat().st_mtime, reverse=True):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["state"] == "completed":
            return {step["name"]: Key.model_validate(step["key"]) for step in manifest["steps"] if step["key"]}
    return {}


def code_of_all(records: Iterable[StepRecord]) -> dict[str, str]:
    """Digest by module of all the code that made these records."""
    code: dict[str, str] = {}
    for record in records:
        if record.origin and record.origin.key:
            code |= record.origin.key.code
    return code


def metrics(training: Training, evaluation: Evaluation) -> dict[str, float]:
    """The figures of `metrics.json`."""
    return {
        "test_accuracy": evaluation.accuracy,
        "test_loss": evaluation.loss,
        "n_wrong": evaluation.n_wrong,
        "n_test": evaluation.n_test,
        "expected_calibration_error": evaluation.expected_calibration_error,
        "n_for_a_person": evaluation.n_for_a_person,
        "temperature": training.temperature,
        "fit_seconds": training.fit_seconds,
        "epochs": training.history[-1].epoch,
    }


def manifest(run: RunReport, records: dict[str, StepRecord]) -> dict[str, Any]:
    """The content of `manifest.json`: what made the run's result, and how each step went."""
    keys = {name: record.origin.key if record.origin else None for name, record in records.items()}
    return {
        "flow_run_id": run.id,
        "flow_run_name": run.name,
        "state": "completed",
        "parameters": run.parameters,
        "data_digest": run.dataset.digest,
        "code_digest": run.code_digest,
        "git_revision": run.git_revision,
        "libraries": run.libraries,
        "steps": [
            step.model_dump(mode="json") | {"key": key.model_dump() if (key := keys[step.name]) else None}
            for step in run.steps
        ],
        "weights_digest": run.training.model.weights_digest,
        "verdict": run.verdict.model_dump(mode="json", exclude={"origin"}),
        "version": run.registration.version.version,
        "champion": run.registration.champion,
    }


def history_csv(history: Iterable[Epoch]) -> str:
    """The training history as CSV, a line an epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Epoch.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(epoch.model_dump() for epoch in history)
    return text.getvalue()


def _json(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"


def publish_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """Log what failed and where its artifacts lie, and leave a manifest that says so; a hook of the flow."""
    folder = run_folder(str(flow_run.id))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(
        folder / "manifest.json",
        _json(
            {
                "flow_run_id": str(flow_run.id),
                "flow_run_name": flow_run.name,
                "state": state.type.value.lower(),
                "reason": state.message,
            }
        ),
    )
    # After a crash the worker calls this, outside of the run.
    flow_run_logger(flow_run, flow).error(f"{state.name}: {state.message} Its artifacts: {folder}")
