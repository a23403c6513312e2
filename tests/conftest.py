"""What the tests share: a place of their own, a tiny sample of the real MNIST, a Prefect server."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

# Before Prefect is imported: nothing of the user's is read or written, nobody is called.
HOME = Path(tempfile.mkdtemp(prefix="mnist-tests-"))
for name in [name for name in os.environ if name.startswith(("PREFECT_", "MNIST_", "MLFLOW_"))]:
    del os.environ[name]
os.environ |= {
    "MNIST_HOME": str(HOME / "home"),
    "PREFECT_HOME": str(HOME / "prefect"),
    "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(HOME / "results"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

import http.server  # noqa: E402
import json  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import pytest  # noqa: E402

from artifacts.records.data import Dataset  # noqa: E402
from artifacts.records.evaluation import Evaluation, InfraValidation, Robustness  # noqa: E402
from artifacts.records.model import Training  # noqa: E402
from artifacts.settings import CHECKOUT  # noqa: E402
from tasks.data.sources import package_file, read_package  # noqa: E402
from tasks.evaluate import evaluate_model  # noqa: E402
from tasks.infra_validate import validate_infra  # noqa: E402
from tasks.ingest import IngestParameters, ingest_data  # noqa: E402
from tasks.model.recipe import TrainParameters  # noqa: E402
from tasks.robustness import measure_robustness  # noqa: E402
from tasks.train import train_model  # noqa: E402
from tasks.validate import ValidateParameters  # noqa: E402

pytest_plugins = ("tests.deployed",)

# Bounds wide enough for the sample; all else as strict as for MNIST.
TINY = ValidateParameters(
    n_train=200,
    n_test=100,
    pixel_mean_min=0.11,
    pixel_mean_max=0.15,
    blank_border_min=0.95,
    class_share_min=0.02,
    class_share_max=0.25,
    agreement_min=0.6,
)
# A training of the sample that takes a second.
FAST = TrainParameters(epochs=1, precision="float32", validation_share=0.1)


# A test that uses one of these, directly or not, needs a server, TensorFlow, a browser or a copy of the checkout.
EXPENSIVE = {"browser", "copy_checkout", "prefect_server", "training"}
# The files whose tests share one `make up`, so one process runs them all; it takes longest, so it begins first.
SHARED = ("tests/deployment/test_deployment.py", "tests/browser/test_prefect_ui.py", "tests/faults/test_kill.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Define the option of `make quick`."""
    parser.addoption("--quick", action="store_true", help="leave out what needs a server, TensorFlow or a browser")


