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
        The exit code: 0 if the run completed, 1 if it failed for a reason said in one line, 2 if a flag is wrong.
    """
    os.environ.update(environment())
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    # Prefect reads its settings when it is imported.
    from pydantic import ValidationError

    from artifacts.errors import MnistError
    from flows.train import mnist

    try:
        parameters = parse(mnist.fn)
    except ValidationError as error:
        for wrong in error.errors():
            flag = ".".join(map(str, wrong["loc"]))
            given = "" if isinstance(wrong["input"], dict) else f" {wrong['input']}"
            print(f"error: --{flag}{given}: {wrong['msg']}", file=sys.stderr)
        return 2
    try:
        with server():
            summary = mnist(**parameters)
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


def parse(function: Any) -> dict[str, Any]:
    """Parse the command line into the parameters of a function, by the types and descriptions in its signature.

    Raises:
        ValidationError: Raised if a value is out of bounds or contradicts another.
        SystemExit: Raised if a flag is unknown, with a line that says so.
    """
    from pydantic import create_model
    from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict, SettingsError

    class Command(BaseSettings):
        model_config = SettingsConfigDict(cli_prog_name="make train ARGS=…", cli_exit_on_error=False, extra="forbid")

        @classmethod
        def settings_customise_sources(cls, *sources: Any, **named: Any) -> tuple[Any, ...]:
            del cls, sources, named
            return ()  # the flags alone: a variable named TRAIN in somebody's environment is no parameter

    fields: dict[str, Any] = {
        name: (parameter.annotation, parameter.default)
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items()
    }
    summary = (inspect.getdoc(function) or "").split("\n\n")[0]
    command = create_model("Command", __base__=Command, __doc__=summary, **fields)
    try:
        given = CliApp.run(command, cli_args=sys.argv[1:])
    except SettingsError as error:
        raise SystemExit(f"{error}; `--help` lists the flags") from error
    return {name: getattr(given, name) for name in fields}


if __name__ == "__main__":
    sys.exit(main())
