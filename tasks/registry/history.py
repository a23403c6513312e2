"""The history of the registry: each move of an alias, with who moved it, when and why."""

from typing import TYPE_CHECKING

import prefect.runtime
from prefect import task

from artifacts.errors import RegistryError
from artifacts.markdown import escape_markdown
from artifacts.records.release import AliasMove, Version
from tasks.registry.versions import (
    CHAMPION,
    OF_THE_REGISTRY,
    REGISTERED_MODEL,
    connect,
    registry_digest,
    version_by_alias,
)
from tasks.running.cache import StepCache
from tasks.running.locks import registry_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient


def previous_champion(moves: list[AliasMove]) -> int:
    """The version that was champion before the current one.

    Raises:
        RegistryError: Raised if there was none.
    """
    line = champions(moves)
    if len(line) < 2:
        raise RegistryError("no version was champion before the current one; `make history` shows the moves")
    return line[-2]


def champions(moves: list[AliasMove]) -> list[int]:
    """The champions in the order in which each replaced the one before. A rollback removes the last one."""
    line: list[int] = []
    for move in moves:
        if move.alias == CHAMPION:
            line = [*line[: line.index(move.after)], move.after] if move.after in line else [*line, move.after]
    return line


def replaced_by_hand(moves: list[AliasMove], version: int) -> str | None:
    """Why a person took the alias `champion` from a version, if nothing has happened to the version since.

    Only a person may undo what a person decided. Otherwise the next nightly run would undo a rollback.
    """
    moved = [m for m in moves if m.alias == CHAMPION and version in (m.before, m.after)]
    if moved and moved[-1].before == version and moved[-1].verdict is None:
        return moved[-1].why
    return None


def _registry_digest(finish: bool) -> dict[str, str] | None:
    del finish
    return registry_digest()


@task(name="find-champion", cache_policy=StepCache(libraries=("mlflow",), reads=_registry_digest), **OF_THE_REGISTRY)
def find_champion(finish: bool = False) -> Version | None:
    """The registry's champion, if there is one.

    Args:
        finish: Whether to finish a move of the champion that a killed process began. Then the caller must hold
            `registry_lock`.
    """
    client = connect()
    if finish:
        finish_move(client)
    return version_by_alias(client, CHAMPION)


# MLflow keeps no history of aliases. So each move is a numbered tag of the registered model, and never changes.
HISTORY = "history."
# The tag of a move that was begun and isn't finished.
MOVING = "moving"
N_SHOWN = 50


def move_alias(client: "MlflowClient", move: AliasMove) -> None:
    """Move an alias, and record the move: as a tag, on the model's page, and as a Prefect event.

    The caller must hold `registry_lock`. The first write says what is going to be done. If the process is killed after
    that, the next command that holds the lock finishes the move.
    """
    client.set_registered_model_tag(REGISTERED_MODEL, MOVING, move.model_dump_json())
    finish_move(client)


def finish_move(client: "MlflowClient") -> None:
    """Finish the move of an alias that was begun, if there is one. The caller must hold `registry_lock`."""
    from prefect.events import emit_event

    begun = _tags(client).get(MOVING)
    if begun is None:
        return
    move = AliasMove.model_validate_json(begun)
    moves = history(client)
    if not moves or moves[-1] != move:
        moves.append(move)
        client.set_registered_model_tag(REGISTERED_MODEL, f"{HISTORY}{len(moves):06}", begun)
    client.set_registered_model_alias(REGISTERED_MODEL, move.alias, str(move.after))
    client.update_registered_model(REGISTERED_MODEL, description=history_markdown(moves))
    client.delete_registered_model_tag(REGISTERED_MODEL, MOVING)
    if prefect.runtime.flow_run.id:  # a task called as `task.fn(…)` has no server to tell
        emit_event(
            event="mnist.alias.moved",
            resource={"prefect.resource.id": f"mnist.model.{REGISTERED_MODEL}"},
            payload=move.model_dump(mode="json"),
        )


def _tags(client: "MlflowClient") -> dict[str, str]:
    found = client.search_registered_models(f"name = '{REGISTERED_MODEL}'")
    return dict(found[0].tags) if found else {}


def history(client: "MlflowClient") -> list[AliasMove]:
    """All moves of aliases, the oldest first."""
    tags = _tags(client)
    return [AliasMove.model_validate_json(tags[name]) for name in sorted(tags) if name.startswith(HISTORY)]


def read_history() -> str:
    """Print who or what moved an alias, when and why: one line per move, the oldest first."""
    client = connect()
    if MOVING in _tags(client):
        with registry_lock():
            finish_move(client)
    return "\n".join(
        f"{move.at:%Y-%m-%d %H:%M:%S}  {move.alias:<10}  {move.before or 'none'} → {move.after}  "
        f"{move.verdict or 'by hand'}, by {move.by}: {move.why}"
        for move in history(client)
    )


def history_markdown(moves: list[AliasMove]) -> str:
    """The text of the model's page in MLflow: what the model is, and the last moves of its aliases, as Markdown."""
    rows = [
        f"| {move.at:%Y-%m-%d %H:%M} | {move.alias} | {move.before or 'none'} | {move.after} "
        f"| {escape_markdown(move.by)} | {escape_markdown(move.why)} | {move.verdict or 'by hand'} |"
        for move in reversed(moves[-N_SHOWN:])
    ]
    head = ("| when (UTC) | alias | from | to | by | why | verdict |", "| --- | --- | --- | --- | --- | --- | --- |")
    return "\n".join(["Classifies images of handwritten digits, 28×28, in 0–1.", "", *head, *rows])
