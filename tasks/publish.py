"""Publish: make the run's folder, and its artifacts in the UI. This step runs in every run."""

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
from artifacts.records.base import Key, StepRecord
from artifacts.records.data import Validation
from artifacts.records.evaluation import Evaluation
from artifacts.records.model import Epoch, Training
from artifacts.records.release import Version
from artifacts.records.run import MANIFEST, Manifest, Results, RunSummary, Step
from artifacts.report import RunReport
from artifacts.settings import Settings, home
from artifacts.store import StoredFile, put_bytes
from tasks.running.cache import library_version
from tasks.running.code import digest_code
from tasks.running.logs import run_logger
from tasks.running.revision import git_revision

# By artifact key: the function that writes its text, and its description on the Artifacts page.
ARTIFACTS: dict[str, tuple[Callable[[RunReport], str], str]] = {
    "summary": (report.summary, "The verdict, the figures, and what was computed or reused."),
    "data-validation": (
        lambda run: report.data_validation(run.validation, run.labels),
        "What the data must look like and do look like, and which training labels look wrong.",
    ),
    "learning-curves": (report.learning_curves, "Loss and accuracy while training."),
    "confusion-matrix": (report.confusion_matrix, "Which digit was taken for which."),
    "wrong-predictions": (report.wrong_predictions, "The test images that the model gets wrong, and why."),
    "robustness": (report.robustness, "How accurate it is on parts of the test set, and on changed images."),
    "confidence": (report.confidence, "Whether it is right as often as it is sure, and what asking a person gains."),
    "model-card": (report.model_card, "What the model is, what it is for, and how to load it."),
    "lineage": (report.lineage, "Which data, code and parameters made this model."),
}
LIBRARIES = ("great-expectations", "keras", "matplotlib", "mlflow", "numpy", "pandas", "prefect", "tensorflow")


@task(name="publish", cache_policy=NO_CACHE)
def publish_run(parameters: dict[str, BaseModel], results: Results) -> RunSummary:
    """Write the run's folder, with the manifest last, and create its artifacts.

    Returns:
        What to tell the person who started the run.
    """
    folder = run_folder(prefect.runtime.flow_run.id or "without-a-run")
    run = describe_run(folder, parameters, results)
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(".*"):  # left by a process of this run that was killed
        unfinished.unlink()
    files = files_of(run)
    for name, file in files.items():
        file.link_to(folder / name)
    for key, (render, description) in ARTIFACTS.items():
        create_markdown_artifact(render(run), key=key, description=description)
    manifest_of(run, files).write(folder)
    run_logger().info(f"report: {folder / 'report.html'}")
    return RunSummary(
        flow_run_id=folder.name,
        folder=folder,
        accuracy=results.evaluation.accuracy,
        n_wrong=results.evaluation.n_wrong,
        n_test=results.evaluation.n_test,
        headline=run.headline,
        version=results.registration.version.version,
        steps=tuple(step.line for step in run.steps),
    )


def describe_run(folder: Path, parameters: dict[str, BaseModel], results: Results) -> RunReport:
    """Gather everything that the report of this run says."""
    flow_run = prefect.runtime.flow_run
    records, before = results.by_step(), last_keys(folder)
    return RunReport(
        id=folder.name,
        name=flow_run.name or "",
        started=flow_run.scheduled_start_time or datetime.now(UTC),
        parameters={step: model.model_dump(mode="json") for step, model in parameters.items()},
        **{name: getattr(results, name) for name in Results.model_fields},
        # Register has a key only if the model was registered before.
        code_digest=digest_code(code_of_all(record for name, record in records.items() if name != "register")),
        git_revision=git_revision(),
        libraries={name: library_version(name) for name in LIBRARIES},
        steps=tuple(describe_step(name, record, folder.name, before.get(name)) for name, record in records.items()),
        links=links(folder.name, results.registration.version),
    )


