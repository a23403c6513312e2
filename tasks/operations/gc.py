"""Gc: remove old runs and versions, and what only they needed, and say what and how much was removed."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

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

from artifacts.errors import RegistryError
from artifacts.records.base import Record
from artifacts.records.release import AliasMove
from artifacts.records.run import Manifest
from artifacts.settings import Settings
from tasks.data.sources import MNIST_DIGEST
from tasks.registry.history import champions, finish_move, history, replaced_by_hand
from tasks.registry.lineage import NOT_REPRODUCIBLE, dataset_of
from tasks.registry.versions import CHAMPION, REGISTERED_MODEL, connect
from tasks.running.locks import no_run_going, registry_lock, store_lock
from tasks.running.logs import run_logger

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion


class GcRow(Record):
    """What gc removed of one kind, or would remove.

    Attributes:
        what: The kind, in the plural.
        removed: How many are removed.
        size: How many bytes of the disk this frees.
        stay: How many stay. None if they weren't counted.
        names: The names of the removed things, if a person knows them by name.
    """

    what: str
    removed: int
    size: int
    stay: int | None
    names: tuple[str, ...] = ()


class GcSummary(Record):
    """What gc did, or would do.

    Attributes:
        applied: Whether gc removed anything, or only listed it.
        rows: A row per kind, in the order of removal.
        not_reproducible: The versions that stay, but lose their data set or were just found without it.
    """

    applied: bool
    rows: tuple[GcRow, ...]
    not_reproducible: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many bytes of the disk this frees in all."""
        return sum(row.size for row in self.rows)

    def __str__(self) -> str:
        """A table, and the names of what is removed."""
        done = self.applied
        lines = [f"  {'':<18}{'removed' if done else 'to remove':>10}{'freed':>14}{'stay':>8}"]
        for row in self.rows:
            freed = f"{row.size / 1e6:,.1f} MB" if row.size else ""
            lines.append(f"  {row.what:<18}{row.removed:>10,}{freed:>14}{'' if row.stay is None else row.stay:>8}")
        lines += [f"  {'in all':<18}{'':>10}{f'{self.size / 1e6:,.1f} MB':>14}", ""]
        lines += [f"  {row.what}: {', '.join(row.names)}" for row in self.rows if row.names]
        if self.not_reproducible:
            numbers = ", ".join(map(str, self.not_reproducible))
            lines.append(f"  model versions that can't be reproduced any more, because their data are gone: {numbers}")
        lines.append("  removed" if done else '  nothing was removed; `make gc ARGS="--apply"` does it')
        return "\n".join(lines)


# Marks an MLflow run that gc deleted. If that gc is killed, the next gc purges this run, and no other.
REMOVED_BY = "removed_by"
DATA_GONE = "its data set isn't in the store any more"
COUNTED = ("run folders", "cached results", "stored files", "model versions", "MLflow runs")
PAGE = 200  # the most that Prefect's API returns in one answer

# What a kept result of this project names, in this version and in 0.1.0: the module that reads it, and a data set.
SERIALIZERS = r'"tasks\.(running\.)?sealed_json"'
DATASETS = r"artifacts\.records\.(data\.)?Dataset"


