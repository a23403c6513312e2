"""What stays and what goes, in a real store, a real MLflow registry (SQLite) and on a real Prefect server."""

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from mlflow.entities.model_registry import ModelVersion
from prefect.results import ResultRecord, ResultRecordMetadata
from pydantic import ValidationError

from artifacts.dataset import read_array
from artifacts.errors import StoreError
from artifacts.records.release import AliasMove, Check, Verdict
from artifacts.store import put, put_bytes
from tasks.operations.gc import GcParameters, collect_garbage, versions_that_stay
from tasks.register import register_model
from tasks.registry.versions import connect
from tasks.running.cache import SERIALIZER
from tasks.running.locks import no_run_going, store_lock
from tests.conftest import HOME

pytestmark = pytest.mark.expensive  # it fills a real registry

PROMOTE = Verdict(decision="promote", checks=(Check(name="c", passed=True, on_failure="hold", detail="d"),), rival=None)
HOLD = PROMOTE.model_copy(update={"decision": "hold"})
# As much as can go.
ALL = GcParameters(days=0, runs=1, versions=1, wait_minutes=0)


@pytest.fixture
def collect(prefect_server, home):
    """Collect in an empty MNIST_HOME, with Prefect's results in it."""
    from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings

    with temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: home / "results"}):
        yield lambda keep=ALL, apply=True: collect_garbage.fn(keep, apply)


def removed(collection):
    """Count by kind, without what other tests left on the session's Prefect server."""
    return {row.what: row.removed for row in collection.rows if row.removed and not row.what.startswith("Prefect")}


def move(before, after, *, by_hand=False):
    verdict = None if by_hand else "promote"
    return AliasMove(
        at="2026-01-01T00:00:00Z", by="b", alias="champion", before=before, after=after, why="w", verdict=verdict
    )


@pytest.mark.parametrize(
    ("moves", "aliases", "stay"),
    [
        ([move(None, 1)], {"champion": 1}, {1, 6}),
        ([move(None, 1), move(1, 2), move(2, 3)], {"champion": 3}, {2, 3, 6}),
        ([move(None, 1), move(1, 2), move(2, 3), move(3, 2, by_hand=True)], {"champion": 2}, {1, 2, 3, 6}),
        ([], {"champion": 2, "shadow": 4}, {2, 4, 6}),
    ],
    ids=["champion", "the one before it", "one that a person replaced", "aliases without a history"],
)
def test_versions_that_stay_however_old(moves, aliases, stay):
    versions = [ModelVersion("mnist", str(number), creation_timestamp=0) for number in range(1, 7)]
    assert versions_that_stay(versions, aliases, moves, 1, datetime.now(UTC))[0] == stay
    versions[4] = ModelVersion("mnist", "5", creation_timestamp=datetime.now(UTC).timestamp() * 1000)
    assert versions_that_stay(versions, aliases, moves, 1, datetime.now(UTC) - timedelta(days=1))[0] == stay | {5}


def test_the_newest_run_and_version_always_stay():
    for name in ("runs", "versions"):
        with pytest.raises(ValidationError, match="greater than or equal to 1"):
            GcParameters(**{name: 0})


# As Prefect keeps a step's record, and that a step found nothing.
NOTHING = ResultRecord(result=None, metadata=ResultRecordMetadata(storage_key="k", serializer=SERIALIZER)).serialize()


@pytest.mark.parametrize("kept", [b'{"__class__": "artifacts.records.data.Dataset"}', NOTHING])
def test_a_result_goes_with_its_lock(collect, home, kept):
    old, lock = home / "results" / ("a" * 64), home / "locks" / ("a" * 64)
    for file in (old, lock):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(kept)
    collect(apply=False)
    assert lock.exists()
    assert removed(collect()) == {"cached results": 1}
    assert not lock.exists()
    assert (home / "locks" / "registry").exists()


def test_files_that_nothing_needs_go_when_they_are_old(collect, home):
    orphan, linked = put_bytes(".txt", b"x" * 1000), put_bytes(".txt", b"y" * 100)
    for name in ("old", "new"):
        (home / "runs" / name).mkdir(parents=True)
        linked.link_to(home / "runs" / name / "linked.txt")
        (home / "runs" / name / "manifest.json").write_text('{"state": "failed"}')
    os.utime(home / "runs" / "old", (0, 0))
    killed = home / "store" / ".writing-killed"
    killed.mkdir()
    (killed / "file.npy").write_bytes(b"z" * 10)
    rebuilt = home / "reproduce" / "version-3" / "model.keras"
    rebuilt.parent.mkdir(parents=True)
    rebuilt.write_bytes(b"r" * 7)
    foreign = home / "results" / "foreign"
    foreign.parent.mkdir()
    foreign.write_text('{"result": "of another project"}')

    assert removed(collect(ALL.model_copy(update={"days": 1}), apply=False)) == {"run folders": 1}
    before = sorted(home.rglob("*"))
    planned = collect(apply=False)
    assert sorted(home.rglob("*")) == before
    assert removed(planned) == {
        "run folders": 1,
        "stored files": 1,
        "unfinished files": 1,
        "rebuilt versions": 1,
    }
    assert "nothing was removed" in str(planned)

    done = collect()
    assert removed(done) == removed(planned)
    # Of what is linked, a name is left.
    assert done.size == planned.size == 1000 + 10 + 7 + len('{"state": "failed"}')
    assert not orphan.path.exists()
    assert not killed.exists()
    assert not rebuilt.exists()
    assert linked.path.samefile(home / "runs" / "new" / "linked.txt")
    assert [folder.name for folder in (home / "runs").iterdir()] == ["new"]
    assert foreign.exists()
    assert removed(collect()) == {}


