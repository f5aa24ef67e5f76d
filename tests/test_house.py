"""The house keeps its shape: what imports what, how deep, and how many rooms there are."""

import ast
import functools
import graphlib

from tests.support.paths import ROOT

PACKAGE = ROOT / "composer_edba"
# A room may import from the rooms before it, itself, and no others.
FLOORS = (
    {"spelling", "__init__"},
    {"method", "loading"},
    {"settings", "functional"},
    {"scoring"},
    {"engine"},
    {"loops"},
    {"plain", "ignite", "lightning", "transformers", "composer"},
    {"accelerate", "dba"},
    {"train", "__main__"},
)


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(path):
    """The package's modules that a module imports, for whatever purpose."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inside or {node.module} & MODULES.keys()
    return found - {module_name(path)}


GRAPH = {name: imports(path) for name, path in MODULES.items()}
# For the types alone: the face names what it gives lazily.
GRAPH["composer_edba"] = set()


def room(name):
    return [*name.split("."), "__init__"][1]


# One file or folder a framework.
FACES = {"accelerate", "composer", "ignite", "lightning", "plain", "transformers"}


def test_at_most_thirteen_files_and_folders_lie_in_the_package_beside_the_frameworks():
    found = {path.stem for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert found >= FACES
    assert len(found - FACES) <= 13


def test_no_import_leads_back():
    graphlib.TopologicalSorter(GRAPH).prepare()  # raises a CycleError that names the circle


def test_the_core_knows_no_framework_and_no_room_one_above_it():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for name, wanted in GRAPH.items():
        for other in wanted:
            assert floor[room(other)] < floor[room(name)] or room(other) == room(name), f"{name} imports {other}"


def test_imports_are_at_most_eight_deep():
    @functools.cache
    def depth(name):
        return 1 + max(map(depth, GRAPH[name]), default=0)

    assert max(map(depth, GRAPH)) <= 8


def test_nothing_of_the_laboratory_is_imported():
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            named = [node.module] if isinstance(node, ast.ImportFrom) else getattr(node, "names", [])
            assert not any(str(getattr(name, "name", name)).startswith("benchmarks") for name in named), path
