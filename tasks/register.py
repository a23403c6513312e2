"""Register: put the model into MLflow's registry, unless it is there already, and carry out the verdict."""

import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import prefect.runtime
from prefect import task
from prefect.cache_policies import NO_CACHE

from artifacts.dataset import load_test, read_array
from artifacts.records.data import Dataset
from artifacts.records.evaluation import Evaluation
from artifacts.records.model import Training
from artifacts.records.release import AliasMove, Registration, Verdict, Version
from artifacts.settings import Settings
from tasks.data.drift import profile
from tasks.model.saved import load_model
from tasks.registry.history import finish_move, history, move_alias, replaced_by_hand
from tasks.registry.lineage import identity, lineage_tags
from tasks.registry.versions import (
    CHALLENGER,
    CHAMPION,
    GOLDEN_IMAGES,
    GOLDEN_PROBABILITIES,
    MODEL_FILES,
    OF_THE_REGISTRY,
    PROFILE,
    REGISTERED_MODEL,
    connect,
    find_number,
    number_by_alias,
    read_version,
    registry_digest,
    version_by_tags,
)
from tasks.running.cache import StepCache, library_version, origin
from tasks.running.logs import run_logger

if TYPE_CHECKING:
    from mlflow import MlflowClient


N_GOLDEN = 100


def _reads(dataset: Dataset, training: Training, verdict: Verdict) -> dict[str, str] | None:
    """The state of the registry, and the code that trained the model, which a record's identity leaves out."""
    del verdict
    read = registry_digest()
    return read and read | identity(dataset, training)


@task(name="find-registration", cache_policy=StepCache(libraries=("mlflow",), reads=_reads), **OF_THE_REGISTRY)
def find_registration(dataset: Dataset, training: Training, verdict: Verdict) -> Registration | None:
    """The registration of a model that is registered already. None if register has something to write."""
    client = connect()
    version = version_by_tags(client, identity(dataset, training))
    if version is None:
        return None
    aliases = compare_aliases(client, version, verdict)
    if aliases.due or find_number(client, version.version).tags.get("verdict") != verdict.decision:
        return None
    run_logger().info(f"version {version.version} of {REGISTERED_MODEL} was registered already")
    return Registration(
        version=version,
        created=False,
        champion_number=aliases.champion_number,
        previous_champion_number=aliases.champion_number,
        withheld=aliases.withheld,
        origin=origin(),
    )


class Aliases(NamedTuple):
    """Which versions have the aliases, and which aliases the run's version should get.

    Attributes:
        challenger_number: The number of the version with the alias `challenger`, if there is one.
        champion_number: The number of the champion's version, if there is one.
        due: The aliases that the run's version should get and doesn't have.
        withheld: Why a person took the alias `champion` from this version, if the verdict would give it back.
    """

    challenger_number: int | None
    champion_number: int | None
    due: list[str]
    withheld: str | None


def compare_aliases(client: "MlflowClient", version: Version, verdict: Verdict) -> Aliases:
    """Compare the versions that have the aliases with those that should: the newest one, and the last one promoted."""
    # Only the number of another version counts; its files may be damaged.
    challenger_number, champion_number = (number_by_alias(client, alias) for alias in (CHALLENGER, CHAMPION))
    due = [CHALLENGER] if challenger_number is None or challenger_number < version.version else []
    withheld = None
    if verdict.decision == "promote" and champion_number != version.version:
        withheld = replaced_by_hand(history(client), version.version)
        due += [CHAMPION] if withheld is None else []
    return Aliases(challenger_number, champion_number, due, withheld)


@task(name="register", cache_policy=NO_CACHE, **OF_THE_REGISTRY)
def register_model(dataset: Dataset, training: Training, evaluation: Evaluation, verdict: Verdict) -> Registration:
    """Register the model, unless a version with the same weights, data and code exists, and carry out the verdict.

    The alias `challenger` goes to a new version. The alias `champion` moves only if the verdict is to promote.
    """
    client = connect()
    finish_move(client)
    version = version_by_tags(client, identity(dataset, training))
    created = version is None
    if version is None:
        version = create_version(client, dataset, training, evaluation)
    aliases = compare_aliases(client, version, verdict)
    if CHALLENGER in aliases.due:
        move_alias(client, move(CHALLENGER, aliases.challenger_number, version, "newly registered", verdict))
    client.set_model_version_tag(REGISTERED_MODEL, str(version.version), "verdict", verdict.decision)
    promoted = CHAMPION in aliases.due
    if promoted:
        reasons = "; ".join(f"{check.name}: {check.detail}" for check in verdict.checks)
        move_alias(client, move(CHAMPION, aliases.champion_number, version, reasons, verdict))
    run_logger().info(
        f"version {version.version} of {REGISTERED_MODEL} {'registered' if created else 'was registered already'}"
        f"{', and is the champion now' if promoted else ''}"
    )
    return Registration(
        version=version,
        created=created,
        champion_number=version.version if promoted else aliases.champion_number,
        previous_champion_number=aliases.champion_number,
        withheld=aliases.withheld,
        origin=origin(),
    )


