"""Copies of the checkout with `make up` in them: real servers and a real worker, as a user has them."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Deployed:
    """A copy of the checkout, its MNIST_HOME, and the environment of a user's shell in it: nothing is exported."""

    checkout: Path
    home: Path
    environment: Mapping[str, str]
    port: int

    @property
    def ui(self) -> str:
        """The address of the Prefect UI."""
        return f"http://127.0.0.1:{self.port}"

    def run(self, *command: str, check: bool = True, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout, as after `. .venv/bin/activate`."""
        result = subprocess.run(
            command,
            cwd=self.checkout,
            env={**self.environment, **extra},
            capture_output=True,
            text=True,
            timeout=240,
        )
        if check and result.returncode:
            pytest.fail(f"{command} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
        return result

    def python(self, code: str, *arguments: str) -> str:
        """Run Python code in the checkout; it finds the server as any client does, and prints an answer."""
        return self.run(sys.executable, "-c", code, *arguments).stdout

    def load_champion(self) -> str:
        """Load the champion in a process of its own; its number of parameters."""
        loaded = self.python(
            "import mlflow; from artifacts.settings import Settings; mlflow.set_tracking_uri(Settings().tracking_uri);"
            "print(mlflow.keras.load_model('models:/mnist@champion').count_params())"
        )
        return loaded.split()[-1]

    def processes(self) -> list[str]:
        """The command lines of all processes that belong to this copy."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                environment = (folder / "environ").read_bytes()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except (NotADirectoryError, FileNotFoundError, PermissionError, ProcessLookupError):
                continue
            if f"MNIST_HOME={self.home}\0".encode() in environment and command:
                found.append(command)
        return found


def free_port() -> int:
    """A port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def copied(folder: Path, copy_checkout: Callable[[Path], Path]) -> Deployed:
    """A copy of the checkout, in which nothing runs, with ports of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MNIST_"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MNIST_HOME": str(folder / "home"),
        "MNIST_PREFECT_PORT": str(port := free_port()),
        "MNIST_REPORT_PORT": str(free_port()),
        "MNIST_MLFLOW_PORT": str(free_port()),
    }
    return Deployed(copy_checkout(folder / "checkout"), folder / "home", environment, port)


@contextmanager
def made_up(checkout: Deployed) -> Iterator[Deployed]:
    """The copy after `make up`; `make down` ends it."""
    # A user's shell needs no variable then: `.env` has them.
    user = {name: value for name, value in checkout.environment.items() if not name.startswith("MNIST_")}
    try:
        checkout.run(sys.executable, "-m", "service.server", "up")
        yield Deployed(checkout.checkout, checkout.home, user, checkout.port)
    finally:
        checkout.run(sys.executable, "-m", "service.server", "down")
    assert checkout.processes() == []


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory, copy_checkout: Callable[[Path], Path]) -> Deployed:
    """The copy that many tests share: `make up` takes its time. They leave the servers as they found them."""
    return copied(tmp_path_factory.mktemp("shared"), copy_checkout)


@pytest.fixture(scope="session")
def deployed(checkout: Deployed) -> Iterator[Deployed]:
    """The shared copy, with servers and worker."""
    with made_up(checkout) as deployed:
        yield deployed


@pytest.fixture(scope="module")
def own_checkout(tmp_path_factory: pytest.TempPathFactory, copy_checkout: Callable[[Path], Path]) -> Deployed:
    """A copy for one file of tests."""
    return copied(tmp_path_factory.mktemp("own"), copy_checkout)


@pytest.fixture(scope="module")
def own_deployed(own_checkout: Deployed) -> Iterator[Deployed]:
    """The file's own copy, with servers and worker."""
    with made_up(own_checkout) as deployed:
        yield deployed
