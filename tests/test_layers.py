"""The house: which floor uses which, and what is asked in one place alone."""

import ast
import functools
import re

import pytest
from conftest import ROOT

from hlrcml_jax.registry import MODELS

PACKAGE = ROOT / "hlrcml_jax"
# From the ground up; a module imports from its own floor and from those below.
FLOORS = (
    (
        "errors",
        "arguments",
        "settings",
        "keys",
        "registry",
        "schema",
        "custom",
        "sources",
        "storage",
        "devices",
        "processes",
    ),
    ("config", "config_files", "command_line"),
    ("data",),
    ("models",),
    ("training",),
    ("ranking",),
    ("reporting", "frames", "explain", "export", "analyse", "functional"),
    ("runs",),
    ("recommender", "main"),
)


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
SOURCES = {name: path.read_text() for name, path in PATHS.items()}


@functools.cache
def imports(module):
    """The modules of the package that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(SOURCES[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in SOURCES else node.module for name in names}
    return (found & set(SOURCES)) - {module, "hlrcml_jax"}


@functools.cache
def depth(module):
    """Modules of the longest chain of imports that starts here; there is no cycle."""
    return 1 + max(map(depth, imports(module)), default=0)


def floor(module):
    part = module.removeprefix("hlrcml_jax").lstrip(".").partition(".")[0]
    return next((number for number, names in enumerate(FLOORS) if part in names), None)


def test_imports_go_down_and_are_at_most_eight_deep():
    upwards = [
        (module, other)
        for module in SOURCES
        for other in imports(module)
        if module != "hlrcml_jax" and floor(module) < floor(other)
    ]
    assert not upwards
    # The package itself imports what it offers on first use.
    assert max(depth(module) for module in SOURCES if module != "hlrcml_jax") <= 8


@pytest.mark.parametrize("name", ["keys", "registry", "schema", "custom", "config", "config_files"])
def test_a_mistake_in_a_config_needs_no_jax(name):
    roots = {
        re.split(r"[. ]", line.split()[1])[0]
        for line in SOURCES[f"hlrcml_jax.{name}"].splitlines()
        if re.match(r"(import|from) ", line)
    }
    assert not roots & {"jax", "flax", "optax", "orbax", "polars"}


def code(module):
    """The source without docstrings and comments."""
    return ast.unparse(
        ast.fix_missing_locations(_WithoutDocstrings().visit(ast.parse(SOURCES[module])))
    )


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node):
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.Pass() if is_text else node


CLASSES = {path.partition(":")[2] for path in MODELS.values()} | {"ClosedForm", "MetricModel"}


def test_nothing_asks_which_model_it_has():
    """What a model needs and allows is in its `Spec`; names stand in the registry alone."""
    for module in SOURCES:
        text = code(module)
        asked = re.findall(r"is(?:instance|subclass)\([^()]*\b(\w+)\)", text)
        assert not set(asked) & CLASSES, module
        if module not in ("hlrcml_jax.registry", "hlrcml_jax.schema"):  # which has the default
            names = re.findall(r"'([a-z+-]+)'", text)
            # Of these there is a way to draw, and a module of a library.
            distinctive = set(MODELS) - {"popularity", "als"}
            assert not set(names) & distinctive, module


def test_one_place_knows_the_kind_of_device():
    allowed = {"hlrcml_jax.devices", "hlrcml_jax.models.past"}
    for module in set(SOURCES) - allowed:
        assert not re.search(r"\bon_cpu\b|default_backend|\.platform\b", code(module)), module
    assert [module for module in SOURCES if re.search(r"\bjax\.pmap\b", code(module))] == [
        "hlrcml_jax.devices"
    ]
