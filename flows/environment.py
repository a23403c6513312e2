"""The environment of everything that `make` starts: Prefect kept under ``MNIST_HOME``, and nobody called home."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from urllib.request import urlopen

from dotenv import dotenv_values

from artifacts.settings import CHECKOUT, Settings


def environment() -> dict[str, str]:
    """What a process that runs the flow needs in its environment; a value that is set there already stays."""
    settings = Settings()
    home = settings.home
    defaults = {
        "MNIST_HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "results"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # Prefect's 20 s are short for a busy machine
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    if settings.mlflow_tracking_uri:
        defaults["MLFLOW_TRACKING_URI"] = settings.mlflow_tracking_uri
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


@contextmanager
def server() -> Iterator[None]:
    """Have a Prefect server: the one that the environment or ``.env`` names, else an own one on the same database.

    ``.env`` is what `make up` writes; it names a server that is gone if the machine was restarted since.
    """
    from prefect.logging.handlers import APILogHandler
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url = os.environ.get("PREFECT_API_URL") or dotenv_values(CHECKOUT / ".env").get("PREFECT_API_URL")
    if url and answers(url):
        yield
        return
    with SubprocessASGIServer() as temporary, temporary_settings({PREFECT_API_URL: temporary.api_url}):
        try:
            yield
        finally:
            APILogHandler().flush()  # Prefect sends logs in the background; soon nobody is there to take them


def answers(url: str) -> bool:
    """Whether a Prefect server answers at the API address `url`."""
    try:
        with urlopen(f"{url}/health", timeout=5) as response:  # noqa: S310 - the address is the user's own
            return bool(response.status == 200)
    except (OSError, HTTPException):
        return False
