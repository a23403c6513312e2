"""The work of a cold run in plain Python: the same functions one after the other, without flow, tasks, cache or states.

With `--server` it starts the same server and leaves the same artifacts there; without, it renders their texts only.
"""

import argparse
import json
import sys
from contextlib import nullcontext

from flows.environment import prepare, server

prepare()

import tasks.publish
from artifacts.records import Results
from tasks.evaluate import evaluate_model
from tasks.explain import explain_errors
from tasks.gate import GateParameters, judge_model
from tasks.infra import validate_infra
from tasks.ingest import IngestParameters, ingest_data
from tasks.labels import check_labels
from tasks.register import register_model
from tasks.registry import find_champion
from tasks.report import draw_report
from tasks.robustness import measure_robustness
from tasks.train import TrainParameters, train_model
from tasks.validate import ValidateParameters, validate_data


def work() -> float:
    """Do what `flows.train.mnist` does where there is no champion yet; the seconds of the fit."""
    parameters = {
        "ingest": IngestParameters(),
        "validation": ValidateParameters(),
        "train": TrainParameters(),
        "gate": GateParameters(),
    }
    dataset = ingest_data.fn(parameters["ingest"])
    validated = validate_data.fn(dataset, parameters["validation"])
    labels = check_labels.fn(dataset)
    training = train_model.fn(dataset, parameters["train"])
    evaluation = evaluate_model.fn(training.model, dataset)
    robustness = measure_robustness.fn(training.model, dataset)
    infra = validate_infra.fn(training.model, dataset, evaluation)
    if find_champion.fn() is not None:
        raise RuntimeError("the registry isn't empty: this measures a first run")
    verdict = judge_model.fn(dataset, evaluation, infra, robustness, None, None, parameters["gate"])
    explanation = explain_errors.fn(training.model, dataset, evaluation, None)
    report = draw_report.fn(dataset, training, evaluation, robustness, explanation, None, None)
    registration = register_model.fn(dataset, training, evaluation, verdict)
    tasks.publish.publish_run.fn(
        parameters,
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
            champion=None,
            champion_robustness=None,
        ),
    )
    return training.fit_seconds


def main() -> None:
    """Do the work once; the last line is JSON with the seconds of the fit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", action="store_true")
    served = parser.parse_args().server
    if not served:
        tasks.publish.create_markdown_artifact = lambda *_, **__: None  # nobody to send it to
    with server() if served else nullcontext() as ready:
        if ready:
            ready()
        fit_seconds = work()
    sys.stdout.write(json.dumps({"fit": fit_seconds}) + "\n")


if __name__ == "__main__":
    main()
