"""Promote: make a version the champion because a person says so, after trying it, and keep the reason."""

import getpass
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import prefect.runtime
from prefect import task
from prefect.cache_policies import NO_CACHE

from artifacts.errors import RegistryError
from artifacts.records.release import AliasMove, Version
from artifacts.store import digest_file
from tasks.infra_validate import try_model
from tasks.registry.history import finish_move, history, move_alias, previous_champion
from tasks.registry.versions import (
    CHAMPION,
    GOLDEN_IMAGES,
    GOLDEN_PROBABILITIES,
    MODEL_FILES,
    connect,
    number_by_alias,
    version_by_number,
)
from tasks.running.locks import registry_lock
from tasks.running.logs import run_logger


@task(name="promote", cache_policy=NO_CACHE)
def promote_version(number: int | None, reason: str) -> Version:
    """Make a version the champion.

    Args:
        number: The version's number. None means the champion before the current one.
        reason: The reason, for the history.

    Returns:
        The version. It was tried in a fresh interpreter before the alias moved.

    Raises:
        RegistryError: Raised if there is no such version, no champion before the current one, or nothing to change.
        ModelError: Raised if the version doesn't load, or predicts something else than when it was registered.
    """
    client = connect()
    with registry_lock():
        finish_move(client)
        # Only the number is read, because a champion with damaged files must be replaceable.
        champion = number_by_alias(client, CHAMPION)
        version = version_by_number(client, previous_champion(history(client)) if number is None else number)
        if champion == version.version:
            raise RegistryError(f"version {version.version} is the champion already; nothing was changed")
        with tempfile.TemporaryDirectory() as folder:
            registered = Path(client.download_artifacts(version.mlflow_run_id, MODEL_FILES["keras"], folder))
            if digest_file(registered) != version.model.keras.sha256:
                raise RegistryError(f"the model file of version {version.version} in MLflow was altered; restore it")
            images, expected = (
                np.load(client.download_artifacts(version.mlflow_run_id, name, folder), allow_pickle=False)
                for name in (GOLDEN_IMAGES, GOLDEN_PROBABILITIES)
            )
        try_model(version.model, images, expected)
        move_alias(
            client,
            AliasMove(
                at=datetime.now(UTC),
                by=f"{getpass.getuser()}, flow run {prefect.runtime.flow_run.id}",
                alias=CHAMPION,
                before=champion,
                after=version.version,
                why=reason,
            ),
        )
    run_logger().info(f"version {version.version} is the champion now: {reason}")
    return version
