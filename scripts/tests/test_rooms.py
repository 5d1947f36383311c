"""The package's rooms: each imports only those above it, and the map names every module."""

import ast
import re

import pytest

from dojo.project import Project

PACKAGE = Project.here().root / "scripts" / "dojo"
MAP = (PACKAGE / "README.md").read_text(encoding="utf-8")
# The order is the map's: a heading a package, "## `kata/`".
ORDER = re.findall(r"^## `(\w+)", MAP, re.MULTILINE)
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.stat().st_size)


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.module == "dojo":
                names = [f"dojo.{alias.name}" for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("dojo."))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_rooms_above_its_own(path):
    if path.parent == PACKAGE and path.stem.startswith("__"):
        return  # the way in: it opens the command line
    own = ORDER.index(room(path))
    below = {name for name in imported_rooms(path) if ORDER.index(name) > own}
    assert not below, f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(below))}, below it"


def test_no_two_modules_import_each_other():
    def name(path):
        return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)

    graph = {}
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph[name(path)] = {
            target
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for target in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        }

    def reachable(start):
        seen, waiting = set(), [start]
        while waiting:
            for target in graph.get(waiting.pop(), ()):
                if target in graph and target not in seen:
                    seen.add(target)
                    waiting.append(target)
        return seen

    assert [module for module in graph if module in reachable(module)] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_is_on_the_map(path):
    if path.stem.startswith("__"):
        return
    section = MAP[MAP.index(f"## `{room(path)}") :].partition("\n## ")[0]
    assert path.stem in re.findall(r"\w+", section), (
        f"{path.relative_to(PACKAGE)} is not in scripts/dojo/README.md"
    )


def test_the_map_names_no_module_that_is_not_there():
    there = {path.stem for path in MODULES} | {path.parent.name for path in MODULES}
    named = re.findall(r"^- `(\w+)(?:\.py|/)?`", MAP, re.MULTILINE)
    assert sorted(set(named) - there) == []


def test_few_files_lie_in_the_package_itself():
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 8
