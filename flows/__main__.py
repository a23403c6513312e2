"""`python -m flows`: run the flow `mnist` once, every parameter a flag; this is what `make train` calls."""

import inspect
import os
import sys
from pathlib import Path
from typing import Any

from flows.environment import environment, server


def main() -> int:
    """Run the flow and print its summary.

    Returns:
        The exit code: 0 if the run completed, 1 if it failed for a reason that was said in one line.
    """
    os.environ.update(environment())
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    # Prefect reads its settings when it is imported.
    from pydantic import create_model
    from pydantic_settings import CliApp

    from artifacts.errors import MnistError
    from flows.train import mnist

    fields: dict[str, Any] = {
        name: (parameter.annotation, parameter.default)
        for name, parameter in inspect.signature(mnist.fn).parameters.items()
    }
    parameters = CliApp.run(
        create_model("Parameters", **fields, __doc__=inspect.getdoc(mnist.fn)),
        cli_args=sys.argv[1:],
    )
    try:
        with server():
            summary = mnist(**{name: getattr(parameters, name) for name in fields})
    except MnistError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    steps = "\n  ".join(summary.steps)
    print(
        f"""
  {summary.headline}
  test accuracy {summary.accuracy:.4f}, {summary.n_wrong} of {summary.n_test:,} wrong

  {steps}

  the run's folder   {summary.folder}
  open its report    {(summary.folder / "report.html").as_uri()}
  in the UI          make up, then /runs/flow-run/{summary.flow_run_id}"""
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
