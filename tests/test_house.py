"""The house: a folder or file imports what is below it, and nothing above."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fused_rnn"
TOPS = ("fused_rnn", "tests", "benchmarks")

# From top to bottom; what stands on one floor may not import each other, but within a folder. The
# longest name that fits counts.
FLOORS = (
    ("__main__",),
    ("__init__",),
    ("explain", "tune", "quantize"),
    ("convert", "trials", "importing"),
    ("quantized",),
    ("modules", "functional"),
    ("layers",),
    ("graph",),
    ("scans",),
    ("backends",),
    ("backends.tuned",),
    ("backends.reference", "backends.native", "backends.triton"),
    ("backends.machine", "backends.records"),
    ("backends.measured",),
    ("backends.base", "backends.transforms"),
    ("variants",),
    ("cells", "command"),
)
# The reference is written in terms that all backends share, and they are the backends package's.
KNOWN = {("backends.reference", "backends")}

# Of csrc/, likewise; a file names what it includes from there.
CSRC = (
    ("cuda/ops.cpp", "ops.cpp", "variant_ops.cpp"),
    ("variant_options.h",),
    ("cuda/persistent",),
    ("cuda/stepwise",),
    ("cuda", "cpu"),
    ("",),
)


def floor_of(name: str, floors: tuple[tuple[str, ...], ...], separator: str) -> tuple[int, str]:
    """Return the number of the floor that a name is on, 0 at the top, and its room."""
    fits = [
        (len(room), number, room)
        for number, floor in enumerate(floors)
        for room in floor
        if name == room or room == "" or name.startswith(room + separator)
    ]
    assert fits, f"{name} has no floor"
    _, number, room = max(fits)
    return number, room


def name_of(path: Path) -> str:
    """Return the name of a module below fused_rnn."""
    name = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
    return name.removesuffix(".__init__")


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """Return the modules of ours that a module imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    ours = set()
    for name in found - {"fused_rnn._C"}:
        package, *rest = name.split(".")
        while package == "fused_rnn" and ".".join(rest or ["__init__"]) not in MODULES:
            rest.pop()  # it is a name of that module's
        ours |= {".".join(rest or ["__init__"])} if package == "fused_rnn" else set()
    return ours - {name_of(path)}


def test_a_name_of_the_package_is_an_import_of_it():
    assert imports(PACKAGE / "convert.py") == {"modules", "quantized"}
    assert imports(PACKAGE / "__main__.py") >= {"__init__", "scans.autograd", "backends", "cells"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_import_runs_upwards(name):
    floor, room = floor_of(name, FLOORS, ".")
    for other in imports(MODULES[name]):
        below, its_room = floor_of(other, FLOORS, ".")
        assert room == its_room or below > floor or (name, other) in KNOWN, f"{name}: {other}"


FOLDERS = sorted({path.parent for top in TOPS for path in (ROOT / top).rglob("*.py")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_folder_says_what_lives_there(folder):
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


def test_the_map_of_the_kernels_names_every_folder_and_nothing_else():
    csrc = ROOT / "csrc"
    text = (csrc / "README.md").read_text()
    named = re.findall(r"`([\w/]+/|[\w/]+\.[a-z]+)`", text)
    assert [
        path for path in named if not any((base / path).exists() for base in (csrc, ROOT))
    ] == []
    folders = {path.parent for path in sources()} - {csrc}
    assert folders
    assert {f"{folder.relative_to(csrc)}/" for folder in folders} <= set(named)


def sources() -> list[Path]:
    """Return every source and header of csrc/."""
    suffixes = (".h", ".cuh", ".cu", ".cpp", ".inc")
    return [path for path in (ROOT / "csrc").rglob("*") if path.suffix in suffixes]


def test_no_include_runs_upwards():
    csrc = ROOT / "csrc"
    seen = 0
    for path in sources():
        floor, room = floor_of(path.relative_to(csrc).as_posix(), CSRC, "/")
        for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE):
            there = [base / name for base in (path.parent, csrc) if (base / name).exists()]
            if name == "simt.h":  # the host bench's
                continue
            assert there, f"{path} includes {name}"
            other = there[0].resolve().relative_to(csrc).as_posix()
            below, its_room = floor_of(other, CSRC, "/")
            assert room == its_room or below > floor, f"{path}: {other}"
            seen += 1
    assert seen > 50
