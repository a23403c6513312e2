"""MLflow's model registry: reading versions, and the lock under which a verdict is reached and carried out."""

import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import ValidationError

from artifacts.errors import RegistryError
from artifacts.records import Model, Version
from artifacts.settings import Settings
from artifacts.store import put

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

REGISTERED_MODEL = "mnist"
CHAMPION, CHALLENGER = "champion", "challenger"
# Where a version's MLflow run keeps the files of `Model`.
MODEL_FILES = {"keras": "model/data/model.keras", "h5": "model.h5"}


def connect() -> "MlflowClient":
    """A client of the registry that the settings name; the embedded one is made if it isn't there yet."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from mlflow import MlflowClient

    settings = Settings()
    (settings.home / "mlflow").mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=settings.tracking_uri)


def exclusive() -> FileLock:
    """The lock that is held from reading who the champion is until a verdict that relies on it is carried out."""
    folder = Settings().home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "registry")


@task(name="find-champion", cache_policy=NO_CACHE, retries=3, retry_delay_seconds=[1, 5, 25], retry_jitter_factor=0.5)
def find_champion() -> Version | None:
    """The registry's champion, if there is one."""
    return version_by_alias(connect(), CHAMPION)


def version_by_alias(client: "MlflowClient", alias: str) -> Version | None:
    """The version that bears an alias, if one does."""
    found = [v for v in client.search_registered_models(f"name = '{REGISTERED_MODEL}'") if alias in v.aliases]
    if not found:
        return None
    return read_version(client, client.get_model_version(REGISTERED_MODEL, found[0].aliases[alias]))


def version_by_tags(client: "MlflowClient", tags: dict[str, str]) -> Version | None:
    """The newest version that bears all these tags, if one does."""
    conditions = [f"name = '{REGISTERED_MODEL}'", *(f"tags.`{name}` = '{value}'" for name, value in tags.items())]
    found = client.search_model_versions(" and ".join(conditions), max_results=1)
    return read_version(client, found[0]) if found else None


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
                f"{run_id} was altered; delete that version, or restore the file from a backup"
            )
