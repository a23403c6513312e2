"""The environment of every command: Prefect keeps its files under ``MNIST_HOME``, and no library calls home."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from io import TextIOWrapper
from typing import NoReturn
from urllib.request import urlopen

from dotenv import dotenv_values

from artifacts.errors import MnistError
from artifacts.settings import CHECKOUT, Settings
from tasks.running.faults import check_prefect, check_registry, check_registry_server, explain
from tasks.running.relocation import relocate_registry

# Servers of this machine are never reached through a proxy.
LOOPBACK = "127.0.0.1,localhost,::1"


def environment() -> dict[str, str]:
    """The variables that a process needs to run a flow. Most variables that are set already keep their value."""
    settings = Settings()
    home = settings.home
    defaults = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "results"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    if settings.mlflow_tracking_uri:
        defaults["MLFLOW_TRACKING_URI"] = settings.mlflow_tracking_uri
    direct = {
        name: ",".join(filter(None, [os.environ.get(name, "").removesuffix(LOOPBACK).rstrip(","), LOOPBACK]))
        for name in ("NO_PROXY", "no_proxy")
    }
    kept = {name: os.environ.get(name) or value for name, value in defaults.items()}
    return kept | direct | {"MNIST_HOME": str(home)}


def prepare() -> None:
    """Set the environment before Prefect is imported. Make ``MNIST_HOME``, and check that it can be used.

    Raises:
        OSError: Raised if ``MNIST_HOME`` can't be written, or its disk is full.
        StoreError: Raised if a database is damaged.
        RegistryError: Raised if the registry's server doesn't answer.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 must not fail a run
    os.umask(os.umask(0o077) | 0o022)  # whatever the user's umask is, nobody else may write what is made here
    os.environ.update(environment())
    settings = Settings()
    for folder in (settings.home / "prefect", settings.prefect_database.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=settings.home) as probe:
        probe.write(bytes(1_000_000))
    check_prefect(settings)
    check_registry(settings)
    check_registry_server(settings)
    relocate_registry(settings)


@contextmanager
def server() -> Iterator[Callable[[], None] | None]:
    """Provide a Prefect server: the one that the environment or ``.env`` names, or a temporary one on its database.

    `make up` writes ``.env``. If the machine was restarted since then, the server that ``.env`` names is gone.

    Yields:
        A function that waits until the temporary server answers, so that imports can go on while it starts. None if a
        server answers already.
    """
    url = os.environ.get("PREFECT_API_URL") or dotenv_values(CHECKOUT / ".env").get("PREFECT_API_URL")
    if url and answers(url):
        yield None
        return
    with temporary_server() as (url, ready):
        from prefect.logging.handlers import APILogHandler
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: url}):
            try:
                yield ready
            finally:
                APILogHandler().flush()  # Prefect sends logs in the background, and the server is about to end


@contextmanager
def temporary_server() -> Iterator[tuple[str, Callable[[], None]]]:
    """Run a Prefect server until the context ends. Yields its API's address, and a function that waits for its answer.

    Prefect's own temporary server ends on the same Ctrl-C as the run, so the run couldn't report its end to it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "uvicorn", "--factory", "service.web:temporary", "--port", str(port)]
    # The log of the last start only: whatever a person must know, the run itself says.
    log = Settings().home / "prefect" / "server.log"
    log.write_bytes(b"")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "--log-level", "error", "--timeout-graceful-shutdown", "5"],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            process_group=0,
        )

    def ready() -> None:
        from prefect.logging import get_logger

        get_logger().info(f"Waiting for a temporary server on {url}")
        deadline = time.monotonic() + 120
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise MnistError(f"Prefect's server didn't start; see {log}")
            time.sleep(0.1)

    try:
        yield url, ready
    finally:
        process.terminate()
        process.wait()


def fail(error: Exception) -> NoReturn:
    """End a command with exit code 1 and one line that explains the error. A defect keeps its traceback."""
    clear = explain(error)
    if clear is None:
        raise error
    print(f"error: {clear}", file=sys.stderr)
    sys.exit(1)


def answers(url: str) -> bool:
    """Whether a Prefect server answers at the API address `url`."""
    try:
        with urlopen(f"{url}/health", timeout=5) as response:  # noqa: S310 - the address is the user's own
            return bool(response.status == 200)
    except (OSError, HTTPException):
        return False
