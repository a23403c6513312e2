"""Faults around a run: the disk, the databases, the network, the clock, and bits that flip in what earlier runs left.

The quick ones call the steps; the slow ones start `python -m flows train`, with everything on a small disk.
"""

import hashlib
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from prefect.settings import get_current_settings

from artifacts.errors import DataError, MnistError, RegistryError, StoreError
from artifacts.records.base import Key
from artifacts.records.model import Epoch
from artifacts.settings import CHECKOUT, Settings
from artifacts.store import digest_file, put, write_atomically
from tasks import ingest
from tasks.check_labels import check_labels
from tasks.data import sources
from tasks.evaluate import evaluate_model
from tasks.explain import explain_errors
from tasks.ingest import IngestParameters, ingest_data
from tasks.model.checkpoint import Checkpoint
from tasks.operations.promote import promote_version
from tasks.operations.score import score
from tasks.register import register_model
from tasks.registry.history import find_champion
from tasks.registry.versions import MODEL_FILES, connect, version_by_alias
from tasks.robustness import measure_robustness
from tasks.running.faults import check_registry_server, explain, find_damage
from tasks.train import train_model
from tasks.validate import validate_data
from tests.conftest import FAST, TINY, as_flags, computed
from tests.faults.full_disk import fill
from tests.flows.conftest import run_flow, sample  # noqa: F401
from tests.tasks.test_register import PROMOTE

STEPS = [
    "ingest",
    "validate",
    "check-labels",
    "train",
    "evaluate",
    "robustness",
    "infra-validate",
    "gate",
    "explain",
    "report",
    "register",
    "publish",
]


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.chmod(0o644)
    file.write_bytes(b"")