def move(alias: str, before: int | None, after: Version, why: str, verdict: Verdict) -> AliasMove:
    """The record of an alias that this run moves."""
    return AliasMove(
        at=datetime.now(UTC),
        by=f"flow run {prefect.runtime.flow_run.id}" if prefect.runtime.flow_run.id else "a call without a run",
        alias=alias,
        before=before,
        after=after.version,
        why=why,
        verdict=verdict.decision,
    )


def create_version(client: "MlflowClient", dataset: Dataset, training: Training, evaluation: Evaluation) -> Version:
    """Log an MLflow run with the model, its parameters, metrics and history, and register it as a new version."""
    lineage = {
        **identity(dataset, training),
        "git_revision": (training.origin and training.origin.revision) or "unknown",
        "prefect_flow_run_id": prefect.runtime.flow_run.id or "none",
    }
    run_id = client.create_run(
        _experiment(client), tags=lineage, run_name=training.model.weights_digest[:12]
    ).info.run_id
    key = training.origin.key if training.origin else None
    for name, value in (key.inputs if key else {}).items():
        client.log_param(run_id, name, value)
    for name, metric in evaluation.metrics().items():
        client.log_metric(run_id, f"test_{name.removeprefix('n_')}", metric)
    client.log_metric(run_id, "fit_seconds", training.fit_seconds)
    for step, epoch in enumerate(training.history, start=1):
        for name, value in epoch.model_dump().items():
            client.log_metric(run_id, name, value, step=step)
    with tempfile.TemporaryDirectory() as folder:
        remade = lineage_tags(dataset, training, evaluation, Path(folder))
        _write_mlflow_model(Path(folder) / "model", dataset, training)
        shutil.copyfile(training.model.h5.path, Path(folder) / MODEL_FILES["h5"])
        np.save(Path(folder) / GOLDEN_IMAGES, load_test(dataset).x[:N_GOLDEN])
        probabilities = read_array(evaluation.probabilities)
        np.save(Path(folder) / GOLDEN_PROBABILITIES, probabilities[:N_GOLDEN])
        usual = profile(read_array(dataset.x_train), probabilities)
        (Path(folder) / PROFILE).write_text(usual.model_dump_json())
        client.log_artifacts(run_id, folder)
    client.set_terminated(run_id)
    if not client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
        client.create_registered_model(REGISTERED_MODEL)
    return read_version(
        client,
        client.create_model_version(
            REGISTERED_MODEL,
            source=f"runs:/{run_id}/model",
            run_id=run_id,
            tags={**lineage, **remade, "model": training.model.model_dump_json()},
        ),
    )


def _experiment(client: "MlflowClient") -> str:
    found = client.get_experiment_by_name(REGISTERED_MODEL)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            run_logger().warning(f"the experiment {REGISTERED_MODEL} was deleted in MLflow; it is restored")
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    # With a database, MLflow would put files below the current folder. A server has its own place for them.
    database = Settings().registry_database
    location = (database.parent / "artifacts").as_uri() if database else None
    return client.create_experiment(REGISTERED_MODEL, artifact_location=location)


def _write_mlflow_model(folder: Path, dataset: Dataset, training: Training) -> None:
    import mlflow.keras
    from mlflow.models import infer_signature

    model = load_model(training.model)
    images = load_test(dataset).x[:2]
    folder.mkdir()
    mlflow.keras.save_model(
        model,
        str(folder),
        signature=infer_signature(images, model.predict(images, verbose=0)),
        input_example=images,
        pip_requirements=[f"{name}=={library_version(name)}" for name in ("keras", "numpy", "tensorflow")],
    )
    # MLflow has saved the model again, with another date inside. Register the bytes that were evaluated.
    shutil.copyfile(training.model.keras.path, folder.parent / MODEL_FILES["keras"])
