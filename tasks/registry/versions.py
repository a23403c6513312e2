"""MLflow's model registry: how versions are read."""

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

from pydantic import ValidationError

from artifacts.errors import RegistryError
from artifacts.records.model import Model
from artifacts.records.release import Version
from artifacts.settings import Settings
from artifacts.store import put
from tasks.running.faults import check_registry, may_pass
from tasks.running.relocation import relocate_registry

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


REGISTERED_MODEL = "mnist"
CHAMPION, CHALLENGER = "champion", "challenger"
# For tasks that read or change the registry: a locked database is released, and a server comes back.
OF_THE_REGISTRY: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": [1, 5, 25],
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": may_pass,
}
# The names of the files of `Model` in a version's MLflow run.
MODEL_FILES = {"keras": "model/data/model.keras", "h5": "model.h5"}
# Some test images, with the probabilities of the evaluation for them, to try the model with years later.
GOLDEN_IMAGES, GOLDEN_PROBABILITIES = "golden_images.npy", "golden_probabilities.npy"
# What is usual of the training data (`tasks.data.drift.Profile`), to tell whether other images look like them.
PROFILE = "profile.json"


def import_mlflow() -> ModuleType:
    """Import MLflow, and the slow modules that MLflow imports later. A run does this while its server starts."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    import mlflow.store.tracking.sqlalchemy_store

    # It would log the traceback of each error that it raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    # MLflow's default of seven retries takes minutes, and the tasks retry anyway.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    return mlflow


def connect() -> "MlflowClient":
    """A client of the registry that the settings name. The embedded registry is made if it isn't there yet."""
    mlflow = import_mlflow()
    settings = Settings()
    check_registry(settings)
    relocate_registry(settings)
    (settings.home / "mlflow").mkdir(parents=True, exist_ok=True)
    client: MlflowClient = mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)
    return client


def registry_digest() -> dict[str, str] | None:
    """The digest of the registry's database, for tasks that only read it. None if it isn't a file, but a server.

    While the database is unchanged, a run reuses the answers of an earlier run. It then needs no MLflow, whose import
    takes as long as the rest of such a run.
    """
    file = Settings().registry_database
    if file is None or not file.is_file():
        return None
    digest = hashlib.sha256(file.read_bytes())
    for written_beside in ("-wal", "-journal"):
        with suppress(FileNotFoundError):  # a commit may just be ending
            digest.update(file.with_name(file.name + written_beside).read_bytes())
    return {"registry": digest.hexdigest()}


def version_by_alias(client: "MlflowClient", alias: str) -> Version | None:
    """The version that has an alias, if there is one."""
    number = number_by_alias(client, alias)
    return read_version(client, client.get_model_version(REGISTERED_MODEL, str(number))) if number else None


def number_by_alias(client: "MlflowClient", alias: str) -> int | None:
    """The number of the version that has an alias. Its files may be missing or altered."""
    found = [v for v in client.search_registered_models(f"name = '{REGISTERED_MODEL}'") if alias in v.aliases]
    return int(found[0].aliases[alias]) if found else None


def version_by_tags(client: "MlflowClient", tags: dict[str, str]) -> Version | None:
    """The newest version that has all these tags, if there is one."""
    conditions = [f"name = '{REGISTERED_MODEL}'", *(f"tags.`{name}` = '{value}'" for name, value in tags.items())]
    found = client.search_model_versions(" and ".join(conditions), max_results=1)
    return read_version(client, found[0]) if found else None


def version_by_number(client: "MlflowClient", number: int) -> Version:
    """The version with a number.

    Raises:
        RegistryError: Raised if there is no such version.
    """
    return read_version(client, find_number(client, number))


def find_number(client: "MlflowClient", number: int) -> "ModelVersion":
    """MLflow's entity of the version with a number, with all its tags.

    Raises:
        RegistryError: Raised if there is no such version.
    """
    found = client.search_model_versions(f"name = '{REGISTERED_MODEL}' and version_number = {number}")
    if not found:
        raise RegistryError(f"{REGISTERED_MODEL} has no version {number}; `make history` shows the versions")
    return found[0]


def read_version(client: "MlflowClient", found: "ModelVersion") -> Version:
    """Turn MLflow's entity into our record. If the store lost a model file, it is copied back from the registry.

    Raises:
        RegistryError: Raised if another program registered the version, or the registry's copy is missing or altered
            too.
    """
    if "model" not in found.tags:
        raise RegistryError(
            f"version {found.version} of {found.name} was registered by another program, so it can't be judged; if it "
            "is the champion, make another version the champion: make promote VERSION=… REASON=…"
        )
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
