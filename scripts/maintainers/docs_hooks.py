"""Completes pages while `make docs` builds the site: tables of flags, model cards, examples."""

import json
import re
from pathlib import Path

import griffe

FLAGS = Path(__file__).parents[2] / "candle_tf" / "cli" / "flags.json"
PLACE = "<!-- flags -->"  # line of docs/flags.md in whose place the tables come
ZOO = Path(__file__).parents[2] / "zoo"
CARDS = "<!-- cards -->"  # line of docs/zoo.md in whose place the model cards come


def on_page_markdown(markdown: str, **_) -> str:
    """Returns the text of a page with the tables of flags or the model cards in their place."""
    markdown = markdown.replace(PLACE, tables(json.loads(FLAGS.read_text(encoding="utf-8"))))
    return markdown.replace(CARDS, cards())


def cards() -> str:
    """Returns all model cards, with their headings one level lower."""
    pages = (path.read_text(encoding="utf-8") for path in sorted(ZOO.glob("*.md")))
    return re.sub(r"^(?=#)", "#", "\n".join(pages), flags=re.MULTILINE)


def tables(commands: dict) -> str:
    """Returns a section for each command, with one row per flag."""
    sections = []
    for command, known in commands.items():
        rows = [
            f"| `--{flag['name']}` | {shown(flag['default'])} | {cell(flag['help'])} |"
            for flag in known["flags"]
        ]
        head = f"### {command}.py\n\n| flag | default | meaning |\n| --- | --- | --- |"
        sections.append("\n".join([head, *rows]))
    return "\n\n".join(sections)


def shown(default) -> str:
    """Returns a default as code, or nothing for one that is not there."""
    if default in (None, "", []):
        return ""
    return f"`{','.join(default) if isinstance(default, list) else default}`"


def cell(text: str) -> str:
    """Returns a sentence that Markdown shows as it is in a cell."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


class Doctests(griffe.Extension):
    """Lets a docstring's "Example:" be shown as code: griffe knows only "Examples:"."""

    def on_object(self, *, obj: griffe.Object, **_):
        """Changes the heading in the docstring of a module, a class or a function."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = text
