"""MLflow's model registry: reading versions, and the lock under which a verdict is reached and carried out."""

import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import prefect.runtime
from filelock import FileLock
from prefect import task
from pydantic import ValidationError

from artifacts.errors import RegistryError
from artifacts.records import AliasMove, Model, Version
from artifacts.report import escape_markdown
from artifacts.settings import Settings
from artifacts.store import put
from tasks.caching import StepCache, file_lock
from tasks.faults import check_registry, may_pass

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

REGISTERED_MODEL = "mnist"
CHAMPION, CHALLENGER = "champion", "challenger"
# MLflow keeps no history of its aliases: each move is a tag of the registered model, numbered, never changed.
HISTORY = "history."
N_SHOWN = 50
# Of a task that asks or changes the registry: a database that is locked, or a server that is away, may come back.
OF_THE_REGISTRY: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": [1, 5, 25],
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": may_pass,
}
# Where a version's MLflow run keeps the files of `Model`.
MODEL_FILES = {"keras": "model/data/model.keras", "h5": "model.h5"}
# And some test images with the probabilities that the evaluation had for them, to try the model by, years later.
GOLDEN_IMAGES, GOLDEN_PROBABILITIES = "golden_images.npy", "golden_probabilities.npy"
# Tags of a version: what it was made from (`Lineage` as JSON), and why it can't be made again if it can't.
LINEAGE, NOT_REPRODUCIBLE = "lineage", "not_reproducible"
# Where its MLflow run keeps what its code had besides its git revision, if it had something.
PATCH = "uncommitted.patch"
# And what is usual of its data (`tasks.drift.Profile`), to tell whether other images look like them.
PROFILE = "profile.json"


def import_mlflow() -> ModuleType:
    """Import MLflow and, of what it imports later, what takes long: a run does it while its server starts."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    import mlflow.store.tracking.sqlalchemy_store

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs the traceback of what it raises
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # MLflow's own seven take minutes; tasks try again
    return mlflow


def connect() -> "MlflowClient":
    """A client of the registry that the settings name; the embedded one is made if it isn't there yet."""
    mlflow = import_mlflow()
    settings = Settings()
    check_registry(settings)
    (settings.home / "mlflow").mkdir(parents=True, exist_ok=True)
    client: MlflowClient = mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)
    return client


def exclusive() -> FileLock:
    """The lock that is held from reading who the champion is until a verdict that relies on it is carried out."""
    return file_lock("registry")


def registry_digest() -> dict[str, str] | None:
    """What a task that only asks the registry reads; none if that isn't a file, as of a server.

    While nothing is new, a run takes what an earlier one was answered, and needs no MLflow, whose import takes as long
    as all the rest of it.
    """
    scheme, _, database = Settings().tracking_uri.partition(":///")
    file = Path(database).resolve()
    if scheme != "sqlite" or not file.is_file():
        return None
    digest = hashlib.sha256(file.read_bytes())
    for written_beside in ("-wal", "-journal"):
        with suppress(FileNotFoundError):  # of a commit that ends just now
            digest.update(file.with_name(file.name + written_beside).read_bytes())
    return {"registry": digest.hexdigest()}


@task(name="find-champion", cache_policy=StepCache(libraries=("mlflow",), reads=registry_digest), **OF_THE_REGISTRY)
def find_champion() -> Version | None:
    """The registry's champion, if there is one."""
    return version_by_alias(connect(), CHAMPION)


def version_by_alias(client: "MlflowClient", alias: str) -> Version | None:
    """The version that bears an alias, if one does."""
    number = number_by_alias(client, alias)
    return read_version(client, client.get_model_version(REGISTERED_MODEL, str(number))) if number else None


def number_by_alias(client: "MlflowClient", alias: str) -> int | None:
    """The number of that version, whose files may be missing or altered."""
    found = [v for v in client.search_registered_models(f"name = '{REGISTERED_MODEL}'") if alias in v.aliases]
    return int(found[0].aliases[alias]) if found else None


def version_by_tags(client: "MlflowClient", tags: dict[str, str]) -> Version | None:
    """The newest version that bears all these tags, if one does."""
    conditions = [f"name = '{REGISTERED_MODEL}'", *(f"tags.`{name}` = '{value}'" for name, value in tags.items())]
    found = client.search_model_versions(" and ".join(conditions), max_results=1)
    return read_version(client, found[0]) if found else None


