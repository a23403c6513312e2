"""The command line, `python -m flows COMMAND`, which make calls. Every parameter of a command's flow is a flag."""

import inspect
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pkgutil import resolve_name
from typing import Any, NamedTuple, NoReturn


class Command(NamedTuple):
    """A command of the command line.

    Attributes:
        function: The function that it calls, as ``module:name``.
        is_flow: Whether this function is a flow, which needs a Prefect server.
        exit_code: The exit code for the value that the function returns.
    """

    function: str
    is_flow: bool = True
    exit_code: Callable[[Any], int] = lambda _: 0


COMMANDS = {
    "train": Command("flows.train:mnist"),
    "promote": Command("flows.promote:promote"),
    "rollback": Command("flows.promote:rollback"),
    "reproduce": Command(
        "tasks.operations.reproduce:reproduce_version",
        is_flow=False,
        exit_code=lambda reproduction: 0 if reproduction.identical else 1,
    ),
    "score": Command("flows.score:score"),
    "gc": Command("flows.gc:gc"),
    "history": Command("tasks.registry.history:read_history", is_flow=False),
}


def main() -> int:
    """Run a command, and print its result.

    Returns:
        The exit code: 0 if the command completed, 1 if a version came out different, 2 if a flag is wrong.

    Raises:
        Exception: Raised if the command failed. `tasks.running.faults.explain` explains it, unless it is a defect.
        KeyboardInterrupt: Raised on Ctrl-C, after the run was marked as crashed.
        SystemExit: Raised on SIGTERM, after the run was marked as crashed.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        print(f"error: {name or 'nothing'} is no command; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    # Imports take seconds. Here, a Ctrl-C during them is handled too.
    from service.environment import prepare, server

    prepare()
    with server() if command.is_flow else nullcontext() as ready:
        # Prefect reads its settings when it is imported.
        from prefect import Flow
        from prefect.exceptions import TerminationSignal
        from pydantic import ValidationError

        from tasks.registry.versions import import_mlflow

        function = resolve_name(command.function)
        try:
            parameters = parse(function.fn if isinstance(function, Flow) else function, name)
        except ValidationError as error:
            for wrong in error.errors():
                flag = ".".join(map(str, wrong["loc"]))
                given = "" if isinstance(wrong["input"], dict) else f" {wrong['input']}"
                print(f"error: --{flag}{given}: {wrong['msg']}", file=sys.stderr)
            return 2
        try:
            if ready:
                import_mlflow()  # takes as long as the start of the server
                ready()
            result = function(**parameters)
        except TerminationSignal:  # during a run, Prefect handles SIGTERM and marks the run as crashed
            end_on_sigterm()
    print(result)
    return command.exit_code(result)


def end_on_sigterm(*_: object) -> NoReturn:
    """End with a line that says so, and with the exit code that a shell has for SIGTERM."""
    print("terminated; the finished steps are kept, and the next run reuses them", file=sys.stderr)
    sys.exit(143)


def parse(function: Any, command: str) -> dict[str, Any]:
    """Parse the command line into the parameters of a function, by the types and descriptions in its signature.

    Raises:
        ValidationError: Raised if a value is out of bounds or contradicts another.
        SystemExit: Raised if a flag is unknown, with a line that says so.
    """
    from pydantic import create_model
    from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict, SettingsError

    class Command(BaseSettings):
        model_config = SettingsConfigDict(
            cli_prog_name=f"make {command} ARGS=…", cli_exit_on_error=False, cli_implicit_flags=True, extra="forbid"
        )

        @classmethod
        def settings_customise_sources(cls, *sources: Any, **named: Any) -> tuple[Any, ...]:
            del cls, sources, named
            return ()  # only flags count: a variable TRAIN in the user's environment is no parameter

    fields: dict[str, Any] = {
        name: (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(function, eval_str=True).parameters.items()
    }
    summary = (inspect.getdoc(function) or "").split("\n\n")[0]
    model = create_model("Command", __base__=Command, __doc__=summary, **fields)
    try:
        given = CliApp.run(model, cli_args=[renamed(flag) for flag in sys.argv[2:]])
    except SettingsError as error:
        raise SystemExit(f"{error}; `--help` lists the flags") from error
    return {name: getattr(given, name) for name in fields}


def renamed(flag: str) -> str:
    """The current name of a flag. Version 0.1.0 called the parameters of validate ``--validation.…``."""
    return re.sub(r"^--validation(?=[.=]|$)", "--validate", flag)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end_on_sigterm)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
        # A closed terminal ends a run as SIGTERM does, which Prefect handles during a run.
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; the finished steps are kept, and the next run reuses them", file=sys.stderr)
        sys.exit(130)  # the exit code that a shell has for Ctrl-C
    except Exception as error:
        from service.environment import fail

        fail(error)
