"""What the steps hand to one another: small frozen records of digests, files and figures, never arrays."""

import hashlib
import re
from datetime import datetime
from typing import Self

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of the records: immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Key(Record):
    """What decides whether a step's result can be reused; its digest is the cache key.

    Attributes:
        step: The step's name.
        inputs: Digest by input; a parameter model counts field by field (``train.epochs``).
        code: Digest by module that the step depends on, comments and formatting left out.
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
        """Name what differs from another key of the same step, in words, e.g. ``train.epochs: 3 → 1``."""
        changes = []
        for kind in ("inputs", "code", "libraries"):
            now, then = getattr(self, kind), getattr(other, kind)
            for name in sorted(now.keys() | then.keys()):
                if now.get(name) == then.get(name):
                    continue
                if kind == "code":
                    changes.append(f"code of {name}")
                else:
                    changes.append(f"{name}: {short(then.get(name))} → {short(now.get(name))}")
        return tuple(changes)


def short(value: str | None) -> str:
    """A value as a line of text shows it: a digest's first 12 digits tell it apart."""
    if value is None:
        return "none"
    return value[:12] if re.fullmatch("[0-9a-f]{64}", value) else value


class Origin(Record):
    """Where a step's result was computed.

    Attributes:
        flow_run_id: The flow run that computed it; none where the task was called outside of one.
        at: When it was done, in UTC.
        seconds: How long the step took, wall time.
        revision: The checkout's git revision, ending in ``-dirty`` if files differed from it; none outside of git.
        key: What it was computed from; none for a step that always runs.
    """

    flow_run_id: str | None
    at: datetime
    seconds: float
    revision: str | None
    key: Key | None


class StepRecord(Record):
    """Base of what a step returns; `origin` says who computed it and is no part of a later step's key."""

    origin: Origin | None = None
