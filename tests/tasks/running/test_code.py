"""Which code counts in a step's key, and what stops a run because it is unclear which code made a result."""

import json
import subprocess
import sys

import pytest

from tasks.running.code import digest_module, packages, unseen

FUNCTION = '''
def scale(images):
    """Scale images."""
    # by 255
    return images / 255
'''


@pytest.fixture
def copy(tmp_path, copy_checkout):
    return copy_checkout(tmp_path / "copy")


def run_in(checkout, code):
    """Run code in a fresh process in a copy of the checkout."""
    return subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=False)


def code_in(checkout, module):
    """What `code_of` says of a module in a copy of the checkout."""
    done = run_in(
        checkout, f"import json; from tasks.running.code import code_of; print(json.dumps(code_of({module!r})))"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def append(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text((file.read_text() if file.exists() else "") + text)


@pytest.mark.parametrize(
    "same",
    [
        FUNCTION.replace("Scale images.", "Scale images to 0–1.\n\n    Returns: as many.\n    "),
        FUNCTION.replace('    """Scale images."""\n', ""),
        FUNCTION.replace("# by 255", "# since pixels are bytes"),
        FUNCTION.replace("images / 255", "(\n        images\n        / 255\n    )"),
        '"""A module."""\n' + FUNCTION + "\n\n",
        FUNCTION.replace("images / 255", "images / 0xFF"),
    ],
    ids=["docstring", "no docstring", "comment", "layout", "module's docstring", "spelling of a number"],
)
def test_what_changes_no_result_changes_no_digest(same):
    assert digest_module(same) == digest_module(FUNCTION)


@pytest.mark.parametrize(
    "other",
    [
        FUNCTION.replace("255", "256"),
        FUNCTION.replace("scale", "rescale"),
        FUNCTION + "\nscale = None\n",
        FUNCTION.replace("images / 255", "print('scaled') or images / 255"),
        FUNCTION.replace("# by 255", "images = f'{images}'"),
    ],
    ids=["number", "name", "statement", "message", "f-string"],
)
def test_what_may_change_a_result_changes_the_digest(other):
    assert digest_module(other) != digest_module(FUNCTION)


def test_a_message_counts():
    first, second = (f"raise ValueError('{text}')" for text in ("too small", "too large"))
    assert digest_module(first) != digest_module(second)


def test_packages_come_from_the_checkout():
    assert set(packages()) == {"artifacts", "benchmarks", "flows", "service", "tasks"}


@pytest.mark.expensive
def test_a_packages_init_and_a_new_package_count(copy):
    before = code_in(copy, "tasks.evaluate")
    assert {"tasks", "tasks.model", "artifacts", "artifacts.records"} <= before.keys()

    append(copy / "tasks" / "model" / "__init__.py", "import numpy\nnumpy.set_printoptions(precision=3)\n")
    append(copy / "extra" / "__init__.py", "")
    append(copy / "extra" / "arithmetic.py", "FACTOR = 2\n")
    append(copy / "tasks" / "evaluate.py", "\nfrom extra.arithmetic import FACTOR\n")
    after = code_in(copy, "tasks.evaluate")
    assert after.keys() - before.keys() == {"extra", "extra.arithmetic"}
    assert {name for name in before if after[name] != before[name]} == {"tasks.model", "tasks.evaluate"}
    assert "extra" not in code_in(copy, "tasks.ingest")

    append(copy / "extra" / "arithmetic.py", "FACTOR = 3\n")
    assert code_in(copy, "tasks.evaluate")["extra.arithmetic"] != after["extra.arithmetic"]


@pytest.mark.expensive
@pytest.mark.parametrize(
    ("file", "statement", "named"),
    [
        ("helper.py", "import helper", "tasks.evaluate imports helper"),
        ("loose/thing.py", "from loose.thing import X", "tasks.evaluate imports loose"),
    ],
    ids=["a module beside the Makefile", "a folder without __init__.py"],
)
def test_code_that_no_key_can_see_is_named(copy, file, statement, named):
    append(copy / file, "X = 1\n")
    append(copy / "tasks" / "evaluate.py", f"\n{statement}\n")
    done = run_in(copy, "from tasks.running.code import loaded_code; loaded_code()")
    assert done.returncode == 1
    assert named in done.stderr
    assert "no cache key can see" in done.stderr


def test_a_module_that_was_loaded_unseen_is_named():
    assert unseen(["tests.conftest", "numpy", "tasks.running.code"], {"tasks.running.code": "its digest"}) == [
        "tests.conftest"
    ]


SAVED = """
import artifacts, os, time
from tasks.running.code import code_of, loaded_code
import tasks.gate
before = code_of("tasks.gate")
time.sleep(0.1)
with open("tasks/gate.py", "a") as file:
    file.write("\\nX = 1\\n")
assert code_of("tasks.gate") == before, "the loaded code counts"
loaded_code.cache_clear()
loaded_code()
"""


@pytest.mark.expensive
def test_a_file_that_is_saved_meanwhile_is_recorded_as_it_was_loaded_or_named(copy):
    done = run_in(copy, SAVED)
    assert done.returncode == 1
    assert "CodeError" in done.stderr.splitlines()[-1]
    assert f"{copy / 'tasks' / 'gate.py'} was saved after this process had started" in done.stderr
