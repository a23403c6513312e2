"""Collect: removes old runs and versions and what only they needed, and says what and how much."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from filelock import Timeout
from prefect import get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowFilter,
    FlowFilterId,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterId,
)
from prefect.settings import get_current_settings
from pydantic import BaseModel, ConfigDict, Field

from artifacts.errors import RegistryError, StoreError
from artifacts.records import AliasMove, Collected, Collection, Key
from artifacts.settings import Settings
from tasks import sealed_json
from tasks.caching import store_lock
from tasks.logs import run_logger
from tasks.promote import champions
from tasks.register import replaced_by_hand
from tasks.registry import CHAMPION, LINEAGE, NOT_REPRODUCIBLE, REGISTERED_MODEL, connect, exclusive, history

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

# Marks an MLflow run that gc deleted, so that a gc that follows a killed one purges it too, and no other.
REMOVED_BY = "removed_by"
DATA_GONE = "its data set isn't in the store any more"
COUNTED = ("run folders", "cached results", "stored files", "model versions", "MLflow runs")
PAGE = 200  # what Prefect's API gives at once


class GcParameters(BaseModel):
    """What stays. All else goes, unless something that stays needs it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    days: float = Field(default=30, ge=0, le=36_500, description="Nothing younger is removed, in days.")
    runs: int = Field(default=20, ge=1, le=10**6, description="Newest runs that stay, however old.")
    versions: int = Field(
        default=20,
        ge=1,
        le=10**6,
        description="Newest versions of the model that stay, however old. Others stay too: the champion, the one "
        "before it, one with an alias, one of a run that stays, one that a person replaced as champion.",
    )
    data: int | None = Field(
        default=None,
        ge=0,
        le=10**6,
        description="Newest versions whose data set stays, besides those of the champion, the one before it and the "
        "newest runs; the others can't be reproduced, and say so. None: all that stay.",
    )
    wait_minutes: float = Field(
        default=60, ge=0, le=10_080, description="How long to wait for runs that are going, in minutes."
    )


@dataclass
class Plan:
    """What goes, by kind, and how many of each kind stay."""

    runs: list[Path] = field(default_factory=list)
    results: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    rebuilt: list[Path] = field(default_factory=list)
    versions: "list[ModelVersion]" = field(default_factory=list)
    mlflow_runs: "list[Run]" = field(default_factory=list)
    flow_runs: list[UUID] = field(default_factory=list)
    artifacts: list[UUID] = field(default_factory=list)
    notes: dict[int, str | None] = field(default_factory=dict)
    stay: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))


@task(name="collect", cache_policy=NO_CACHE)
def collect_garbage(keep: GcParameters, apply: bool) -> Collection:
    """Find what goes, and remove it if `apply` says so, while no run is going.

    Raises:
        StoreError: Raised if runs are still going after the time to wait.
        RegistryError: Raised if `mlflow gc` fails.
    """
    with ExitStack() as locks:
        if apply:
            locks.enter_context(no_run_going(keep.wait_minutes))
            locks.enter_context(exclusive())
        else:
            locks.enter_context(store_lock().read_lock())
        mlflow = connect()
        with get_client(sync_client=True) as prefect:
            plan = make_plan(mlflow, prefect, keep)
            collection = describe(mlflow, plan, applied=apply)
            if apply:
                carry_out(mlflow, prefect, plan)
    return collection


@contextmanager
def no_run_going(wait_minutes: float) -> Iterator[None]:
    """Wait until no run is going, and let none begin meanwhile.

    Raises:
        StoreError: Raised if runs are still going after `wait_minutes`.
    """
    lock = store_lock()
    with ExitStack() as held:
        try:
            held.enter_context(lock.write_lock(timeout=0))
        except Timeout:
            run_logger().info(f"runs are going; waiting for their end, at most {wait_minutes:g} minutes")
            try:
                held.enter_context(lock.write_lock(timeout=wait_minutes * 60))
            except Timeout:
                raise StoreError(
                    f"runs are still going after {wait_minutes:g} minutes, and may need what would be removed; "
                    "nothing was: try again later, or wait longer with --keep.wait_minutes"
                ) from None
        yield


