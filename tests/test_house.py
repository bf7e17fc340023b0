"""The plan of the house: which room may import which, what stays light, what the engine must not know."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from trickbag.tricks import catalogue

ROOT = Path(__file__).parent.parent / "src" / "trickbag"
FLOORS = [
    {"errors", "rng", "functional"},
    {"imageops"},
    {"data.base", "tricks"},
    {"recipe"},
    {"data", "tasks"},
    {"interactions"},
    {"plan"},
    {"engine"},
    {
        "study.protocol",
        "study.statistics",
        "study.blocks",
        "study.noise",
        "study.table",
        "study.power",
        "study.resampling",
        "study.comparing",
        "study.equivalence",
        "study.regression",
        "study.strata",
        "study.readings",
        "study.verdicts",
    },
    {"report"},
    {"study"},
    {"api"},
    {"cli", "__main__"},
]


def floor(module: str) -> int:
    """Floor of ``trickbag.<module>``; the longest matching room counts."""
    found = [
        (len(room), level)
        for level, rooms in enumerate(FLOORS)
        for room in rooms
        if module == room or module.startswith(room + ".")
    ]
    return max(found)[1]


def imports(path: Path) -> list[str]:
    """Modules of trickbag that a file imports at run time."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("trickbag."):
            found.append(node.module)
        elif isinstance(node, ast.ImportFrom) and node.module == "trickbag":
            found += [f"trickbag.{alias.name}" for alias in node.names]
    return [name.removeprefix("trickbag.") for name in found]


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_floors_below(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for other in imports(path):
        assert floor(other) <= floor(module), f"{module} imports {other}"


def test_functional_imports_torch_alone() -> None:
    allowed = {
        "torch",
        "math",
        "collections",
        "typing",
        "__future__",
        "trickbag",
        "dataclasses",
        "functools",
        "itertools",
    }
    allowed |= {"contextlib", "copy", "warnings", "weakref", "re", "fnmatch"}
    for path in (ROOT / "functional").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            for name in names:
                assert name.split(".")[0] in allowed, f"{path.name} imports {name}"
                assert name.split(".")[0] != "trickbag" or name.startswith("trickbag.functional")


def test_the_engine_knows_no_trick_by_name() -> None:
    names = set(catalogue()) | {trick.__name__ for trick in catalogue().values()}
    for path in (ROOT / "engine").glob("*.py"):
        tree = ast.parse(path.read_text())
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                assert node.value not in names, f"{path.name} names {node.value}"
            if isinstance(node, ast.Name | ast.Attribute):
                name = node.id if isinstance(node, ast.Name) else node.attr
                assert name not in {trick.__name__ for trick in catalogue().values()}, path.name


def test_what_needs_no_training_imports_no_torch() -> None:
    """In one fresh process, through the same entry point as the command line."""
    script = """
import sys, contextlib, io
from trickbag.cli.main import app
lines = [
    ["--help"], ["tricks"], ["tricks", "mix-up"], ["recipes"], ["recipes", "small_fast"],
    ["diff", "digits_baseline", "digits_bag"],
    ["study", "plan", "digits", "--baseline", "digits_baseline", "--candidate", "digits_bag"],
]
for line in lines:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            app(line)
        except SystemExit as stop:
            assert not stop.code, (line, stop.code)
    assert len(out.getvalue()) > 40, line
heavy = {"torch", "torchvision", "timm", "sklearn", "pandas", "statsmodels", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
