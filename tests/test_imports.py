"""The package's shape: imports run downward, without cycles; folders and settings stay small."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "candle_tf"
LEVELS = (  # from top to bottom; a room imports from its own level and from those below
    {"__main__", "cli"},
    {"pretraining"},
    {"runs"},
    {"reports", "methods", "teacher_store"},
    {"model"},
    {"export", "student_model", "teacher", "calibration", "zoo"},
    {"students", "data", "networks", "balancer", "resolution", "mixup", "classifiers"},
    {"losses", "metrics"},
    {"utils"},
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if path != PACKAGE / "__init__.py"
}


def at_runtime(tree: ast.AST):
    """Yields the nodes of a module, but for what type checkers alone read."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_runtime(node)


def named(module: str, name: str = "") -> str:
    """Returns the module or package that an import reads."""
    return f"{module}.{name}" if f"{module}.{name}" in MODULES or module == "candle_tf" else module


def imports_of(path: pathlib.Path) -> set[str]:
    found = set()
    for node in at_runtime(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name the whole path"
            found |= {named(node.module, alias.name) for alias in node.names}
    return {name for name in found if name.startswith("candle_tf.")}


IMPORTS = {module: imports_of(path) for module, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_a_level():
    assert {room(module) for module in MODULES} <= LEVEL.keys()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_downward(module):
    above = [name for name in IMPORTS[module] if LEVEL[room(name)] < LEVEL[room(module)]]
    assert not above


def test_no_module_imports_itself_by_way_of_others():
    """Removes, again and again, the modules that import none of those left."""
    left = {module: names & MODULES.keys() for module, names in IMPORTS.items()}
    while free := {module for module, names in left.items() if not names & left.keys()}:
        left = {module: names for module, names in left.items() if module not in free}
    assert not left


@pytest.mark.parametrize("folder", sorted({path.parent for path in PACKAGE.rglob("*.py")}))
def test_no_folder_has_more_than_twelve_modules(folder):
    modules = [path for path in folder.glob("*.py") if path.name != "__main__.py"]
    assert len(modules) <= 12  # Python fixes where __main__.py is


def test_at_most_ten_functions_take_the_settings():
    takers = [
        f"{module}.{node.name}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and any(
            argument.annotation and "Settings" in ast.unparse(argument.annotation)
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        )
    ]
    assert "candle_tf.runs.run.__init__" in takers and len(takers) <= 10
