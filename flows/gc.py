"""The flow `mnist-gc`: remove old runs, and what only they needed."""

from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from tasks.operations.gc import GcParameters, GcSummary, collect_garbage
from tasks.running.faults import errors_in_one_line


@flow(name="mnist-gc")
@errors_in_one_line()
def gc(
    keep: GcParameters = GcParameters(),
    apply: Annotated[bool, Field(description="Remove it. Without this, gc only says what it would remove.")] = False,
) -> GcSummary:
    """Say which old runs, versions and files nothing needs any more, and how much they take. Remove them if told to.

    Args:
        keep: What stays.
        apply: Remove it. Without this, gc only says what it would remove.
    """
    summary = collect_garbage(keep, apply)
    create_markdown_artifact(f"```\n{summary}\n```", key="gc", description="What was removed, or would be removed.")
    return summary
