"""The work of a cold run in plain Python: the flow's own function calls its steps, without tasks, cache or states.

With `--server`, it starts the same server and creates the same artifacts there. Without, it only renders their texts.
"""

import argparse
import json
import sys
from contextlib import nullcontext

from service.environment import prepare, server

prepare()

from prefect import Task

import flows.train
import tasks.publish


def work() -> float:
    """Do what the flow does, in the flow's order. Returns the seconds of the fit."""
    steps = {name: step for name, step in vars(flows.train).items() if isinstance(step, Task)}
    fit_seconds: list[float] = []

    def train_model(*given: object) -> object:
        training = steps["train_model"].fn(*given)
        fit_seconds.append(training.fit_seconds)
        return training

    for name, step in steps.items():
        setattr(flows.train, name, train_model if name == "train_model" else step.fn)
    flows.train.mnist.fn()
    return fit_seconds[0]


def main() -> None:
    """Do the work once. The last line is JSON with the seconds of the fit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", action="store_true")
    served = parser.parse_args().server
    if not served:
        vars(tasks.publish)["create_markdown_artifact"] = lambda *_, **__: None  # there is no server to send it to
    with server() if served else nullcontext() as ready:
        if ready:
            ready()
        fit_seconds = work()
    sys.stdout.write(json.dumps({"fit": fit_seconds}) + "\n")


if __name__ == "__main__":
    main()
