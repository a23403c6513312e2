"""The flow `mnist-gc`: old runs, and what only they needed, are removed."""

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
    apply: Annotated[bool, Field(description="Remove it; without this, only say what would go.")] = False,
) -> GcSummary:
    """Say which old runs, versions and files nothing needs any more, and how much they take; remove them if told to.

    Args:
        keep: What stays.
        apply: Remove it; without this, only say what would go.
    """
    summary = collect_garbage(keep, apply)
    create_markdown_artifact(f"```\n{summary}\n```", key="gc", description="What was removed, or would be.")
    return summary