class GcParameters(BaseModel):
    """What stays. Everything else is removed, unless something that stays needs it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    days: float = Field(default=30, ge=0, le=36_500, description="Age in days below which nothing is removed.")
    runs: int = Field(default=20, ge=1, le=10**6, description="Number of newest runs that stay, however old they are.")
    versions: int = Field(
        default=20,
        ge=1,
        le=10**6,
        description="Number of newest versions that stay, however old they are. These stay too: the champion, the one "
        "before it, versions with an alias, versions of a run that stays, and champions that a person replaced.",
    )
    data: int | None = Field(
        default=None,
        ge=0,
        le=10**6,
        description="Number of newest versions whose data set stays. The data of the champion, the one before it and "
        "the newest runs stay too. Other versions can't be reproduced then, and say so. Default: all data stay.",
    )
    wait_minutes: float = Field(
        default=60, ge=0, le=10_080, description="How many minutes to wait for runs that are going."
    )


@dataclass
class Plan:
    """What gc removes, by kind, and how many of each kind stay."""

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


class Stays(NamedTuple):
    """What stays because of its age, number or alias. Everything that it needs stays with it.

    Attributes:
        runs: The manifests of the runs, by folder. None for a run without a manifest that can be read.
        runs_with_data: The folders of the runs whose cached data set stays too.
        versions: The numbers of the versions.
        versions_with_data: The numbers of the versions whose data set stays too.
    """

    runs: dict[Path, Manifest | None]
    runs_with_data: set[Path]
    versions: set[int]
    versions_with_data: set[int]


@task(name="gc", cache_policy=NO_CACHE)
def collect_garbage(keep: GcParameters, apply: bool) -> GcSummary:
    """Find what can be removed, and remove it if `apply` is set. No run may be going meanwhile.

    Raises:
        StoreError: Raised if runs are still going after `wait_minutes`.
        RegistryError: Raised if `mlflow gc` fails.
    """
    with ExitStack() as locks:
        if apply:
            locks.enter_context(no_run_going(keep.wait_minutes))
            locks.enter_context(registry_lock())
        else:
            locks.enter_context(store_lock().read_lock())
        mlflow = connect()
        if apply:
            finish_move(mlflow)
        with get_client(sync_client=True) as prefect:
            plan = make_plan(mlflow, prefect, keep)
            summary = describe(mlflow, plan, applied=apply)
            if apply:
                carry_out(mlflow, prefect, plan)
    return summary


def make_plan(mlflow: "MlflowClient", prefect: SyncPrefectClient, keep: GcParameters) -> Plan:
    """Find what can be removed: start from what stays because of age and number, and follow what that needs."""
    plan, home = Plan(), Settings().home
    before = datetime.now(UTC) - timedelta(days=keep.days)
    runs = read_runs(home / "runs")
    versions = {int(v.version): v for v in mlflow.search_model_versions(f"name = '{REGISTERED_MODEL}'")}
    stays = choose_what_stays(mlflow, keep, before, runs, versions)

    plan.runs = [folder for folder in runs if folder not in stays.runs]
    plan.stay["run folders"] = len(stays.runs)
    plan.versions = [version for number, version in versions.items() if number not in stays.versions]
    plan.stay["model versions"] = len(stays.versions)
    plan_files(plan, stays, versions, before)
    for run in recorded_runs(mlflow):
        old = run.info.start_time < before.timestamp() * 1000
        if old and run.info.run_id not in {versions[number].run_id for number in stays.versions}:
            plan.mlflow_runs.append(run)
        else:
            plan.stay["MLflow runs"] += 1
    plan.flow_runs = list(old_flow_runs(prefect, plan.runs, before))
    plan.artifacts = [artifact for run in plan.flow_runs for artifact in artifacts_of(prefect, run)]
    plan.notes = dict(notes([versions[number] for number in stays.versions], set(plan.files)))
    return plan


def read_runs(folder: Path) -> dict[Path, Manifest | None]:
    """Read the manifests of all runs, by folder, the newest run first.

    A run that was killed has no manifest. A damaged manifest counts as none, with a warning.
    """
    folders = [run for run in folder.glob("*") if run.is_dir()]
    runs: dict[Path, Manifest | None] = {}
    for run in sorted(folders, key=lambda run: run.stat().st_mtime, reverse=True):
        try:
            runs[run] = Manifest.read(run)
        except ValueError as error:
            run_logger().warning(f"{error}; gc knows only the files in the folder of this run")
            runs[run] = None
    return runs


def choose_what_stays(
    mlflow: "MlflowClient",
    keep: GcParameters,
    before: datetime,
    runs: dict[Path, Manifest | None],
    versions: "dict[int, ModelVersion]",
) -> Stays:
    """Choose the runs and versions that stay: by age, number and alias. The runs that made these versions stay too."""
    recent = {run for rank, run in enumerate(runs) if rank < keep.runs or is_young(run, before)}
    lasting, reigning = versions_that_stay(
        list(versions.values()), read_aliases(mlflow), history(mlflow), keep.versions, before
    )
    lasting |= versions.keys() & {manifest.version for run in recent if (manifest := runs[run])}
    with_data = lasting if keep.data is None else reigning | set(sorted(lasting, reverse=True)[: keep.data])
    folder = Settings().home / "runs"
    makers = {number: folder / versions[number].tags.get("prefect_flow_run_id", "none") for number in lasting}
    staying = recent | (makers.values() & runs.keys())
    return Stays(
        runs={run: runs[run] for run in staying},
        runs_with_data=recent | {makers[number] for number in with_data},
        versions=lasting,
        versions_with_data=with_data,
    )


def plan_files(plan: Plan, stays: Stays, versions: "dict[int, ModelVersion]", before: datetime) -> None:
    """Find the kept results and the files to remove. What stays names the files that it needs by their digest."""
    home = Settings().home
    needed: set[str] = set()
    wanted: set[str] = set()
    for run, manifest in stays.runs.items():
        if manifest:
            needed |= {file.sha256 for file in manifest.files.values()}
            wanted |= {
                step.key.digest
                for step in manifest.steps
                if step.key and (step.name != "ingest" or run in stays.runs_with_data)
            }
    for number in stays.versions:
        needed |= digests_in(versions[number].tags.get("model", ""))
        if number in stays.versions_with_data:
            needed |= digests_in(json.dumps(dataset_of(versions[number])))
    for path, text in own_results():
        if path.name in wanted or is_young(path, before) or is_result_of(text, stays.runs):
            needed |= digests_in(text)
            plan.stay["cached results"] += 1
        else:
            plan.results.append(path)
    # Manifests of version 0.1.0 don't list the run's files. The run's folder has the same bytes under other names.
    linked = {path.stat().st_ino for run in stays.runs for path in run.glob("[!.]*")}
    for path in (home / "store").glob("??/*"):
        if path.name.partition(".")[0] in needed or path.stat().st_ino in linked or is_young(path, before):
            plan.stay["stored files"] += 1
        else:
            plan.files.append(path)
    # Left by a process that was killed while it wrote.
    unfinished = [*(home / "store").glob(".writing-*"), *(home / "checkpoints").glob("*")]
    plan.unfinished = [folder for folder in unfinished if not is_young(folder, before)]
    # Left by `make reproduce`, for a person to look at.
    plan.rebuilt = [folder for folder in (home / "reproduce").glob("*") if not is_young(folder, before)]


def is_young(path: Path, before: datetime) -> bool:
    """Whether a file or folder was changed since a time."""
    return path.stat().st_mtime > before.timestamp()


def versions_that_stay(
    found: "list[ModelVersion]", aliases: dict[str, int], moves: list[AliasMove], newest: int, before: datetime
) -> tuple[set[int], set[int]]:
    """The versions that stay whatever other things need; and among these, the champion and the champion before it.

    A champion that a person replaced stays. If it were registered again, it would count as a new model and be promoted.
    """
    numbers = sorted((int(version.version) for version in found), reverse=True)
    young = {int(v.version) for v in found if v.creation_timestamp > before.timestamp() * 1000}
    replaced = {number for number in numbers if replaced_by_hand(moves, number)}
    # The history doesn't know an alias that was moved on MLflow's own page.
    reigning = {*champions(moves)[-2:], aliases.get(CHAMPION)}
    stay = set(numbers) & {*numbers[:newest], *young, *replaced, *reigning, *aliases.values()}
    return stay, stay & reigning


def read_aliases(mlflow: "MlflowClient") -> dict[str, int]:
    """Version by alias."""
    models = mlflow.search_registered_models(f"name = '{REGISTERED_MODEL}'")
    return {alias: int(version) for model in models for alias, version in model.aliases.items()}


def digests_in(text: str) -> set[str]:
    """All digests that occur in a text."""
    return set(re.findall("[0-9a-f]{64}", text))


def own_results() -> Iterator[tuple[Path, str]]:
    """The results that Prefect keeps for this project, as text. Other projects may use the same folder."""
    for path in get_current_settings().results.local_storage_path.glob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            if re.search(r'__class__\\*": \\*"(artifacts|tasks)\.', text) or re.search(SERIALIZERS, text):
                yield path, text


def is_result_of(text: str, folders: Iterable[Path]) -> bool:
    """Whether one of these runs computed the result. Data sets have their own rule, see `Stays.runs_with_data`."""
    return not re.search(DATASETS, text) and any(folder.name in text for folder in folders)


def recorded_runs(mlflow: "MlflowClient") -> "list[Run]":
    """The MLflow runs that register made, and those of them that a killed gc has deleted but not purged."""
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
    """The flow runs whose folders are removed, and old runs of flows that leave no folder, such as gc.

    Another checkout may use the same server. Its runs of the flow `mnist` have no folder here, and stay.
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
    """New values for the tag `not_reproducible`, by version. None means that the tag is removed.

    MNIST itself can be had again, whatever source it came from. Other data can't.
    """
    store = Settings().home / "store"
    for version in versions:
        dataset = dataset_of(version)
        files = [
            store / file["sha256"][:2] / f"{file['sha256']}{file['suffix']}"
            for file in dataset.values()
            if isinstance(file, dict)
        ]
        own = dataset.get("digest") != MNIST_DIGEST
        gone = own and any(path in going or not path.exists() for path in files)
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


