"""Making a version again: what is kept for it, what stops it, which difference is named, and once the whole way."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from artifacts.errors import GitError, RegistryError, ReproduceError
from artifacts.records.base import Origin
from artifacts.records.release import Check, Lineage, Verdict
from tasks.data.sources import MNIST_DIGEST
from tasks.evaluate import evaluate_model
from tasks.ingest import IngestParameters, ingest_data
from tasks.operations import reproduce
from tasks.operations.reproduce import checkout, compare, reproduce_version, write_data
from tasks.register import register_model
from tasks.registry.lineage import LINEAGE, NOT_REPRODUCIBLE, PATCH, describe_making, lineage_tags
from tasks.registry.versions import connect
from tasks.running.revision import WorkingTree, git, uncommitted
from tasks.train import train_model
from tests.conftest import FAST, TINY

VERDICT = Verdict(decision="promote", checks=(Check(name="c", passed=True, on_failure="hold", detail="d"),), rival=None)


@pytest.fixture
def repository(tmp_path, copy_checkout, monkeypatch):
    """A copy of the checkout as a git repository of its own, with one commit."""
    folder = copy_checkout(tmp_path / "repository")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "A. Person")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "person@example.org")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "All of it")
    return folder


def edit(repository: Path) -> None:
    """What somebody who tries something leaves uncommitted."""
    networks = repository / "tasks" / "model" / "networks.py"
    networks.write_text("import tasks.model.tried\n" + networks.read_text().replace("Dropout(0.25)", "Dropout(0.5)"))
    (repository / "tasks" / "model" / "tried.py").write_text("TRIED = 'naïve'\n")
    (repository / "artifacts" / "templates" / "tried.md").write_text("# Tried\n")
    (repository / "CHANGELOG.md").unlink()
    (repository / "docs" / "report.png").write_bytes(b"\0\1\2")
    (repository / "digits.npz").write_bytes(b"not the project's")


def as_if_computed(record, step, **inputs):
    """A record as if a flow run had computed it."""
    key = step.cache_policy.key(step.name, step.fn.__module__, inputs)
    origin = Origin(flow_run_id="r", at=datetime.now(UTC), seconds=1, revision=None, key=key)
    return record.model_copy(update={"origin": origin})


@pytest.fixture
def trained(dataset, training):
    return as_if_computed(training, train_model, dataset=dataset, parameters=FAST)


@pytest.fixture
def evaluated(dataset, training, evaluation):
    return as_if_computed(evaluation, evaluate_model, model=training.model, dataset=dataset)


@pytest.fixture
def version(tmp_path, monkeypatch, dataset, trained, evaluated):
    """That model's version in a registry of its own, trained from a dirty tree of a revision that isn't here."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr("tasks.registry.lineage.working_tree", lambda: WorkingTree("1" * 40, b"a patch"))
    register_model.fn(dataset, trained, evaluated, VERDICT)
    return connect().get_model_version("mnist", "1")


@pytest.fixture
def lineage(dataset, trained, evaluated):
    return Lineage(
        revision="0" * 40,
        patch=None,
        parameters=FAST.model_dump(mode="json"),
        **describe_making(dataset, trained, evaluated, trained.origin.key, evaluated.origin.key),
    )


def test_a_patch_makes_the_same_files_of_the_commit(repository, tmp_path):
    edit(repository)
    status, index = git(repository, "status", "--porcelain"), (repository / ".git" / "index").read_bytes()
    patch = uncommitted(repository)
    assert git(repository, "status", "--porcelain") == status
    assert (repository / ".git" / "index").read_bytes() == index
    (tmp_path / PATCH).write_bytes(patch)

    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    git(clone, "apply", str(tmp_path / PATCH))
    for name in ("tasks/model/networks.py", "tasks/model/tried.py", "artifacts/templates/tried.md", "docs/report.png"):
        assert (clone / name).read_bytes() == (repository / name).read_bytes()
    assert not (clone / "CHANGELOG.md").exists()
    assert not (clone / "digits.npz").exists()


def test_what_a_user_has_set_for_reading_diffs_does_not_spoil_the_patch(repository):
    edit(repository)
    patch = uncommitted(repository)
    settings = {"color.diff": "always", "diff.external": "false", "diff.noprefix": "true", "diff.relative": "true"}
    for name, value in settings.items():
        git(repository, "config", name, value)
    assert uncommitted(repository) == patch


def test_an_unchanged_tree_has_no_patch_and_no_git_is_said(repository, tmp_path):
    assert uncommitted(repository) == b""
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(GitError, match="not a git repository"):
        uncommitted(tmp_path / "elsewhere")


