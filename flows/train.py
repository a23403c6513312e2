"""The flow `mnist`: from images to a registered model."""

import warnings
from typing import Annotated

from prefect import flow
from pydantic import Field

from artifacts.records.data import Dataset
from artifacts.records.evaluation import Evaluation, Robustness
from artifacts.records.model import Model
from artifacts.records.release import Version
from artifacts.records.run import Results, RunSummary
from tasks.check_labels import check_labels
from tasks.evaluate import evaluate_model
from tasks.explain import explain_errors
from tasks.gate import GateParameters, judge_model
from tasks.infra_validate import validate_infra
from tasks.ingest import IngestParameters, ingest_data
from tasks.model.recipe import TrainParameters
from tasks.publish import publish_failure, publish_run, publish_validation
from tasks.register import find_registration, register_model
from tasks.registry.history import find_champion
from tasks.report import draw_report
from tasks.robustness import measure_robustness
from tasks.running.cache import SERIALIZER, reusing_results
from tasks.running.faults import errors_in_one_line
from tasks.running.locks import registry_lock
from tasks.train import train_model
from tasks.validate import ExpectationError, ValidateParameters, validate_data

# pydantic warns because its models have a deprecated method of the same name as the parameter `validate`.
warnings.filterwarnings("ignore", message='Field name "validate"', category=UserWarning)

# A champion that can't be read stops the run before it trains; it is looked for again once the run holds the lock.
check_registry = find_champion.with_options(name="check-registry")


@flow(name="mnist", result_serializer=SERIALIZER, on_failure=[publish_failure], on_crashed=[publish_failure])
@errors_in_one_line()
def mnist(
    ingest: IngestParameters = IngestParameters(),
    validate: ValidateParameters = ValidateParameters(),
    train: TrainParameters = TrainParameters(),
    gate: GateParameters = GateParameters(),
    refresh: Annotated[bool, Field(description="Compute every step again, whatever earlier runs left.")] = False,
) -> RunSummary:
    """Ingest and validate MNIST, train a network, evaluate it, judge it against the champion, report and register it.

    Args:
        ingest: The source of the data.
        validate: What the data must look like.
        train: What is trained, and how.
        gate: What a model must show to become the champion.
        refresh: Compute every step again, whatever earlier runs left.
    """
    with reusing_results(refresh):
        check_registry()
        dataset = ingest_data(ingest)
        try:
            validation = validate_data(dataset, validate)
        except ExpectationError as error:
            publish_validation(error.validation)
            raise
        labels = check_labels(dataset)
        training = train_model(dataset, train)
        evaluation = evaluate_model(training.model, dataset)
        robustness = measure_robustness(training.model, dataset)
        infra = validate_infra(training.model, dataset, evaluation)
        with registry_lock():
            rival, rival_robustness = evaluate_rival(find_champion(finish=True), training.model, dataset)
            verdict = judge_model(dataset, evaluation, infra, robustness, rival, rival_robustness, gate)
            explanation = explain_errors(training.model, dataset, evaluation, rival)
            report = draw_report(dataset, training, evaluation, robustness, explanation, rival, rival_robustness)
            registration = find_registration(dataset, training, verdict) or register_model(
                dataset, training, evaluation, verdict
            )
        return publish_run(
            {"ingest": ingest, "validate": validate, "train": train, "gate": gate},
            Results(
                dataset=dataset,
                validation=validation,
                labels=labels,
                training=training,
                evaluation=evaluation,
                robustness=robustness,
                infra=infra,
                verdict=verdict,
                explanation=explanation,
                report=report,
                registration=registration,
                rival=rival,
                rival_robustness=rival_robustness,
            ),
        )


def evaluate_rival(
    champion: Version | None, candidate: Model, dataset: Dataset
) -> tuple[Evaluation | None, Robustness | None]:
    """Evaluate the champion on this run's data, unless there is no champion, or the candidate is the champion."""
    if champion is None or champion.model.identity() == candidate.identity():
        return None, None
    return evaluate_model(champion.model, dataset), measure_robustness(champion.model, dataset)