def pytest_configure(config: pytest.Config) -> None:
    """Take TensorFlow away from a quick run: a test that needs it fails, and must be marked."""
    if config.getoption("--quick"):
        sys.modules["tensorflow"] = sys.modules["keras"] = None  # type: ignore[assignment]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests that take longest first, and leave expensive ones out of a quick run."""
    if config.getoption("--quick"):
        expensive = [
            item
            for item in items
            if item.get_closest_marker("expensive") or EXPENSIVE & set(getattr(item, "fixturenames", ()))
        ]
        config.hook.pytest_deselected(items=expensive)
        items[:] = [item for item in items if item not in expensive]
    order = {file: number for number, file in enumerate(SHARED)}
    items.sort(key=lambda item: order.get(file_of(item.nodeid), len(order)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the tests of a file to one process, and those of all files that share one `make up`."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = file_of(nodeid)
            return "shared" if file in SHARED else file

    return ByFile(config, log)


def file_of(test: str) -> str:
    """The file of a test, by its id."""
    return test.partition("::")[0]


def pytest_sessionfinish() -> None:
    """Leave nothing behind."""
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def mnist() -> dict[str, npt.NDArray[Any]]:
    """The first 200 training and 100 test images of MNIST, and their labels."""
    arrays = read_package(package_file())
    return {name: array[:200] if name.endswith("train") else array[:100] for name, array in arrays.items()}


@pytest.fixture
def arrays(mnist: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The sample, to spoil."""
    return {name: array.copy() for name, array in mnist.items()}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty MNIST_HOME."""
    monkeypatch.setenv("MNIST_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def sample_npz(tmp_path_factory: pytest.TempPathFactory, mnist: dict[str, npt.NDArray[Any]]) -> Path:
    """The sample as a Keras-style .npz."""
    file = tmp_path_factory.mktemp("sample") / "sample.npz"
    np.savez(file, **mnist)
    return file


@pytest.fixture(scope="session")
def dataset(sample_npz: Path) -> Dataset:
    """The sample, ingested into the session's store."""
    return ingest_data.fn(IngestParameters(source="path", path=sample_npz))


@pytest.fixture(scope="session")
def training(dataset: Dataset) -> Training:
    """A model trained on the sample."""
    return train_model.fn(dataset, FAST)


@pytest.fixture(scope="session")
def evaluation(dataset: Dataset, training: Training) -> Evaluation:
    """Its evaluation."""
    return evaluate_model.fn(training.model, dataset)


@pytest.fixture(scope="session")
def infra(dataset: Dataset, training: Training, evaluation: Evaluation) -> InfraValidation:
    """Its infra validation."""
    return validate_infra.fn(training.model, dataset, evaluation)


@pytest.fixture(scope="session")
def robustness(dataset: Dataset, training: Training) -> Robustness:
    """Its figures by slice and change."""
    return measure_robustness.fn(training.model, dataset)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A real Prefect server with an empty database."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


class DownloadServer(http.server.ThreadingHTTPServer):
    """A real server on loopback that answers the first `failures` requests with 503, then with `content`.

    If it claims more bytes than it has, it falls silent after those. With a pause, it sends a byte after each.
    """

    daemon_threads = True

    def __init__(self, content: bytes, failures: int = 0, claims: int | None = None, pause: float = 0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.failures, self.claims = content, failures, claims or len(content)
        self.pause, self.requests = pause, 0
        self.url = f"http://127.0.0.1:{self.server_port}/mnist.npz"


class Handler(http.server.BaseHTTPRequestHandler):
    server: DownloadServer

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.server.requests <= self.server.failures:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(self.server.claims))
        self.end_headers()
        if self.server.pause:
            with suppress(OSError):  # the client has had enough
                for byte in self.server.content:
                    self.wfile.write(bytes([byte]))
                    time.sleep(self.server.pause)
            return
        self.wfile.write(self.server.content)
        if self.server.claims > len(self.server.content):
            time.sleep(2)

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def serve() -> Iterator[Any]:
    """Start a `DownloadServer`; see there for the arguments."""
    servers = []

    def start(*args: Any, **kwargs: Any) -> DownloadServer:
        server = DownloadServer(*args, **kwargs)
        servers.append(server)
        threading.Thread(target=server.serve_forever).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def as_flags(parameters: Mapping[str, Any]) -> list[str]:
    """Parameters, as JSON has them, as the command line takes them."""
    return [
        f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name}={json.dumps(value)}"
        for name, value in parameters.items()
    ]


def computed(printed: str) -> set[str]:
    """The steps that a run didn't reuse, by the summary that it printed."""
    steps = dict(re.findall(r"^ +(\S+) +(computed in|reused from run) ", printed, re.MULTILINE))
    assert {"ingest", "train", "register"} <= steps.keys()
    return {name for name, how in steps.items() if how == "computed in"}


@pytest.fixture(scope="session")
def sample_parameters(sample_npz: Path) -> dict[str, Any]:
    """Parameters for a run of the sample, as JSON has them."""
    return {
        "ingest": {"source": "path", "path": str(sample_npz)},
        "validate": {
            "n_train": 200,
            "n_test": 100,
            "pixel_mean_min": 0.11,
            "pixel_mean_max": 0.15,
            "blank_border_min": 0.95,
            "class_share_min": 0.02,
            "class_share_max": 0.25,
            "agreement_min": 0.6,
        },
        "train": {"epochs": 1, "precision": "float32", "validation_share": 0.1},
        "gate": {"minimum_accuracy": 0, "maximum_calibration_error": 1},
    }


@pytest.fixture(scope="session")
def copy_checkout() -> Callable[[Path], Path]:
    """Copy what git has of the checkout, or would add, into a folder."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]

    def copy(folder: Path) -> Path:
        listed = subprocess.run(listing, cwd=CHECKOUT, capture_output=True, text=True, check=True)
        for name in listed.stdout.splitlines():
            if (CHECKOUT / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(CHECKOUT / name, folder / name)
        return folder

    return copy
