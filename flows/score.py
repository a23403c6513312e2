"""The flow `mnist-score`: label a file or a folder of images with the champion."""

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from tasks.operations.score import ImagesPath, OutputPath, Probability, Scoring, Strict, score_images
from tasks.registry.history import find_champion
from tasks.running.faults import errors_in_one_line
from tasks.running.locks import store_lock


@flow(name="mnist-score", result_serializer="json")
@errors_in_one_line()
def score(images: ImagesPath, output: OutputPath, ask_below: Probability = 0.9, strict: Strict = False) -> Scoring:
    """Label images with the champion, say which a person should look at, and whether they look like the training data.

    Args:
        images: The images to label.
        output: The file for the labels.
        ask_below: The probability below which a person should be asked.
        strict: Stop at a file of the folder that can't be read, instead of naming it and leaving it out.
    """
    # Don't reuse an earlier answer of the registry: only the flow `mnist` holds the lock that keeps it true.
    ask = find_champion.with_options(cache_policy=NO_CACHE)
    with store_lock().read_lock():
        scoring = score_images(ask(), images, output, ask_below, strict)
    create_markdown_artifact(
        scoring.markdown(),
        key="scoring",
        description="What was scored, and how the images differ from the training data.",
    )
    return scoring
