"""The flow `mnist`: from the images to a registered model."""

from contextlib import nullcontext
from typing import Annotated

from prefect import flow
from prefect.settings import PREFECT_TASKS_REFRESH_CACHE, temporary_settings
from pydantic import Field

from artifacts.errors import ValidationError
from artifacts.records import Results, RunSummary
from tasks.caching import SERIALIZER, store_lock
from tasks.evaluate import evaluate_model
from tasks.explain import explain_errors
from tasks.gate import GateParameters, judge_model
from tasks.infra import validate_infra
from tasks.ingest import IngestParameters, ingest_data
from tasks.labels import check_labels
from tasks.logs import errors_in_one_line
from tasks.publish import publish_failure, publish_run, publish_validation
from tasks.register import find_registration, register_model
from tasks.registry import exclusive, find_champion
from tasks.report import draw_report
from tasks.robustness import measure_robustness
from tasks.train import TrainParameters, train_model
from tasks.validate import ValidateParameters, validate_data


@flow(name="mnist", result_serializer=SERIALIZER, on_failure=[publish_failure], on_crashed=[publish_failure])
@errors_in_one_line()
def mnist(
    ingest: IngestParameters = IngestParameters(),
    validation: ValidateParameters = ValidateParameters(),
    train: TrainParameters = TrainParameters(),
    gate: GateParameters = GateParameters(),
    refresh: Annotated[bool, Field(description="Compute every step again, whatever earlier runs left.")] = False,
) -> RunSummary:
    """Ingest and validate MNIST, train a network, evaluate it, judge it against the champion, report and register it.

    Args:
        ingest: Where the data come from.
        validation: What the data must look like.
        train: What is trained, and how.
        gate: What a model must show to become the champion.
        refresh: Compute every step again, whatever earlier runs left.
    """
    anew = temporary_settings({PREFECT_TASKS_REFRESH_CACHE: True}) if refresh else nullcontext()
    with store_lock().read_lock(), anew:
        dataset = ingest_data(ingest)
        try:
            validated = validate_data(dataset, validation)
        except ValidationError as error:
            publish_validation(error.validation)
            raise
        labels = check_labels(dataset)
        training = train_model(dataset, train)
        evaluation = evaluate_model(training.model, dataset)
        robustness = measure_robustness(training.model, dataset)
        infra = validate_infra(training.model, dataset, evaluation)
        with exclusive():
            champion = find_champion()
            # A model is not compared with itself.
            rival = champion.model if champion and champion.model.identity() != training.model.identity() else None
            rival_evaluation = evaluate_model(rival, dataset) if rival else None
            rival_robustness = measure_robustness(rival, dataset) if rival else None
            verdict = judge_model(dataset, evaluation, infra, robustness, rival_evaluation, rival_robustness, gate)
            explanation = explain_errors(training.model, dataset, evaluation, rival_evaluation)
            report = draw_report(
                dataset, training, evaluation, robustness, explanation, rival_evaluation, rival_robustness
            )
            registration = find_registration(dataset, training, verdict) or register_model(
                dataset, training, evaluation, verdict
            )
        return publish_run(
            {"ingest": ingest, "validation": validation, "train": train, "gate": gate},
            Results(
                dataset=dataset,
                validation=validated,
                labels=labels,
                training=training,
                evaluation=evaluation,
                robustness=robustness,
                infra=infra,
                verdict=verdict,
                explanation=explanation,
                report=report,
                registration=registration,
                champion=rival_evaluation,
                champion_robustness=rival_robustness,
            ),
        )
