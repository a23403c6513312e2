"""`python -m flows`, as `make train` calls it, in fresh processes against a real server."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from flows.__main__ import parse
from flows.gc import gc
from flows.train import mnist
from tasks.registry.versions import connect
from tests.conftest import computed
from tests.deployed import copied
from tests.flows.conftest import Run


@pytest.fixture
def flags(sample):
    return [f"--{name}={model.model_dump_json()}" for name, model in sample.items()]


@pytest.fixture
def start(prefect_server, home):
    """Start the command with the tests' server; its output is read when it is waited for."""
    from prefect.settings import PREFECT_API_URL

    def start(*arguments: str, python: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *python, "-m", "flows", "train", *arguments],
            env=os.environ
            | {
                "PREFECT_API_URL": PREFECT_API_URL.value(),
                "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "results"),
            }
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    return start


def finish(process):
    output, errors = process.communicate(timeout=200)
    return process.returncode, output, errors


def test_it_ends_with_a_summary_and_the_next_run_needs_no_heavy_library(start, flags, home):
    code, output, errors = finish(start(*flags))
    assert code == 0, errors
    assert "epoch 1.00 of 1: loss" in errors
    assert "s left" in errors
    assert "version 1 is the champion" in output
    assert re.search(r"test accuracy 0\.\d{4}, \d+ of 100 wrong", output)
    folder = re.search(r"the run's folder +(\S+)", output).group(1)
    assert json.loads(Path(folder, "metrics.json").read_text())["n_test"] == 100

    # The second asks the registry, which the first one changed; the third knows the answer.
    for again, needs_mlflow in (({"register"}, True), (set(), False)):
        code, output, errors = finish(start(*flags, python=("-X", "importtime")))
        assert code == 0
        assert computed(output) == again
        imported = set(re.findall(r"\| +([\w.]+)$", errors, flags=re.MULTILINE))
        assert ("mlflow" in imported) == needs_mlflow
        assert imported.isdisjoint({"tensorflow", "keras", "great_expectations", "matplotlib"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.epochs=0"], "error: --train.epochs 0: Input should be greater than or equal to 0.01"),
        (["--train.epochs=many"], "error: --train.epochs many: Input should be a valid number"),
        (["--train.network=resnet"], "no network is called 'resnet'; there are baseline"),
        (["--ingest.source=path"], "error: --ingest: Value error, `path` names a file or folder if"),
        (["--trian.epochs=1"], "unrecognized arguments: --trian.epochs=1; `--help` lists the flags"),
    ],
)
def test_a_wrong_flag_is_named_in_one_line(start, arguments, message):
    code, output, errors = finish(start(*arguments))
    assert code != 0
    assert message in errors
    assert "Traceback" not in errors
    assert len(errors.splitlines()) == 1
    assert output == ""


def nothing(arrays):
    return None


def one_array(arrays):
    return {"x_train": arrays["x_train"]}


def transposed(arrays):
    return {name: array.swapaxes(1, -1) if name[0] == "x" else array for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (nothing, "digits.npz can't be read: No such file or directory; check the name, and who may read it"),
        (one_array, "digits.npz lacks the arrays x_test, y_test, y_train; add them with numpy.savez"),
        (transposed, "column agrees_with_mnist, .* loosen the bounds"),
    ],
)
def test_bad_input_fails_the_run_in_one_line(start, flags, home, tmp_path, arrays, make, said):
    made = make(arrays)
    if made:
        np.savez(tmp_path / "digits.npz", **made)
    bad = json.dumps({"source": "path", "path": str(tmp_path / "digits.npz")})
    code, output, errors = finish(start(*flags, f"--ingest={bad}"))
    assert code == 1
    line = errors.splitlines()[-1]
    assert re.search(f"^error: .*{said}", line)
    assert "Traceback" not in errors
    assert output == ""

    (folder,) = (home / "runs").iterdir()
    run = Run(folder.name, home)
    assert run.flow_run.state.name == "Failed"
    assert line.removeprefix("error: ") in run.flow_run.state.message
    assert run.manifest["state"] == "failed"
    assert run.states.keys() <= {"check-registry", "ingest", "validate"}
    assert not connect().search_model_versions("name = 'mnist'")
    assert not list((home / "store").glob(".writing-*"))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, copy_checkout):
    """A copy of the checkout in which runs are interrupted."""
    return copied(tmp_path_factory.mktemp("interrupted"), copy_checkout)


@pytest.mark.parametrize(
    ("send", "number", "exit_code", "word"),
    [
        (os.killpg, signal.SIGINT, 130, "interrupted"),  # as a terminal does it: to all that it runs in the foreground
        (os.kill, signal.SIGTERM, 143, "terminated"),
        (os.kill, signal.SIGHUP, 143, "terminated"),  # the terminal was closed
    ],
)
def test_ctrl_c_or_sigterm_ends_the_run_in_one_line_and_its_server(
    sample, tmp_path, interrupted, send, number, exit_code, word
):
    sample["train"] = sample["train"].model_copy(update={"epochs": 1000, "seed": number})
    checkpoints = set((interrupted.home / "checkpoints").glob("*"))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "flows",
            "train",
            *(f"--{name}={model.model_dump_json()}" for name, model in sample.items()),
        ],
        cwd=interrupted.checkout,
        env=interrupted.environment | {"PREFECT_HOME": str(tmp_path / "prefect")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What a shell starts in the background ignores Ctrl-C, and so do these tests then, and all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stderr:
        if "epoch 1.00 of 1000" in line:
            break
    send(process.pid, number)
    code, output, errors = finish(process)
    assert code == exit_code, errors
    assert errors.splitlines()[-1] == f"{word}; the finished steps are kept, and the next run reuses them"
    assert "Traceback" not in errors
    assert output == ""
    with closing(sqlite3.connect(tmp_path / "prefect" / "prefect.db")) as database:
        assert database.execute("SELECT state_type FROM flow_run").fetchall() == [("CRASHED",)]
    (new,) = set((interrupted.home / "checkpoints").glob("*")) - checkpoints
    assert (new / "training.npz").exists()  # what the next run goes on from
    assert interrupted.processes() == []


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"PYTHONIOENCODING": "latin-1"},  # it has no …
        {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"},  # nothing listens there
    ],
    ids=["plain", "a terminal without UTF-8", "a proxy"],
)
def test_help_lists_every_parameter_with_its_description(start, environment):
    code, output, errors = finish(start("--help", **environment))
    assert code == 0, errors
    assert "temporary server" not in errors
    for flag in ("--ingest.source", "--validate.n_train", "--train.epochs", "--gate.minimum_accuracy", "--refresh"):
        assert flag in output
    assert "Compute every step again" in output


@pytest.mark.parametrize(("command", "flow", "flag"), [("train", mnist, "refresh"), ("gc", gc, "apply")])
def test_what_is_on_or_off_is_a_flag_without_a_value(monkeypatch, command, flow, flag):
    for given, expected in (([], False), ([f"--{flag}"], True), ([f"--no-{flag}"], False)):
        monkeypatch.setattr("sys.argv", ["flows", command, *given])
        assert parse(flow.fn, command)[flag] is expected


def test_the_flags_of_version_0_1_still_work(monkeypatch):
    given = ["--validation.n_train=7", '--validation={"n_test": 5}', "--train.seed=3"]
    monkeypatch.setattr("sys.argv", ["flows", "train", *given])
    parameters = parse(mnist.fn, "train")
    assert (parameters["validate"].n_train, parameters["validate"].n_test, parameters["train"].seed) == (7, 5, 3)
