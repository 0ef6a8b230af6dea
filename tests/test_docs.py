"""The pages of docs against the library: their commands, their Python and the reference."""

import ast
import dataclasses
import functools
import inspect
import json
import pathlib
import re
import shlex

import candle_tf as ct
import pytest
from candle_tf.runs.settings import Settings
from test_doctests import PUBLIC, public_names

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FLAGS = json.loads((ROOT / "candle_tf" / "cli" / "flags.json").read_text(encoding="utf-8"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(path: pathlib.Path, language: str) -> list[str]:
    """Returns the code blocks of a page in one language."""
    found = BLOCK.findall(path.read_text(encoding="utf-8"))
    return [code for tag, code in found if tag == language]


def commands(path: pathlib.Path) -> list[list[str]]:
    """Returns the words of each command of a page that runs one of our scripts."""
    lines = "\n".join(blocks(path, "bash")).replace("\\\n", " ").splitlines()
    ours = [re.search(r"python (scripts/[^|>;&]*)", line) for line in lines]
    return [shlex.split(found[1], comments=True) for found in ours if found]


def known_flags(command: str) -> dict[str, dict]:
    """Returns the flags of a command by name, a switch under its negation too."""
    given = {flag["name"]: flag for flag in FLAGS[command]["flags"]}
    negated = {f"no{name}": flag for name, flag in given.items() if flag["kind"] == "bool"}
    return {**given, **negated, "flagfile": {"choices": []}}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_name_scripts_flags_and_files_that_exist(path):
    for script, *words in commands(path):
        assert (ROOT / script).is_file(), script
        if "maintainers" in script:
            continue
        known = known_flags(pathlib.Path(script).stem)
        for word in words:
            name, _, value = word.removeprefix("--").partition("=")
            if word.startswith("--"):
                assert name in known, f"{script} {word}"
                choices = known[name]["choices"]
                assert not choices or value in choices or value.startswith("$"), word
            if name == "flagfile" and value.startswith("configs/"):
                assert (ROOT / value).is_file(), word


def resolved(node: ast.expr):
    """Returns what an expression such as `ct.students.create` names, or None."""
    names = ast.unparse(node).split(".")
    return functools.reduce(getattr, names[1:], ct) if names[0] == "ct" else None


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_calls_what_exists_with_arguments_that_exist(path):
    fields = {field.name for field in dataclasses.fields(Settings)}
    trees = map(ast.parse, blocks(path, "python"))
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in calls:
        function, given = resolved(call.func), {k.arg for k in call.keywords} - {None}
        if function is ct.train:
            assert given <= fields, ast.unparse(call)
        elif function is not None:
            inspect.signature(function).bind_partial(*call.args, **dict.fromkeys(given))


def test_the_table_of_flags_names_flags():
    rows = re.findall(r"^\| (`--.*?) \|", (ROOT / "docs" / "flags.md").read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"--(\w+)", row)}
    assert len(named) > 30 and named <= known_flags("train").keys()


def test_the_reference_has_each_public_class_and_function():
    pages = (ROOT / "docs" / "reference").glob("*.md")
    shown = {name for page in pages for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)}
    values = [getattr(module, name) for module in PUBLIC for name in public_names(module)]
    kinds = [x for x in values if inspect.isclass(x) or inspect.isfunction(x)]
    missing = [x for x in kinds if not {x.__module__, f"{x.__module__}.{x.__name__}"} & shown]
    assert missing == []