def files_of(run: RunReport) -> dict[str, StoredFile]:
    """The files of the run's folder by name, without the manifest."""
    model = run.training.model
    texts = {
        "history.csv": history_csv(run.training.history),
        "metrics.json": json.dumps(metrics(run.training, run.evaluation), indent=2) + "\n",
        "report.html": report.report_html(run),
        "report.md": report.report_markdown(run),
    }
    return {
        "validation.json": run.validation.result,
        "data_docs.html": run.validation.data_docs,
        "training_labels.csv": run.labels.csv,
        "test_labels.csv": run.explanation.suspects,
        **{f"{name}.png": picture for name, picture in run.report.pictures.items()},
        "wrong_predictions.csv": run.report.wrong_predictions_csv,
        "wrong_predictions.json": run.explanation.cases,
        "model.keras": model.keras,
        "model.h5": model.h5,
        **{name: put_bytes(Path(name).suffix, text.encode()) for name, text in texts.items()},
    }


def publish_validation(validation: Validation) -> None:
    """Publish the outcome of the validation, for a run that it stopped."""
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
    """Links to the report and the version on the servers of `make up`, by text. Empty if these don't run."""
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
    """Say whether this run computed or reused a step. If it computed it, say what had changed since the last run."""
    origin = record.origin
    key = origin.key if origin else None
    if origin is None or origin.flow_run_id != flow_run_id:
        return Step(
            name=name,
            state="reused",
            seconds=origin.seconds if origin else 0.0,
            reused_from=origin.flow_run_id if origin else None,
            key=key,
        )
    if key is None:
        changes: tuple[str, ...] = ("always runs",)
    elif before is None:
        changes = ("for the first time",)
    else:
        changes = key.changes_since(before) or ("asked for again, or its result was missing from the store",)
    return Step(name=name, state="computed", seconds=origin.seconds, changes=changes, key=key)


def last_keys(folder: Path) -> dict[str, Key]:
    """The keys of the steps of the last completed run, by step. Empty before the first run."""
    others = [path for path in folder.parent.glob(f"*/{MANIFEST}") if path.parent != folder]
    for path in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            manifest = Manifest.read(path.parent)
        except ValueError as error:
            run_logger().warning(f"{error}; that run is left out")
            continue
        if manifest and manifest.state == "completed":
            return {step.name: step.key for step in manifest.steps if step.key}
    return {}


def code_of_all(records: Iterable[StepRecord]) -> dict[str, str]:
    """Digests, by module, of all code that made these records."""
    code: dict[str, str] = {}
    for record in records:
        if record.origin and record.origin.key:
            code |= record.origin.key.code
    return code


def metrics(training: Training, evaluation: Evaluation) -> dict[str, float]:
    """The figures for `metrics.json`: those of the evaluation, and some of the training."""
    in_training = ("accuracy", "loss")  # measured on the test set, not on the training images
    tested = {f"test_{name}" if name in in_training else name: value for name, value in evaluation.metrics().items()}
    return tested | {
        "temperature": training.temperature,
        "fit_seconds": training.fit_seconds,
        "epochs": training.history[-1].epoch,
    }


def manifest_of(run: RunReport, files: dict[str, StoredFile]) -> Manifest:
    """Make the manifest of a run that completed."""
    return Manifest(
        flow_run_id=run.id,
        flow_run_name=run.name,
        state="completed",
        parameters=run.parameters,
        data_digest=run.dataset.digest,
        code_digest=run.code_digest,
        git_revision=run.git_revision,
        libraries=run.libraries,
        steps=run.steps,
        weights_digest=run.training.model.weights_digest,
        metrics=metrics(run.training, run.evaluation),
        verdict=run.verdict,
        version=run.registration.version.version,
        champion_number=run.registration.champion_number,
        files=files,
    )


def history_csv(history: Iterable[Epoch]) -> str:
    """The training history as CSV, one line per epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Epoch.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(epoch.model_dump() for epoch in history)
    return text.getvalue()


def publish_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    """Log what failed and where its files are, and write a manifest that says so. This is a hook of the flow."""
    folder = run_folder(str(flow_run.id))
    folder.mkdir(parents=True, exist_ok=True)
    Manifest(
        flow_run_id=str(flow_run.id),
        flow_run_name=flow_run.name,
        state=state.type.value.lower(),
        reason=state.message,
    ).write(folder)
    # After a crash, the worker calls this outside of the run.
    flow_run_logger(flow_run, flow).error(f"{state.name}: {state.message} Its artifacts: {folder}")