def make_plan(mlflow: "MlflowClient", prefect: SyncPrefectClient, keep: GcParameters) -> Plan:
    """Find what goes: start from what stays by age and number, and follow what it needs."""
    plan, home = Plan(), Settings().home
    before = datetime.now(UTC) - timedelta(days=keep.days)

    def young(path: Path) -> bool:
        return path.stat().st_mtime > before.timestamp()

    folders = (folder for folder in (home / "runs").glob("*") if folder.is_dir())
    runs = sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)
    manifests = {folder: read_manifest(folder) for folder in runs}
    recent = {folder for rank, folder in enumerate(runs) if rank < keep.runs or young(folder)}

    versions = {int(v.version): v for v in mlflow.search_model_versions(f"name = '{REGISTERED_MODEL}'")}
    lasting, reigning = versions_that_stay(
        list(versions.values()), read_aliases(mlflow), history(mlflow), keep.versions, before
    )
    lasting |= versions.keys() & {manifests[folder].get("version") for folder in recent}
    with_data = lasting if keep.data is None else reigning | set(sorted(lasting, reverse=True)[: keep.data])

    # The runs that made these versions stay with them; the cached data set of such a run only if the version's does.
    makers = {number: home / "runs" / versions[number].tags.get("prefect_flow_run_id", "none") for number in lasting}
    staying = recent | (set(makers.values()) & set(runs))
    with_dataset = recent | {makers[number] for number in with_data}
    wanted = {
        Key.model_validate(step["key"]).digest
        for folder in staying
        for step in manifests[folder].get("steps", ())
        if step["key"] and (step["name"] != "ingest" or folder in with_dataset)
    }

    # What stays names the files that it needs by their digest, wherever it is kept.
    needed: set[str] = set()
    for number in lasting:
        needed |= digests_in(versions[number].tags.get("model", ""))
        if number in with_data:
            needed |= digests_in(json.dumps(dataset_of(versions[number])))
    for path, text in own_results():
        if path.name in wanted or young(path) or is_result_of(text, staying):
            needed |= digests_in(text)
            plan.stay["cached results"] += 1
        else:
            plan.results.append(path)
    # A run's folder holds the same bytes under another name: to unlink the store's would free nothing.
    linked = {path.stat().st_ino for folder in staying for path in folder.glob("[!.]*")}
    for path in (home / "store").glob("??/*"):
        if path.name.partition(".")[0] in needed or path.stat().st_ino in linked or young(path):
            plan.stay["stored files"] += 1
        else:
            plan.files.append(path)
    # What a process was writing when it was killed.
    unfinished = [*(home / "store").glob(".writing-*"), *(home / "checkpoints").glob("*")]
    plan.unfinished = [folder for folder in unfinished if not young(folder)]
    # What `make reproduce` left to look at.
    plan.rebuilt = [folder for folder in (home / "reproduce").glob("*") if not young(folder)]

    plan.runs = [folder for folder in runs if folder not in staying]
    plan.stay["run folders"] = len(staying)
    plan.versions = [version for number, version in versions.items() if number not in lasting]
    plan.stay["model versions"] = len(lasting)
    for run in recorded_runs(mlflow):
        old = run.info.start_time < before.timestamp() * 1000
        if old and run.info.run_id not in {versions[number].run_id for number in lasting}:
            plan.mlflow_runs.append(run)
        else:
            plan.stay["MLflow runs"] += 1
    plan.flow_runs = list(old_flow_runs(prefect, plan.runs, before))
    plan.artifacts = [artifact for run in plan.flow_runs for artifact in artifacts_of(prefect, run)]
    plan.notes = dict(notes([versions[number] for number in lasting], set(plan.files)))
    return plan


def versions_that_stay(
    found: "list[ModelVersion]", aliases: dict[str, int], moves: list[AliasMove], newest: int, before: datetime
) -> tuple[set[int], set[int]]:
    """The versions that stay for what they are, and of these the champion and the one before it.

    One that a person replaced as champion stays: registered anew, it would pass for another model, and be promoted.
    """
    numbers = sorted((int(version.version) for version in found), reverse=True)
    young = {int(v.version) for v in found if v.creation_timestamp > before.timestamp() * 1000}
    replaced = {number for number in numbers if replaced_by_hand(moves, number)}
    # An alias that was moved on MLflow's own page is in no history.
    reigning = {*champions(moves)[-2:], aliases.get(CHAMPION)}
    stay = set(numbers) & {*numbers[:newest], *young, *replaced, *reigning, *aliases.values()}
    return stay, stay & reigning


