"""The flows for a person who changes the champion: `mnist-promote` to any version, `mnist-rollback` to the last one."""

from typing import Annotated

from prefect import flow
from pydantic import Field, StringConstraints

from tasks.operations.promote import promote_version
from tasks.running.faults import errors_in_one_line

Reason = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=3, max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$"),
    Field(description="The reason, in one line. The history keeps it."),
]


@flow(name="mnist-promote")
@errors_in_one_line()
def promote(
    version: Annotated[int, Field(ge=1, lt=2**31, description="The version to make champion.")], reason: Reason
) -> str:
    """Make a version the champion, after trying it in a fresh interpreter."""
    return f"version {promote_version(version, reason).version} is the champion now"


@flow(name="mnist-rollback")
@errors_in_one_line()
def rollback(reason: Reason) -> str:
    """Make the champion before the current one the champion again, after trying it in a fresh interpreter."""
    return f"version {promote_version(None, reason).version} is the champion again"