def version_by_number(client: "MlflowClient", number: int) -> Version:
    """The version of that number.

    Raises:
        RegistryError: Raised if there is none.
    """
    return read_version(client, find_number(client, number))


def find_number(client: "MlflowClient", number: int) -> "ModelVersion":
    """MLflow's entity of the version of that number, with all its tags.

    Raises:
        RegistryError: Raised if there is none.
    """
    found = client.search_model_versions(f"name = '{REGISTERED_MODEL}' and version_number = {number}")
    if not found:
        raise RegistryError(f"{REGISTERED_MODEL} has no version {number}; `make history` shows which there are")
    return found[0]


def move_alias(client: "MlflowClient", move: AliasMove) -> None:
    """Move an alias, and keep the move in the history: as a tag, on the model's page, and as a Prefect event.

    Call it with the lock of `exclusive` held. The history is written first: an alias never moves without a trace.
    """
    from prefect.events import emit_event

    moves = history(client)
    # A retry after a failure between the two writes the line once.
    if not moves or moves[-1].model_copy(update={"at": move.at}) != move:
        moves.append(move)
        client.set_registered_model_tag(REGISTERED_MODEL, f"{HISTORY}{len(moves):06}", move.model_dump_json())
    client.set_registered_model_alias(REGISTERED_MODEL, move.alias, str(move.after))
    client.update_registered_model(REGISTERED_MODEL, description=history_markdown(moves))
    if prefect.runtime.flow_run.id:  # a task called as `task.fn(…)` has no server to tell
        emit_event(
            event="mnist.alias.moved",
            resource={"prefect.resource.id": f"mnist.model.{REGISTERED_MODEL}"},
            payload=move.model_dump(mode="json"),
        )


def history(client: "MlflowClient") -> list[AliasMove]:
    """All moves of aliases, the oldest first."""
    found = client.search_registered_models(f"name = '{REGISTERED_MODEL}'")
    tags = {name: value for model in found for name, value in model.tags.items() if name.startswith(HISTORY)}
    return [AliasMove.model_validate_json(tags[name]) for name in sorted(tags)]


def history_markdown(moves: list[AliasMove]) -> str:
    """The text of the model's page in MLflow: what the model is, and the last moves of its aliases."""
    rows = [
        f"| {move.at:%Y-%m-%d %H:%M} | {move.alias} | {move.before or 'none'} | {move.after} "
        f"| {escape_markdown(move.by)} | {escape_markdown(move.why)} | {move.verdict or 'by hand'} |"
        for move in reversed(moves[-N_SHOWN:])
    ]
    head = ("| when (UTC) | alias | from | to | by | why | verdict |", "| --- | --- | --- | --- | --- | --- | --- |")
    return "\n".join(["Classifies images of handwritten digits, 28×28, in 0–1.", "", *head, *rows])


def read_version(client: "MlflowClient", found: "ModelVersion") -> Version:
    """Turn MLflow's entity into our record; model files that have left the store are brought back from the registry.

    Raises:
        RegistryError: Raised if the registry's own copy is missing or altered too.
    """
    try:
        model = Model.model_validate_json(found.tags["model"])
    except ValidationError:
        _restore_files(client, found)
        model = Model.model_validate_json(found.tags["model"])
    return Version(name=found.name, version=int(found.version), mlflow_run_id=str(found.run_id), model=model)


def _restore_files(client: "MlflowClient", found: "ModelVersion") -> None:
    run_id = str(found.run_id)
    expected = json.loads(found.tags["model"])
    for kind, artifact in MODEL_FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(client.download_artifacts(run_id, artifact, folder))
            restored = put(file.suffix, functools.partial(shutil.copyfile, file))
        if restored.sha256 != expected[kind]["sha256"]:
            raise RegistryError(
                f"version {found.version} of {found.name} can't be trusted: {artifact} of its MLflow run "
                f"{run_id} was altered; restore the file from a backup, or delete the version in MLflow "
                "(`make rollback` first, if it is the champion)"
            )