def read_aliases(mlflow: "MlflowClient") -> dict[str, int]:
    """Version by alias."""
    models = mlflow.search_registered_models(f"name = '{REGISTERED_MODEL}'")
    return {alias: int(version) for model in models for alias, version in model.aliases.items()}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run; empty if it was killed before it wrote one."""
    file = folder / "manifest.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def digests_in(text: str) -> set[str]:
    """All digests that a text names."""
    return set(re.findall("[0-9a-f]{64}", text))


def own_results() -> Iterator[tuple[Path, str]]:
    """The results that Prefect keeps for this project, as text; the folder may be shared with others."""
    for path in get_current_settings().results.local_storage_path.glob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            if re.search(r'__class__\\*": \\*"(artifacts|tasks)\.', text) or f'"{sealed_json.__name__}"' in text:
                yield path, text


def is_result_of(text: str, folders: set[Path]) -> bool:
    """Whether one of these runs computed the result; of a data set, the manifest has the word."""
    return "artifacts.records.Dataset" not in text and any(folder.name in text for folder in folders)


def recorded_runs(mlflow: "MlflowClient") -> "list[Run]":
    """The MLflow runs that register made, and those of them that a gc deleted but didn't come to purge."""
    from mlflow.entities import ViewType

    experiment = mlflow.get_experiment_by_name(REGISTERED_MODEL)
    if experiment is None:
        return []
    found = mlflow.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL, max_results=10_000)
    return [
        run
        for run in found
        if "weights_digest" in run.data.tags and (run.info.lifecycle_stage == "active" or REMOVED_BY in run.data.tags)
    ]


def old_flow_runs(prefect: SyncPrefectClient, folders: list[Path], before: datetime) -> Iterator[UUID]:
    """The flow runs whose folders go, and old ones of the flows that leave no folder, as gc itself.

    Another checkout may use the same server: its runs of the flow `mnist` have no folder here.
    """
    ids = [
        UUID(folder.name)
        for folder in folders
        if re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", folder.name)
    ]
    for start in range(0, len(ids), PAGE):
        of_folders = FlowRunFilter(id=FlowRunFilterId(any_=ids[start : start + PAGE]))
        yield from (run.id for run in prefect.read_flow_runs(flow_run_filter=of_folders, limit=PAGE))
    flows = [
        flow.id
        for flow in prefect.read_flows(flow_filter=FlowFilter(name=FlowFilterName(like_="mnist-")))
        if flow.name.startswith("mnist-")
    ]
    ended = FlowRunFilter(end_time=FlowRunFilterEndTime(before_=before))
    offset = 0
    while found := prefect.read_flow_runs(
        flow_filter=FlowFilter(id=FlowFilterId(any_=flows)), flow_run_filter=ended, limit=PAGE, offset=offset
    ):
        yield from (run.id for run in found)
        offset += PAGE


def artifacts_of(prefect: SyncPrefectClient, flow_run: UUID) -> list[UUID]:
    """The artifacts of a flow run."""
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]))
    return [artifact.id for artifact in prefect.read_artifacts(artifact_filter=of_run)]


def notes(versions: "list[ModelVersion]", going: set[Path]) -> Iterator[tuple[int, str | None]]:
    """What to write into the tag `not_reproducible` of versions, or none to take it back, where that changes.

    MNIST itself can be had again; a data set of the user's own can't.
    """
    store = Settings().home / "store"
    for version in versions:
        dataset = dataset_of(version)
        files = [
            store / file["sha256"][:2] / f"{file['sha256']}{file['suffix']}"
            for file in dataset.values()
            if isinstance(file, dict)
        ]
        gone = dataset.get("source") == "path" and any(path in going or not path.exists() for path in files)
        noted = version.tags.get(NOT_REPRODUCIBLE)
        if gone and noted is None:
            yield (
                int(version.version),
                f"{DATA_GONE} (gc, {datetime.now(UTC):%Y-%m-%d}); ingest the file with the digest "
                f"{dataset['digest'][:12]}… again (make train ARGS='--ingest.source path …'), and the next gc takes "
                "this back",
            )
        elif not gone and noted is not None and noted.startswith(DATA_GONE):
            yield int(version.version), None


def dataset_of(version: "ModelVersion") -> dict[str, Any]:
    """The version's data set, as the JSON of `Dataset`; empty if its lineage wasn't kept."""
    return dict(json.loads(version.tags.get(LINEAGE, "{}")).get("dataset", {}))