def cut_short(file: Path) -> None:
    content = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(content[: len(content) // 2])


@contextmanager
def mounted(folder: Path, size: str):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a disk can't be mounted here, so no fault of one was tried: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A small disk of its own as MNIST_HOME, with the store of the session's sample and model."""
    store = Settings().home / "store"
    used = sum(file.stat().st_size for file in store.rglob("*") if file.is_file())  # by all tests of this session
    with mounted(tmp_path / "disk", f"{used + 200_000_000}") as folder:
        shutil.copytree(store, folder / "store") if store.exists() else None
        monkeypatch.setenv("MNIST_HOME", str(folder))
        yield folder


def half_written(home: Path) -> list[Path]:
    """What a write that was cut short has left."""
    store = home / "store"
    return [*store.glob(".writing-*"), *home.glob("runs/*/.*"), *home.glob("checkpoints/*/tmp*")]


def error_of(work) -> MnistError:
    """The line that a person gets when `work` fails."""
    with pytest.raises(Exception) as raised:  # noqa: PT011 - whatever the library makes of it
        work()
    clear = explain(raised.value)
    assert clear, f"no word for {raised.value!r}"
    assert "\n" not in str(clear)
    return clear


def test_a_disk_that_is_full_is_named_whatever_the_step_writes(
    dataset, training, evaluation, robustness, sample_npz, disk, came
):
    works = {
        "ingest": lambda: ingest_data.fn(IngestParameters(source="path", path=sample_npz)),
        "validate": lambda: validate_data.fn(dataset, TINY),
        "check-labels": lambda: check_labels.fn(dataset),
        "train": lambda: train_model.fn(dataset, FAST),
        "evaluate": lambda: evaluate_model.fn(training.model, dataset),
        "robustness": lambda: measure_robustness.fn(training.model, dataset),
        "explain": lambda: explain_errors.fn(training.model, dataset, evaluation, None),
        "register": lambda: register_model.fn(dataset, training, evaluation, PROMOTE),
        "publish": lambda: write_atomically(disk / "manifest.json", "x" * 10_000),
    }
    register_model.fn(dataset, training, evaluation, PROMOTE)  # the champion that must stay
    champion = version_by_alias(connect(), "champion")
    other = training.model_copy(update={"model": training.model.model_copy(update={"weights_digest": "f" * 64})})
    works["register"] = lambda: register_model.fn(dataset, other, evaluation, PROMOTE)
    # None of a model's 12 MB, or not all of them.
    for step, left in [*((step, 0) for step in works), ("train", 5_000_000), ("register", 20_000_000)]:
        shutil.rmtree(disk / "trash", ignore_errors=True)
        fill(left)
        started = time.monotonic()
        clear = error_of(works[step])
        assert isinstance(clear, StoreError)
        assert str(clear).startswith(f"the disk of {disk} is full; make room there"), step
        assert half_written(disk) == [], step
        assert not (disk / "manifest.json").exists()
        (disk / "filler").unlink()
        assert version_by_alias(connect(), "champion") == champion
        if step != "register":  # it would be another champion
            works[step]()
        (disk / "manifest.json").unlink(missing_ok=True)
        came("disk full, a step", "clear error", time.monotonic() - started)
    works["register"]()
    assert version_by_alias(connect(), "champion").version == 2


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one(disk):
    import keras

    model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(1000)])
    model.compile("adam", "mse")
    checkpoint = Checkpoint("key")
    checkpoint.save(model, [])
    kept = disk / "checkpoints" / "key" / "training.npz"
    before = kept.read_bytes()
    fill(1_000_000)
    assert "is full" in str(error_of(lambda: checkpoint.save(model, [])))
    assert list(kept.parent.iterdir()) == [kept]
    assert kept.read_bytes() == before


def test_a_writer_that_gives_no_reason_is_understood_by_the_full_disk(disk):
    def write(path):
        try:
            path.write_bytes(bytes(300 << 20))
        except OSError:
            raise RuntimeError("Unable to synchronously close file") from None  # as HDF5 says it

    assert "is full" in str(error_of(lambda: put(".h5", write)))


@pytest.fixture
def registry(dataset, training, evaluation, tmp_path, monkeypatch):
    """A registry of its own with one version; the folder of its database."""
    before = Settings().home
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "store").symlink_to(before / "store")
    monkeypatch.setenv("MNIST_HOME", str(tmp_path / "home"))
    register_model.fn(dataset, training, evaluation, PROMOTE)
    return tmp_path / "home" / "mlflow"


@pytest.mark.parametrize("spoil", [flip_a_bit, empty, cut_short, Path.unlink], ids=lambda spoil: spoil.__name__)
def test_a_registry_is_not_begun_anew_without_a_word(registry, spoil, came):
    started = time.monotonic()
    file = registry / "mlflow.db"
    if spoil is flip_a_bit:  # of the magic number: one in a page may be in nobody's way
        content = bytearray(file.read_bytes())
        content[3] ^= 1
        file.write_bytes(content)
    else:
        spoil(file)
    clear = error_of(find_champion.fn)
    assert isinstance(clear, StoreError)
    assert str(file) in str(clear)
    assert f"move {registry} away" in str(clear)
    came("MLflow's database damaged or gone", "clear error", time.monotonic() - started)


def test_a_registry_that_another_process_locks_is_named_and_comes_back(registry, came):
    started = time.monotonic()
    with closing(sqlite3.connect(registry / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        clear = error_of(find_champion.fn)
        assert isinstance(clear, RegistryError)
        assert "another process has locked the database sqlite:///" in str(clear)
    assert find_champion.fn().version == 1
    came("MLflow's database locked", "clear error", time.monotonic() - started)


def test_a_registry_server_that_is_down_is_named(home, monkeypatch, came):
    started = time.monotonic()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    clear = error_of(find_champion.fn)
    assert str(clear).startswith("MLflow at http://127.0.0.1:9 doesn't answer; start it")
    assert time.monotonic() - started < 60  # MLflow by itself tries for minutes
    # A command says so before it starts anything.
    for address in ("http://127.0.0.1:9", "http://nowhere.invalid", "http://[bad"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert str(error_of(lambda: check_registry_server(Settings()))).startswith(
            f"MLflow at {address} doesn't answer"
        )
    came("MLflow's server gone", "clear error", time.monotonic() - started)


def command(home: Path, *arguments: str, python: tuple[str, ...] = ("-m", "flows"), before: tuple[str, ...] = ()):
    """Run the command line as a user does, with everything under `home`."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("PREFECT_", "MLFLOW_"))}
    return subprocess.run(
        [*before, sys.executable, *python, *arguments],
        cwd=CHECKOUT,
        env=environment | {"MNIST_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def refused(home: Path, *arguments: str, **how) -> str:
    """What the command line says when it refuses: one line."""
    done = command(home, *arguments, **how)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_read_only_home_is_named_at_once(tmp_path, came):
    with mounted(tmp_path / "disk", "10m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        started = time.monotonic()
        assert f"{disk} can't be written: it is read-only" in refused(disk, "train")
        came("the store read-only", "clear error", time.monotonic() - started)


@pytest.mark.parametrize("how", [("flows", "train"), ("service.server", "up")], ids=["train", "up"])
def test_a_damaged_database_of_prefects_is_named_at_once(tmp_path, how, came):
    file = tmp_path / "prefect" / "prefect.db"
    file.parent.mkdir()
    file.write_bytes(b"x" * 10_000)
    started = time.monotonic()
    line = refused(tmp_path, how[1], python=("-m", how[0]))
    assert f"Prefect's database {file} is damaged (file is not a database)" in line
    assert "move it and its -wal and -shm files away" in line
    assert file.read_bytes() == b"x" * 10_000  # never deleted for the user
    came("Prefect's database damaged", "clear error", time.monotonic() - started)


def test_damage_within_rows_is_named_when_the_server_fails(tmp_path, monkeypatch, came):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    file = Settings().prefect_database
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE artifact (data TEXT)")
        database.executemany("INSERT INTO artifact VALUES (?)", [("x" * 1_000_000,) for _ in range(3)])
        database.commit()
    started = time.monotonic()
    content = bytearray(file.read_bytes())
    middle = len(content) // 4096 // 2 * 4096
    content[middle : middle + 4] = b"\xff" * 4  # the page on which the row goes on
    file.write_bytes(content)
    assert find_damage(file, rows_too=False) is None
    file.write_bytes(content[: len(content) // 2])
    assert find_damage(file, rows_too=False) == "database disk image is malformed"
    file.write_bytes(content)
    clear = error_of(lambda: httpx.Response(500, request=httpx.Request("GET", "http://x/api")).raise_for_status())
    assert f"Prefect's database {file} is damaged (" in str(clear)
    came("Prefect's database damaged", "clear error", time.monotonic() - started)


@pytest.mark.parametrize(
    ("fault", "spoil", "claims_all"),
    [
        ("the network cut during a download", lambda good: good[:-1000], True),
        ("a server that truncates", lambda good: good[:-1000], False),
        ("a server that lies", lambda good: good[:99] + bytes([good[99] ^ 1]) + good[100:], False),
    ],
)
def test_a_download_that_failed_does_not_stay(
    home, monkeypatch, serve, sample_npz, mnist, fault, spoil, claims_all, came
):
    # The real file can't be here: the sample stands in for it.
    monkeypatch.setattr(sources, "KERAS_NPZ", digest_file(sample_npz))
    digests = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in mnist.items()}
    monkeypatch.setattr(ingest, "MNIST", digests)
    monkeypatch.setenv("MNIST_DOWNLOAD_TIMEOUT_SECONDS", "5")
    good = sample_npz.read_bytes()
    started = time.monotonic()
    monkeypatch.setenv("MNIST_KERAS_URL", serve(spoil(good), claims=len(good) if claims_all else None).url)
    assert isinstance(error_of(lambda: ingest_data.fn(IngestParameters(source="keras"))), DataError)
    assert not (home / "store").exists()

    monkeypatch.setenv("MNIST_KERAS_URL", serve(good).url)
    assert ingest_data.fn(IngestParameters(source="keras")).source == "keras"
    came(fault, "recovered", time.monotonic() - started)


def test_a_checkpoint_is_used_whole_or_not_at_all(home, came):
    import keras

    started = time.monotonic()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.compile("adam", "mse")
    epoch = Epoch(epoch=1, loss=1, accuracy=1, val_loss=1, val_accuracy=1, learning_rate=1, seconds=1)
    Checkpoint("key").save(model, [epoch])
    file = home / "checkpoints" / "key" / "training.npz"
    whole, before = file.read_bytes(), [weight.copy() for weight in model.get_weights()]
    for position in range(0, len(whole) * 8, 25):  # a bit in every third byte
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        file.write_bytes(flipped)
        model.set_weights([0 * weight for weight in before])
        if Checkpoint("key").restore(model):
            assert all((weight == good).all() for weight, good in zip(model.get_weights(), before, strict=True))
    came("a checkpoint's bit flipped", "recovered", time.monotonic() - started)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_object_and_record_is_made_again(run_flow, sample, home, came):  # noqa: F811
    results = get_current_settings().results.local_storage_path
    spoils = itertools.cycle([flip_a_bit, empty, cut_short, Path.unlink])

    def records(run):
        keys = {step["name"]: step["key"] for step in run.manifest["steps"] if step["key"]}
        return {step: results / Key.model_validate(key).digest for step, key in keys.items()}

    def objects(run):
        """The stored files that its results name; what is made again can have another name: a model has its date."""
        named = "".join(record.read_text() for record in records(run).values())
        return [file for file in (home / "store").glob("??/*") if file.name[:64] in named]

    def spoil_and_run(file, what):
        started, spoil = time.monotonic(), next(spoils)
        spoil(file)
        again = run_flow(**sample)
        assert again.flow_run.state.is_completed(), file
        made_again = {name for name, step in again.steps.items() if step["state"] == "computed"} & records(again).keys()
        # A file that only the registry's version names comes back from there.
        assert made_again or again.states["find-champion"] == "Completed", file
        for value in ("weights_digest", "version", "champion", "data_digest"):
            assert again.manifest[value] == first.manifest[value]
        assert all(digest_file(stored) == stored.name[:64] for stored in objects(again))
        assert version_by_alias(connect(), "champion").version == 1
        came(f"{what}: {spoil.__name__}", "recovered", time.monotonic() - started)
        return again, made_again

    # The first one changes the registry; what the second one is answered by it is kept, too.
    first, last = run_flow(**sample), run_flow(**sample)
    assert {*STEPS, "find-champion"} <= records(last).keys()
    for step in records(last):
        last, made_again = spoil_and_run(records(last)[step], "a result record")
        assert step in made_again
    stored = objects(last)
    assert len(stored) >= 20
    for file in stored:
        if file in objects(last):
            last, _ = spoil_and_run(file, "a stored file")


@pytest.fixture(scope="module")
def flags(sample_parameters):
    return as_flags(sample_parameters)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, flags):
    """A small disk as MNIST_HOME on which a run has ended well, Prefect's and MLflow's databases included."""
    with mounted(tmp_path_factory.mktemp("around") / "disk", "600m") as disk:
        done = command(disk, "train", *flags)
        assert done.returncode == 0, done.stderr
        yield disk


def succeeds(home: Path, *arguments: str, **how) -> str:
    done = command(home, *arguments, **how)
    assert done.returncode == 0, done.stderr
    return done.stdout


def champion_loads(home: Path) -> bool:
    code = "import mlflow; print(mlflow.keras.load_model('models:/mnist@champion').count_params())"
    uri = f"sqlite:///{home}/mlflow/mlflow.db"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"MLFLOW_TRACKING_URI": uri}, capture_output=True, text=True
    )
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("left", [0, 15_000_000])
@pytest.mark.parametrize("step", STEPS)
def test_the_disk_runs_full_at_a_step_of_a_run(ran, flags, step, left, came):
    if left and step not in ("train", "register"):
        pytest.skip("the other steps write less")
    # A seed that no other case has: what they trained is reused.
    changed = [f"--train.seed={STEPS.index(step) + left}"] if step in ("train", "register") else []
    arguments = ["train", *flags, *changed]
    if not changed:
        # Of whichever run: the champion, by which some results differ, may have changed in between.
        for manifest in ran.glob("runs/*/manifest.json"):
            for kept in json.loads(manifest.read_text()).get("steps", ()):
                if kept["name"] == step and kept["key"]:
                    (ran / "results" / Key.model_validate(kept["key"]).digest).unlink(missing_ok=True)
    done = command(ran, step, str(left), *arguments, python=("-m", "tests.faults.full_disk"))
    started = time.monotonic()
    try:
        assert done.returncode == 1, done.stderr
        # Prefect's client leaves its line about lost log lines without an end.
        assert f"error: the disk of {ran} is full; make room there" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert half_written(ran) == []
        assert champion_loads(ran)
    finally:
        (ran / "filler").unlink(missing_ok=True)
    assert "reused from run" in succeeds(ran, *arguments)
    assert half_written(ran) == []
    assert champion_loads(ran)
    came(f"disk full at {step}, the command line", "clear error", time.monotonic() - started)
    shutil.rmtree(ran / "checkpoints", ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_damaged_database_that_is_moved_away_is_begun_anew(ran, flags, came):
    started = time.monotonic()
    for name in ("-wal", "-shm"):
        (ran / "prefect" / f"prefect.db{name}").unlink(missing_ok=True)
    file = ran / "prefect" / "prefect.db"
    file.write_bytes(os.urandom(100_000))
    assert "is damaged" in refused(ran, "train", *flags)
    file.rename(file.with_suffix(".damaged"))
    assert computed(succeeds(ran, "train", *flags)) <= {"register"}
    came("Prefect's database damaged", "clear error", time.monotonic() - started)

    started = time.monotonic()
    (ran / "mlflow" / "mlflow.db").write_bytes(os.urandom(100_000))
    assert "is damaged" in refused(ran, "train", *flags)
    (ran / "mlflow").rename(ran / "mlflow-damaged")
    assert "version 1 is the champion" in succeeds(ran, "train", *flags)
    assert champion_loads(ran)
    shutil.rmtree(ran / "mlflow-damaged")
    came("MLflow's database damaged or gone", "clear error", time.monotonic() - started)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_registry_locked_for_some_seconds_is_waited_for(ran, flags, came):
    locked = threading.Event()

    def lock():
        with closing(sqlite3.connect(ran / "mlflow" / "mlflow.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            locked.set()
            time.sleep(30)  # the fault itself

    holder = threading.Thread(target=lock)
    holder.start()
    locked.wait()
    started = time.monotonic()
    succeeds(ran, "train", *flags, "--gate.hold_for_approval")  # another verdict: its tag is to be written
    assert time.monotonic() - started > 25
    holder.join()
    came("MLflow's database locked for 30 s", "recovered", time.monotonic() - started)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not shutil.which("faketime"), reason="Debian's package faketime isn't installed: no clock jumps")
def test_a_clock_that_jumps_loses_nothing(ran, flags, came):
    versions = []
    for n, jump in enumerate(["-365d", "+365d"]):
        started = time.monotonic()
        succeeds(ran, "train", *flags, f"--train.seed={10 + n}", before=("faketime", "-f", jump))
        assert "reused from run" in succeeds(ran, "train", *flags)
        succeeds(ran, "gc", "--apply")
        succeeds(ran, "gc", "--apply", before=("faketime", "-f", jump))
        assert computed(succeeds(ran, "train", *flags)) <= {"register"}
        assert champion_loads(ran)
        moves = succeeds(ran, "history").splitlines()
        versions.append(len(moves))
        came(f"the clock jumped by {jump}", "recovered", time.monotonic() - started)
    assert versions == sorted(versions)


def test_a_champion_whose_files_were_altered_is_refused_and_taken_back(registry, dataset, training, evaluation, came):
    import keras

    started = time.monotonic()
    saved_anew = put(".keras", keras.saving.load_model(training.model.keras.path).save)  # with another date in it
    model = training.model.model_copy(update={"weights_digest": "f" * 64, "keras": saved_anew})
    client = connect()
    other = training.model_copy(update={"model": model})
    version = register_model.fn(dataset, other, evaluation, PROMOTE).version
    assert version.version == 2
    run = client.get_run(version.mlflow_run_id)
    altered = Path(run.info.artifact_uri.removeprefix("file://"), MODEL_FILES["keras"])
    model.keras.path.unlink()
    altered.write_bytes(b"something else")
    for work in (find_champion.fn, lambda: next(score(np.zeros((1, 28, 28), np.uint8)))):
        assert "version 2 of mnist can't be trusted" in str(error_of(work))
    assert promote_version.fn(None, "its file was altered").version == 1
    assert register_model.fn(dataset, training, evaluation, PROMOTE).champion_number == 1
    came("a registered model altered", "clear error", time.monotonic() - started)