def test_a_version_whose_data_go_says_so_and_takes_it_back(collect, home, dataset, training, evaluation):
    shutil.copytree(HOME / "home" / "store", home / "store")
    inverted = 255 - read_array(dataset.x_train)
    own = put(".npy", lambda path: np.save(path, inverted))
    other_data = dataset.model_copy(update={"digest": "d" * 64, "x_train": own})
    other_model = training.model.model_copy(update={"weights_digest": "f" * 64})
    register_model.fn(dataset, training, evaluation, PROMOTE)
    register_model.fn(other_data, training.model_copy(update={"model": other_model}), evaluation, HOLD)
    client = connect()
    for number, data in ((1, dataset), (2, other_data)):
        lineage = json.dumps({"dataset": data.model_dump(mode="json", exclude={"origin"})})
        client.set_model_version_tag("mnist", str(number), "lineage", lineage)
        client.delete_model_version_tag("mnist", str(number), "not_reproducible")

    def reason(number):
        return client.get_model_version("mnist", str(number)).tags.get("not_reproducible")

    assert collect().not_reproducible == ()
    assert own.path.exists()
    kept = collect(ALL.model_copy(update={"data": 0}), apply=False)
    assert (kept.not_reproducible, reason(2)) == ((2,), None)

    collect(ALL.model_copy(update={"data": 0}))
    assert not own.path.exists()
    assert reason(2).startswith("its data set isn't in the store any more")
    assert "d" * 12 in reason(2)
    assert reason(1) is None
    for file in (dataset.x_train, dataset.y_test, training.model.keras, training.model.h5):
        assert (home / "store" / file.sha256[:2] / f"{file.sha256}{file.suffix}").exists()

    put(".npy", lambda path: np.save(path, inverted))
    collect()
    assert own.path.exists()
    assert reason(2) is None


def test_an_mlflow_run_of_a_registration_that_failed_goes(collect, home, dataset, training, evaluation):
    shutil.copytree(HOME / "home" / "store", home / "store")
    kept = register_model.fn(dataset, training, evaluation, PROMOTE).version.mlflow_run_id
    client = connect()
    experiment = client.get_experiment_by_name("mnist").experiment_id
    orphan = client.create_run(experiment, tags={"weights_digest": "f" * 64}).info.run_id
    client.log_text(orphan, "x" * 500, "deep/model.txt")
    own = client.create_run(experiment).info.run_id
    # A gc that was killed before it could purge what it had deleted.
    killed = client.create_run(experiment, tags={"weights_digest": "e" * 64, "removed_by": "gc"}).info.run_id
    client.delete_run(killed)
    thrown_away = client.create_run(experiment, tags={"weights_digest": "a" * 64}).info.run_id
    client.delete_run(thrown_away)

    done = collect()
    assert removed(done)["MLflow runs"] == 2
    assert next(row.size for row in done.rows if row.what == "MLflow runs") == 500
    left = client.search_runs([experiment], run_view_type=3)
    assert {run.info.run_id for run in left} == {kept, own, thrown_away}
    assert not [path for path in (home / "mlflow" / "artifacts" / orphan).rglob("*") if path.is_file()]


def test_nothing_is_removed_while_a_run_goes(collect, home):
    orphan = put_bytes(".txt", b"x")
    code = (
        "from tasks.running.locks import store_lock\n"
        "with store_lock().read_lock():\n    print('going', flush=True)\n    input()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "going\n"
        with pytest.raises(StoreError, match="runs are still going after 0 minutes"):
            collect()
        assert orphan.path.exists()
        assert removed(collect(apply=False)) == {"stored files": 1}
        run.kill()  # however it ends
    collect()
    assert not orphan.path.exists()


def test_no_run_begins_while_gc_removes(home):
    from filelock import Timeout

    with no_run_going(0), pytest.raises(Timeout):
        store_lock().acquire_read(timeout=0)
    store_lock().acquire_read(timeout=0).lock.release()