def describe(mlflow: "MlflowClient", plan: Plan, *, applied: bool) -> Collection:
    """Say what goes, and how many bytes of the disk that frees."""
    names: Counter[tuple[int, int]] = Counter()

    def freed(paths: Iterable[Path]) -> int:
        """Bytes of the files of which no other name is left; call it in the order in which the names go."""
        size = 0
        for stat in (path.stat() for path in paths if path.is_file()):
            names[stat.st_dev, stat.st_ino] += 1
            if names[stat.st_dev, stat.st_ino] == stat.st_nlink:
                size += stat.st_size
        return size

    rows: list[tuple[str, list[Any], int]] = [
        ("run folders", [folder.name for folder in plan.runs], freed(f for run in plan.runs for f in run.rglob("*"))),
        ("cached results", plan.results, freed(plan.results)),
        ("stored files", plan.files, freed(plan.files)),
        ("unfinished files", plan.unfinished, freed(f for folder in plan.unfinished for f in folder.rglob("*"))),
        ("rebuilt versions", plan.rebuilt, freed(f for folder in plan.rebuilt for f in folder.rglob("*"))),
        ("model versions", [version.version for version in plan.versions], 0),
        ("MLflow runs", plan.mlflow_runs, sum(artifact_bytes(mlflow, run.info.run_id) for run in plan.mlflow_runs)),
        ("Prefect flow runs", plan.flow_runs, 0),
        ("Prefect artifacts", plan.artifacts, 0),
    ]
    return Collection(
        applied=applied,
        rows=tuple(
            Collected(
                what=what,
                removed=len(going),
                size=size,
                stay=plan.stay.get(what),
                names=tuple(map(str, going)) if what in ("run folders", "model versions") else (),
            )
            for what, going, size in rows
        ),
        not_reproducible=tuple(number for number, reason in plan.notes.items() if reason),
    )


def artifact_bytes(mlflow: "MlflowClient", run_id: str, folder: str | None = None) -> int:
    """Size of the files that MLflow keeps for a run."""
    return sum(
        artifact_bytes(mlflow, run_id, file.path) if file.is_dir else file.file_size or 0
        for file in mlflow.list_artifacts(run_id, folder)
    )


def carry_out(mlflow: "MlflowClient", prefect: SyncPrefectClient, plan: Plan) -> None:
    """Remove what goes, in an order that a kill can't spoil: what refers to something before that."""
    for number, reason in plan.notes.items():
        if reason:
            mlflow.set_model_version_tag(REGISTERED_MODEL, str(number), NOT_REPRODUCIBLE, reason)
        else:
            mlflow.delete_model_version_tag(REGISTERED_MODEL, str(number), NOT_REPRODUCIBLE)
    for version in plan.versions:
        mlflow.delete_model_version(REGISTERED_MODEL, str(version.version))
    for run in plan.mlflow_runs:
        if run.info.lifecycle_stage == "active":
            mlflow.set_tag(run.info.run_id, REMOVED_BY, "gc")
            mlflow.delete_run(run.info.run_id)
    purge([run.info.run_id for run in plan.mlflow_runs])
    for artifact in plan.artifacts:
        prefect.delete_artifact(artifact)
    for flow_run in plan.flow_runs:
        prefect.delete_flow_run(flow_run)
    for path in (*plan.results, *plan.files):
        path.unlink()
    for path in plan.results:  # no run is going, so nobody holds or waits for the lock of its computation
        (Settings().home / "locks" / path.name).unlink(missing_ok=True)
    # Renamed first: a folder is there whole, or not at all.
    trash = Settings().home / "trash"
    trash.mkdir(exist_ok=True)
    for folder in (*plan.runs, *plan.unfinished, *plan.rebuilt):
        folder.rename(trash / folder.name)
    shutil.rmtree(trash)


def purge(run_ids: list[str]) -> None:
    """Let MLflow delete runs for good, with their files; those of a server are left to its own `mlflow gc`.

    Raises:
        RegistryError: Raised if `mlflow gc` fails.
    """
    uri = Settings().tracking_uri
    if not run_ids or uri.startswith("http"):
        return
    command = ["gc", "--backend-store-uri", uri, "--tracking-uri", uri, "--run-ids", ",".join(run_ids)]
    done = subprocess.run([sys.executable, "-m", "mlflow", *command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RegistryError(f"`mlflow gc` failed: {reason}; the next gc tries again")
