"""Moving the champion by hand: tried first, recorded always, and back again."""

from pathlib import Path

import numpy as np
import pytest

from artifacts.errors import ModelError, RegistryError
from artifacts.records.release import AliasMove, Check, Verdict
from tasks.operations.promote import promote_version
from tasks.register import register_model
from tasks.registry.history import find_champion, history, previous_champion
from tasks.registry.versions import connect

PROMOTE = Verdict(decision="promote", checks=(Check(name="c", passed=True, on_failure="hold", detail="d"),), rival=None)


@pytest.fixture
def two_versions(tmp_path, monkeypatch, dataset, training, evaluation):
    """A registry of its own with two versions, the second of which is the champion; the files are the session's."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    other = training.model.model_copy(update={"weights_digest": "f" * 64})
    register_model.fn(dataset, training, evaluation, PROMOTE)
    register_model.fn(dataset, training.model_copy(update={"model": other}), evaluation, PROMOTE)
    assert find_champion.fn().version == 2


def moves(alias="champion"):
    return [(move.before, move.after, move.verdict, move.why) for move in history(connect()) if move.alias == alias]


def test_each_move_is_kept_with_its_reason_and_shown_on_the_models_page(two_versions):
    assert moves() == [(None, 1, "promote", "c: d"), (1, 2, "promote", "c: d")]
    assert moves("challenger") == [(None, 1, "promote", "newly registered"), (1, 2, "promote", "newly registered")]
    page = connect().get_registered_model("mnist").description
    assert "| champion | 1 | 2 |" in page
    assert page.index("| champion | 1 | 2 |") < page.index("| champion | none | 1 |")


def test_rollback_and_forward_again(two_versions):
    assert promote_version.fn(None, "the second misreads sevens").version == 1
    assert find_champion.fn().version == 1
    assert moves()[-1] == (2, 1, None, "the second misreads sevens")
    assert promote_version.fn(2, "it was the camera").version == 2
    assert promote_version.fn(None, "no, it wasn't").version == 1


def test_nothing_is_moved_without_need_or_without_a_version(two_versions):
    with pytest.raises(RegistryError, match="version 2 is the champion already"):
        promote_version.fn(2, "again")
    with pytest.raises(RegistryError, match="mnist has no version 9"):
        promote_version.fn(9, "why not")
    assert len(moves()) == 2


def test_a_version_that_predicts_otherwise_is_not_promoted(two_versions):
    client = connect()
    run = client.get_run(client.get_model_version("mnist", "1").run_id)
    golden = Path(run.info.artifact_uri.removeprefix("file://"), "golden_probabilities.npy")
    golden.chmod(0o644)
    np.save(golden, np.full((100, 10), 0.1, np.float32))
    with pytest.raises(ModelError, match="predicts something else"):
        promote_version.fn(None, "back")
    assert find_champion.fn().version == 2
    assert len(moves()) == 2


def test_the_history_survives_hostile_reasons(two_versions):
    promote_version.fn(1, "a | b\n<script>alert(1)</script>")
    page = connect().get_registered_model("mnist").description
    assert "<script>" not in page
    assert moves()[-1][3] == "a | b\n<script>alert(1)</script>"


def test_the_gate_does_not_undo_what_a_person_did(two_versions, dataset, training, evaluation):
    promote_version.fn(None, "misreads sevens")
    other = training.model.model_copy(update={"weights_digest": "f" * 64})
    again = register_model.fn(dataset, training.model_copy(update={"model": other}), evaluation, PROMOTE)
    assert (again.version.version, again.champion_number, again.withheld) == (2, 1, "misreads sevens")
    assert find_champion.fn().version == 1
    promote_version.fn(2, "it was the camera")
    first = register_model.fn(dataset, training, evaluation, PROMOTE)
    assert (first.version.version, first.champion_number, first.withheld) == (1, 2, "it was the camera")


def test_going_back_twice_goes_back_two():
    def champion(before, after):
        return AliasMove(at="2026-01-01T00:00:00Z", by="b", alias="champion", before=before, after=after, why="w")

    moves = [champion(None, 1), champion(1, 2), champion(2, 3)]
    assert previous_champion(moves) == 2
    assert previous_champion([*moves, champion(3, 2)]) == 1
    assert previous_champion([*moves, champion(3, 2), champion(2, 4)]) == 2
    with pytest.raises(RegistryError, match="no version was champion before"):
        previous_champion(moves[:1])


def test_an_altered_file_in_the_registry_is_not_promoted(two_versions):
    client = connect()
    run = client.get_run(client.get_model_version("mnist", "1").run_id)
    Path(run.info.artifact_uri.removeprefix("file://"), "model/data/model.keras").write_bytes(b"something else")
    with pytest.raises(RegistryError, match="the model file of version 1 in MLflow was altered"):
        promote_version.fn(None, "back")
    assert find_champion.fn().version == 2
