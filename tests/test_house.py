"""The house keeps its rules: functions stay short, and no package is left out of a check."""

import ast
import tomllib

import pytest

from artifacts.settings import CHECKOUT
from tasks.running.code import packages

MAX_LINES = 60
# Functions that may be longer, each with its reason.
LONG: dict[str, str] = {}


def functions():
    """Each function of the project, as ``file:name``, and its number of lines."""
    for package in packages():
        for file in sorted((CHECKOUT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                    yield f"{file.relative_to(CHECKOUT)}:{node.name}", node.end_lineno - node.lineno + 1


def test_functions_are_short():
    lines = dict(functions())
    assert len(lines) > 250
    too_long = {name for name, n in lines.items() if n > MAX_LINES}
    assert too_long == LONG.keys()


@pytest.mark.parametrize(("tool", "key"), [("mypy", "packages"), ("importlinter", "root_packages")])
def test_every_package_is_checked(tool, key):
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][tool]
    assert set(settings[key]) == set(packages())


def test_each_step_has_a_file_of_its_name():
    steps = {file.stem for file in (CHECKOUT / "tasks").glob("*.py")} - {"__init__"}
    contracts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    (floor,) = [layer for layer in layers if "tasks.train" in layer]
    assert set(floor.split(" | ")) == {f"tasks.{step}" for step in steps}
    for step in steps:
        source = (CHECKOUT / "tasks" / f"{step}.py").read_text(encoding="utf-8")
        assert f'name="{step.replace("_", "-")}"' in source, f"tasks/{step}.py defines the step of that name"