def test_register_keeps_all_that_is_needed(version, dataset, training):
    kept = Lineage.model_validate_json(version.tags[LINEAGE])
    assert kept.revision == "1" * 40
    assert kept.parameters == FAST.model_dump(mode="json")
    assert kept.dataset["digest"] == dataset.digest
    assert (kept.n_train, kept.n_validation) == (180, 20)
    assert {"python", "keras", "numpy", "scikit-learn", "tensorflow"} <= kept.libraries.keys()
    assert {"tasks.train", "tasks.evaluate", "tasks.model.networks"} <= kept.code.keys()
    assert kept.weights_digest == training.model.weights_digest
    assert kept.processor.endswith(f"{len(os.sched_getaffinity(0))} cores")
    assert Path(connect().download_artifacts(version.run_id, PATCH)).read_bytes() == b"a patch"
    assert NOT_REPRODUCIBLE not in version.tags


def test_what_stops_it_is_said_in_one_line(version):
    with pytest.raises(RegistryError, match="mnist has no version 9"):
        reproduce_version(9)
    with pytest.raises(ReproduceError, match=r"revision 1{40} isn't in the git repository of .*--unshallow") as caught:
        reproduce_version(1)
    assert "\n" not in str(caught.value)
    client = connect()
    patch = Path(client.get_run(version.run_id).info.artifact_uri.removeprefix("file://"), PATCH)
    patch.write_bytes(b"another")
    with pytest.raises(ReproduceError, match=r"uncommitted\.patch of MLflow run .* was altered"):
        reproduce_version(1)
    client.delete_model_version_tag("mnist", "1", LINEAGE)
    with pytest.raises(ReproduceError, match=r"version 1 .* registered before lineage was kept"):
        reproduce_version(1)
    client.set_model_version_tag("mnist", "1", NOT_REPRODUCIBLE, "its data were removed on 2026-01-01")
    with pytest.raises(ReproduceError, match="version 1 can't be made again: its data were removed on 2026-01-01"):
        reproduce_version(1)


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        (WorkingTree(None, b""), "its code isn't in a git repository"),
        (WorkingTree("1" * 40, b"x" * 5_000_001), "its uncommitted changes were 5,000,001 bytes"),
    ],
)
def test_what_can_not_be_made_again_says_why(tree, reason, dataset, trained, evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.registry.lineage.working_tree", lambda: tree)
    tags = lineage_tags(dataset, trained, evaluated, tmp_path)
    assert tags.keys() == {NOT_REPRODUCIBLE}
    assert tags[NOT_REPRODUCIBLE].startswith(reason)
    assert not (tmp_path / PATCH).exists()


def test_a_training_whose_parameters_nobody_kept_says_so(dataset, training, evaluation, tmp_path):
    assert "outside of a flow run" in lineage_tags(dataset, training, evaluation, tmp_path)[NOT_REPRODUCIBLE]


def test_a_worktree_has_the_patched_files_and_is_gone_afterwards(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "CHECKOUT", repository)
    revision = git(repository, "rev-parse", "HEAD").decode().strip()
    edit(repository)
    (tmp_path / PATCH).write_bytes(uncommitted(repository))
    worktree = tmp_path / "worktree"
    with checkout(revision, tmp_path / PATCH, worktree) as project:
        assert "Dropout(0.5)" in (project / "tasks" / "model" / "networks.py").read_text()
        assert (project / "tasks" / "model" / "tried.py").exists()
        (project / "left.txt").touch()
    assert_nothing_left(repository, worktree)

    (tmp_path / PATCH).write_bytes(b"no patch")
    with (
        pytest.raises(GitError, match=r"git apply in .*: error: No valid patches"),
        checkout(revision, tmp_path / PATCH, worktree),
    ):
        pass
    assert_nothing_left(repository, worktree)


def test_a_worktree_that_a_killed_call_left_is_no_obstacle(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "CHECKOUT", repository)
    worktree = tmp_path / "worktree"
    git(repository, "worktree", "add", "--quiet", "--detach", str(worktree))
    (worktree / "Makefile").unlink()
    with checkout("HEAD", None, worktree) as project:
        assert (project / "Makefile").exists()
    assert_nothing_left(repository, worktree)


def test_the_project_may_be_a_folder_of_a_larger_repository(tmp_path, repository, monkeypatch):
    (repository / ".git").rename(tmp_path / ".git")
    (tmp_path / ".gitignore").write_text("worktree\n")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "Moved into a folder")
    edit(repository)
    (tmp_path / PATCH).write_bytes(uncommitted(repository))
    monkeypatch.setattr(reproduce, "CHECKOUT", repository)
    with checkout("HEAD", tmp_path / PATCH, tmp_path / "worktree") as project:
        assert (project / "tasks" / "model" / "tried.py").exists()
        assert "Dropout(0.5)" in (project / "tasks" / "model" / "networks.py").read_text()
    assert_nothing_left(tmp_path, tmp_path / "worktree")