def describe(mlflow: "MlflowClient", plan: Plan, *, applied: bool) -> GcSummary:
    """Say what is removed, and how many bytes of the disk that frees."""
    freed = bytes_freed(
        {
            "run folders": [file for run in plan.runs for file in run.rglob("*")],
            "cached results": plan.results,
            "stored files": plan.files,
            "unfinished files": [file for folder in plan.unfinished for file in folder.rglob("*")],
            "rebuilt versions": [file for folder in plan.rebuilt for file in folder.rglob("*")],
        }
    ) | {"MLflow runs": sum(artifact_bytes(mlflow, run.info.run_id) for run in plan.mlflow_runs)}
    going: dict[str, list[Any]] = {
        "run folders": [folder.name for folder in plan.runs],
        "cached results": plan.results,
        "stored files": plan.files,
        "unfinished files": plan.unfinished,
        "rebuilt versions": plan.rebuilt,
        "model versions": [version.version for version in plan.versions],
        "MLflow runs": plan.mlflow_runs,
        "Prefect flow runs": plan.flow_runs,
        "Prefect artifacts": plan.artifacts,
    }
    return GcSummary(
        applied=applied,
        rows=tuple(
            GcRow(
                what=what,
                removed=len(things),
                size=freed.get(what, 0),
                stay=plan.stay.get(what),
                names=tuple(map(str, things)) if what in ("run folders", "model versions") else (),
            )
            for what, things in going.items()
        ),
        not_reproducible=tuple(number for number, reason in plan.notes.items() if reason),
    )


