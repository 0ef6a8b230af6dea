"""Plain English in what people read: the package, examples, the README and the pages of docs."""

import ast
import io
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODULES = sorted([*(ROOT / "candle_tf").rglob("*.py"), *(ROOT / "examples").glob("*.py")])
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# A docstring starts with a verb ("Returns the ...") or a noun with its article. Each of these words
# starts half a sentence, whose other half the reader has to guess.
NO_FIRST_WORDS = set(
    "as at beside by for from how if in of on that to what when where whether which who whose why "
    "with within without".split()
)
# Literal translations, which people read twice. Each has a plain word that names who does what:
# "is", "has", "needs", "is in", "starts", "continues", "again", "is equal to", "as many".
NO_PHRASES = (
    "anew",
    "brings",
    "comes to",
    "goes on",
    "is of",
    "lies",
    "so many",
    "stands",
    "takes up",
    "whose it is",
)
BANNED = re.compile(rf"\b(?:{'|'.join(NO_PHRASES)})\b", re.IGNORECASE)
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`|^ *>>> .*?$", re.DOTALL | re.MULTILINE)


def found_in(text: str) -> list[str]:
    """The banned phrases of a text outside its code, each with the words around it."""
    plain = re.sub(r"\s+", " ", CODE.sub("code", text))
    return [plain[max(0, m.start() - 40) : m.end() + 40] for m in BANNED.finditer(plain)]


def docstrings(tree: ast.Module) -> list[str]:
    """The docstrings of a module, its classes and its functions, the nested ones too."""
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    every = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in every if text]


def strings(tree: ast.Module) -> list[str]:
    """All texts of a module: its docstrings, help texts and sentences of errors."""
    every = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [text for text in every if isinstance(text, str)]


def comments(source: str) -> str:
    """The comments of a module as one text."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return " ".join(token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_package_speaks_plain_english(path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert [s for text in strings(tree) for s in found_in(text)] == []
    assert found_in(comments(source)) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_start_with_a_verb_or_a_noun(path):
    first = [
        (re.match(r"\W*(\w*)", text)[1], text) for text in docstrings(ast.parse(path.read_text()))
    ]
    assert [text.splitlines()[0] for word, text in first if word.lower() in NO_FIRST_WORDS] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_pages_speak_plain_english(path):
    assert found_in(path.read_text(encoding="utf-8")) == []


def test_banned_phrases_are_found_in_prose_and_not_in_code():
    assert found_in("The image\nlies below it.") == ["The image lies below it."]
    assert found_in("It runs `goes on` there.\n\n```bash\necho so many\n```\n") == []
