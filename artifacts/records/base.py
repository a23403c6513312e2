"""The base of what steps exchange: small frozen records of digests, files and figures, never arrays."""

import hashlib
import re
from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of the records: immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# How many changed modules a reason names.
N_NAMED = 3


class Key(Record):
    """What decides whether a step's result can be reused. The digest of the key is the cache key.

    Attributes:
        step: The name of the step.
        inputs: Digest by input. Parameters have one entry per field (``train.epochs``).
        code: Digest by module that the step depends on, without comments, docstrings and layout.
        libraries: Version by library.
    """

    step: str
    inputs: dict[str, str]
    code: dict[str, str]
    libraries: dict[str, str]

    @property
    def digest(self) -> str:
        """The name under which the result is kept."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def changes_since(self, other: Self) -> tuple[str, ...]:
        """Say what differs from another key of the same step, e.g. ``train.epochs: 3 → 1``."""

        def differing(now: dict[str, str], then: dict[str, str]) -> list[str]:
            return sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))

        def moves(now: dict[str, str], then: dict[str, str]) -> list[str]:
            return [f"{name}: {short(then.get(name))} → {short(now.get(name))}" for name in differing(now, then)]

        modules = differing(self.code, other.code)
        if len(modules) > N_NAMED:
            modules = [f"{len(modules)} modules ({', '.join(modules[:N_NAMED])}, …)"]
        return (
            *moves(self.inputs, other.inputs),
            *(f"code of {module}" for module in modules),
            *moves(self.libraries, other.libraries),
        )


def short(value: str | None) -> str:
    """A value for a line of text. The first 12 digits of a digest are enough to tell it apart."""
    if value is None:
        return "none"
    return value[:12] if re.fullmatch("[0-9a-f]{64}", value) else value


class Origin(Record):
    """Which run computed a step's result, and from what.

    Attributes:
        flow_run_id: The flow run that computed it. None if the task was called outside of a flow run.
        at: When the step ended, in UTC.
        seconds: How long the step took, in seconds of wall time.
        revision: The git revision of the checkout. It ends in ``-dirty`` if files differed from it. None outside of
            git.
        key: What the result was computed from. None for a step that always runs.
    """

    flow_run_id: str | None
    at: datetime
    seconds: float
    revision: str | None
    key: Key | None


class StepRecord(Record):
    """Base of what a step returns. `origin` says which run computed it, and isn't in the key of a later step."""

    origin: Origin | None = None