def assert_nothing_left(repository, worktree):
    assert not worktree.exists()
    assert git(repository, "worktree", "list").decode().count("\n") == 1


def test_the_data_come_from_the_store_else_from_the_package_else_from_the_user(lineage, dataset, tmp_path):
    npz = write_data(lineage, tmp_path / "data.npz")
    assert ingest_data.fn(IngestParameters(source="path", path=npz)).digest == dataset.digest

    gone = lineage.dataset | {"x_test": lineage.dataset["x_test"] | {"sha256": "f" * 64}}
    with pytest.raises(ReproduceError, match=r"data, [0-9a-f]{12}…, aren.t in the store any more .*--ingest.path"):
        write_data(lineage.model_copy(update={"dataset": gone}), tmp_path / "none.npz")
    packaged = lineage.model_copy(update={"dataset": gone | {"source": "path", "digest": MNIST_DIGEST}})
    assert write_data(packaged, tmp_path / "none.npz") is None


DIFFERENCES = {
    "code tasks.model.networks": {"code": {"tasks.model.networks": "d" * 64}},
    "library keras": {"libraries": {"keras": "3.0"}},
    "data": {"dataset": {"digest": "d" * 64}},
    "arithmetic": {"arithmetic": "mixed_bfloat16"},
    "processor": {"processor": "another"},
}


@pytest.mark.parametrize("first", range(len(DIFFERENCES)))
def test_the_first_thing_that_differs_is_named(lineage, first):
    changes = {"weights_digest": "d" * 64}
    for fields in list(DIFFERENCES.values())[first:]:
        for name, value in fields.items():
            changes[name] = getattr(lineage, name) | value if isinstance(value, dict) else value
    reproduction = made(lineage, changes)
    assert not reproduction.identical
    assert f"the first that differs is {list(DIFFERENCES)[first]}: " in str(reproduction)


def test_another_python_is_named_not_the_code_that_it_parses_otherwise(lineage):
    other = {
        "code": dict.fromkeys(lineage.code, "d" * 64),
        "libraries": lineage.libraries | {"python": "3.99.1"},
        "weights_digest": "d" * 64,
    }
    assert "the first that differs is library python: 3." in str(made(lineage, other))


def test_the_result_alone_decides_whether_it_is_identical(lineage):
    assert made(lineage, {"processor": "another"}).identical
    assert "identical in weights and figures" in str(made(lineage, {"processor": "another"}))
    figures = lineage.metrics | {"accuracy": 0.5}
    assert not made(lineage, {"metrics": figures}).identical
    assert "nothing that is recorded differs" in str(made(lineage, {"metrics": figures}))


def made(lineage, changes):
    causes, results = compare(lineage, lineage.model_copy(update=changes))
    return reproduce.Reproduction(version=1, causes=causes, results=results, folder=Path("folder"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dirty_tree_trains_a_version_that_comes_out_the_same_and_a_hidden_edit_is_found(
    repository, sample_npz, tmp_path
):
    """The real thing, on the sample: flow runs, new virtual environments from the lock, the command line."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MNIST_"))}

    def flows(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "flows", *arguments],
            cwd=repository,
            env=clean | {"MNIST_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr

    def train():
        source = json.dumps({"source": "path", "path": str(sample_npz)})
        code, output = flows(
            "train", f"--ingest={source}", f"--validate={TINY.model_dump_json()}", f"--train={FAST.model_dump_json()}"
        )
        assert code == 0, output

    edit(repository)
    train()
    code, output = flows("reproduce", "--version=1")
    assert code == 0, output
    assert "version 1 was made again, identical in weights and figures" in output

    # Git was told not to look at an edit, so the patch lacks it.
    git(repository, "update-index", "--assume-unchanged", "tasks/model/networks.py")
    networks = repository / "tasks" / "model" / "networks.py"
    networks.write_text(networks.read_text().replace("Dropout(0.5)", "Dropout(0.6)"))
    train()
    code, output = flows("reproduce", "--version=2")
    assert code == 1, output
    assert "version 2 came out different; the first that differs is code tasks.model.networks: " in output
    assert_nothing_left(repository, tmp_path / "home" / "reproduce" / "version-2" / "checkout")