def bytes_freed(removed: Mapping[str, list[Path]]) -> dict[str, int]:
    """How many bytes of the disk each group frees, if the groups are removed one after the other.

    A file with several names is freed by the group that has its last name.
    """
    names: Counter[tuple[int, int]] = Counter()
    freed = dict.fromkeys(removed, 0)
    for group, paths in removed.items():
        for stat in (path.stat() for path in paths if path.is_file()):
            names[stat.st_dev, stat.st_ino] += 1
            if names[stat.st_dev, stat.st_ino] == stat.st_nlink:
                freed[group] += stat.st_size
    return freed


def artifact_bytes(mlflow: "MlflowClient", run_id: str, folder: str | None = None) -> int:
    """Size of the files that MLflow keeps for a run, in bytes."""
    return sum(
        artifact_bytes(mlflow, run_id, file.path) if file.is_dir else file.file_size or 0
        for file in mlflow.list_artifacts(run_id, folder)
    )


def carry_out(mlflow: "MlflowClient", prefect: SyncPrefectClient, plan: Plan) -> None:
    """Remove it in an order that a kill can't spoil: whatever refers to a thing is removed before that thing."""
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
    for path in plan.results:  # no run is going, so no process holds or waits for the lock of this computation
        (Settings().home / "locks" / path.name).unlink(missing_ok=True)
    # The folder is renamed first, so that it is there as a whole or not at all.
    trash = Settings().home / "trash"
    trash.mkdir(exist_ok=True)
    for folder in (*plan.runs, *plan.unfinished, *plan.rebuilt):
        folder.rename(trash / folder.name)
    shutil.rmtree(trash)


def purge(run_ids: list[str]) -> None:
    """Let MLflow delete runs and their files for good. An MLflow server must do this itself, by its own `mlflow gc`.

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
