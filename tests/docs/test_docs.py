"""What README, docs and the other texts name exists: commands, paths, variables, flags, deployments, Python names."""

import inspect
import re
import subprocess
from functools import cache
from itertools import product
from pkgutil import resolve_name

import pytest
import yaml
from pydantic import BaseModel

from artifacts.settings import CHECKOUT, Settings
from flows.__main__ import COMMANDS

TEXTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/operations.md", "docs/reference.md", "docs/decisions.md")
FOLDERS = ("flows", "service", "tasks", "artifacts", "benchmarks", "tests", "docs")
# Variables that are not settings of ours.
OTHER_VARIABLES = {"MLFLOW_TRACKING_URI", "MNIST_…"}
# Flags of other programs.
OTHER_FLAGS = {"--watch", "--param", "--help"}


def text_of(name):
    return (CHECKOUT / name).read_text()


def code_of(name):
    """The code blocks and code spans of a text."""
    text = text_of(name)
    blocks = re.findall(r"^```.*?^```", text, re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [*blocks, *spans]


@pytest.fixture(params=TEXTS)
def code(request):
    return code_of(request.param)


@cache
def tracked():
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in files if (CHECKOUT / name).exists()]


@cache
def flags():
    """The flags of all commands, with those of nested parameters."""
    found = OTHER_FLAGS | {
        f"--{name}" for name in re.findall(r"^    (\w+):", text_of("benchmarks/__main__.py"), re.MULTILINE)
    }
    for command in COMMANDS.values():
        function = resolve_name(command.function)
        for name, parameter in inspect.signature(getattr(function, "fn", function), eval_str=True).parameters.items():
            found.add(f"--{name}")
            if isinstance(parameter.annotation, type) and issubclass(parameter.annotation, BaseModel):
                found |= {f"--{name}.{field}" for field in parameter.annotation.model_fields}
    return found


def unknown_commands(code):
    targets = set(re.findall(r"^([a-z]+):", text_of("Makefile"), re.MULTILINE)) - {"synced"}
    return {target for part in code for target in re.findall(r"\bmake ([a-z]+)", part)} - targets


def unknown_paths(code):
    found = {
        path.rstrip("/")
        for part in code
        for path in re.findall(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/[\w./*-]*\w)", part)
    }
    return {path for path in found if not list(CHECKOUT.glob(path))}


def unknown_variables(code):
    known = {f"MNIST_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    return {name for part in code for name in re.findall(r"\b(?:MNIST|MLFLOW)_[A-Z…][A-Z_]*", part)} - known


def unknown_flags(code):
    found = {flag for part in code for flag in re.findall(r"(?<![\w-])--[a-z][\w.]*", part)}
    return found - flags()


def unknown_deployments(code):
    flow_names = {
        f"flows/{file.name}:{function}": name
        for file in (CHECKOUT / "flows").glob("*.py")
        for name, function in re.findall(
            r'^@flow\(\s*name="([\w-]+)"[^@]*?\)\n(?:@.*\n)*def (\w+)', file.read_text(), re.MULTILINE
        )
    }
    deployments = yaml.safe_load(text_of("prefect.yaml"))["deployments"]
    known = {f"{flow_names[deployment['entrypoint']]}/{deployment['name']}" for deployment in deployments}
    assert len(known) == len(deployments)
    return {name for part in code for name in re.findall(r"(?<![\w./])mnist(?:-[a-z]+)?/[a-z]+", part)} - known


def unknown_modules(code):
    named = {
        name
        for part in code
        for name in re.findall(r"\b((?:flows|service|tasks|artifacts|benchmarks)(?:\.[a-z_]\w*)+)", part)
    }
    return {name for name in named if not exists(name)}


def exists(name):
    """Whether a dotted name is a module, or stands in one, found without importing it."""
    if (CHECKOUT / name.replace(".", "/")).with_suffix(".py").exists() or (CHECKOUT / name.replace(".", "/")).is_dir():
        return True
    module, _, attribute = name.rpartition(".")
    file = (CHECKOUT / module.replace(".", "/")).with_suffix(".py")
    return file.exists() and re.search(rf"^(?:def |class |){attribute}\b", file.read_text(), re.MULTILINE) is not None


CHECKS = (unknown_commands, unknown_paths, unknown_variables, unknown_flags, unknown_deployments, unknown_modules)


@pytest.mark.parametrize(("name", "check"), product(TEXTS, CHECKS), ids=lambda value: getattr(value, "__name__", value))
def test_what_a_text_names_exists(name, check):
    assert check(code_of(name)) == set()


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (unknown_commands, "make fly"),
        (unknown_paths, "tasks/nothing.py"),
        (unknown_variables, "MNIST_NOTHING"),
        (unknown_flags, "--train.nothing 3"),
        (unknown_deployments, "mnist/nothing"),
        (unknown_modules, "tasks.nothing.score"),
    ],
)
def test_what_does_not_exist_is_found(check, wrong):
    assert check([wrong]) != set()


def test_links_lead_somewhere():
    for name in TEXTS:
        for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", text_of(name)):
            file = (CHECKOUT / name).parent / target if target else CHECKOUT / name
            assert file.exists(), f"{name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{name}: {target}#{anchor}"


def test_the_readme_takes_three_minutes():
    assert len(text_of("README.md").splitlines()) <= 130


def test_the_readmes_tree_names_every_folder():
    (tree,) = [block for block in code_of("README.md") if "flows/" in block and "what runs" in block]
    listed = set(re.findall(r"^\s*(\w+)/ ", tree, re.MULTILINE))
    folders = {name.split("/")[0] for name in tracked() if "/" in name and not name.startswith(".")}
    inner = {name.split("/")[1] for name in tracked() if re.match(r"tasks/\w+/", name)}
    assert listed == folders | inner


def test_every_module_is_in_the_table_of_what_to_edit():
    text = text_of("CONTRIBUTING.md")
    named = set(re.findall(r"`([\w./]+\.(?:py|md|html|css))`", text[text.index("## To change X") :])) - {"__init__.py"}
    modules = {
        name
        for name in tracked()
        if name.startswith(("flows/", "service/", "tasks/", "artifacts/", "benchmarks/"))
        and name.endswith((".py", ".html", ".css", ".md"))
        and not name.endswith("__init__.py")
        and "/results/" not in name
    }
    assert modules - named == set()
    assert {name for name in named if not (CHECKOUT / name).exists()} == set()


def test_the_version_stands_in_one_place():
    (version,) = re.findall(r'^version = "(.*)"', text_of("pyproject.toml"), re.MULTILINE)
    assert re.search(rf"^## {re.escape(version)} ", text_of("CHANGELOG.md"), re.MULTILINE)
    others = [
        name
        for name in tracked()
        if name.endswith((".py", ".yaml", ".conf"))
        and not name.startswith("tests/")
        and f'"{version}"' in (CHECKOUT / name).read_text()
    ]
    assert others == []


def test_no_text_is_left_out():
    texts = {name for name in tracked() if name.endswith(".md") and "/" not in name} | {
        name for name in tracked() if name.startswith("docs/") and name.endswith(".md")
    }
    assert texts == {*TEXTS, "CHANGELOG.md"}  # the changelog also names what is gone
