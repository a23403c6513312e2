"""Code: which modules of this checkout a step can reach, and the digests of the source that this process loaded."""

import ast
import functools
import hashlib
import importlib
import json
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import grimp

from artifacts import LOADING_SINCE
from artifacts.errors import CodeError
from artifacts.settings import CHECKOUT
from tasks.running.revision import working_tree

# File systems take their time stamps from the kernel's clock, which may be a tick behind.
TICK_SECONDS = 0.01


class Code(NamedTuple):
    """The code that this process has loaded.

    Attributes:
        imports: Which module imports which. A module also counts as an importer of the packages that it is in, since
            Python runs their ``__init__.py`` first.
        digests: SHA-256 by module.
    """

    imports: grimp.ImportGraph
    digests: dict[str, str]


def packages() -> list[str]:
    """The packages whose modules count in keys: each folder of the checkout that has an ``__init__.py``."""
    return sorted(file.parent.name for file in CHECKOUT.glob("[!.]*/__init__.py"))


@functools.cache
def loaded_code() -> Code:
    """Load all modules that a step can reach, and digest their source.

    A file that is saved later changes neither what this process runs nor what it records.

    Raises:
        CodeError: Raised if a file was saved after the process had started to load the project, or if a module imports
            code of the checkout that is outside of `packages`.
    """
    working_tree()  # remembers the patch of the sources as they are now, for register
    imports = grimp.build_graph(
        *packages(), cache_dir=None, exclude_type_checking_imports=True, include_external_packages=True
    )
    own = {module for module in imports.modules if not imports.is_module_squashed(module)}
    for module in own:
        package, _, _ = module.rpartition(".")
        if package:
            imports.add_import(importer=module, imported=package)
    steps = own & _reachable(imports, {module for module in own if module.startswith("tasks.")})
    outside = _reachable(imports, steps) - own
    for name in sorted(outside):
        if _lies_in_checkout(name):
            importers = ", ".join(sorted(own & imports.find_modules_that_directly_import(name)))
            raise CodeError(
                f"{importers} imports {name}, which no cache key can see; move it into a package of {CHECKOUT} "
                "(a folder with an __init__.py), and run again"
            )
    for name in steps:
        importlib.import_module(name)
    files = {name: _source_file(name) for name in steps}
    digests = {name: digest_module(file.read_text(encoding="utf-8")) for name, file in files.items()}
    late = [file for file in files.values() if file.stat().st_ctime > LOADING_SINCE - TICK_SECONDS]
    if late:
        raise CodeError(
            f"{min(late)} was saved after this process had started, so it is unclear which code runs; run again"
        )
    return Code(imports, digests)


def code_of(module: str) -> dict[str, str]:
    """Digests, by module, of the code that `module` depends on: itself, all that it imports, and their packages.

    Raises:
        CodeError: Raised by `loaded_code`.
    """
    imports, digests = loaded_code()
    return {name: digests[name] for name in sorted(_reachable(imports, {module}) & digests.keys())}


def digest_module(source: str) -> str:
    """SHA-256 of a module's syntax tree, without comments, docstrings and line layout."""
    return _sha256(ast.dump(_WithoutDocstrings().visit(ast.parse(source))))


def digest_code(code: Mapping[str, str]) -> str:
    """One digest of the digests of some modules."""
    return _sha256(json.dumps(code, sort_keys=True))


def unseen(modules: Iterable[str], code: Mapping[str, str]) -> list[str]:
    """Which of some loaded modules are in the checkout, but not in a key's code."""
    return sorted(name for name in modules if name not in code and name in sys.modules and _lies_in_checkout(name))


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """Drop a statement that is only a string."""
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


def _reachable(imports: grimp.ImportGraph, modules: set[str]) -> set[str]:
    return modules.union(*(imports.find_upstream_modules(module) for module in modules))


def _lies_in_checkout(module: str) -> bool:
    loaded = sys.modules.get(module)
    spec = loaded.__spec__ if loaded else find_spec(module)
    if spec is None:
        return False
    places = [Path(place) for place in (spec.origin, *(spec.submodule_search_locations or ())) if place]
    return any(place.is_relative_to(CHECKOUT) and not place.is_relative_to(sys.prefix) for place in places)


def _source_file(module: str) -> Path:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module} has no source file")
    return Path(spec.origin)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
