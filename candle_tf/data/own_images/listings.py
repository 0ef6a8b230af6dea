"""Text lists and tables of images, as people and their programs write them."""

import codecs
import csv
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from candle_tf.data.own_images.layout import clean, refuse, split_of

SEPARATORS = (",", ";", "\t", "|")
SEVERAL = re.compile(r"\s*[|;,]\s*")  # separates several labels in one cell
JOINED = re.compile(r"\s*[/+&]\s*")  # separates them too, but is also part of many names
MISSING = {"", "nan", "null", "<na>", "#n/a"}  # how programs write an empty cell
QUOTES = "\"'\ufeff\u200b"
NUMBER = re.compile(r"[+-]?\d+([.,]0*)?")  # an integer, also in a spreadsheet's form: 7.0


def read_text(path: str) -> tuple[str, list[str]]:
    """Reads a text file in UTF-8, UTF-16 or Windows-1252.

    Returns:
        (its text, sentences to print if it was not UTF-8).

    Raises:
        ValueError: For a file in another encoding.
    """
    content = Path(path).read_bytes()
    utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if utf_16 or b"\0" in content[:100]:
        kind = "utf-16" if utf_16 else "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
        try:
            return content.decode(kind), []
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a text file ({error}): save it as UTF-8.") from error
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
        if "\ufffd" in text:
            raise ValueError(f"{path} is not UTF-8: save it as UTF-8.") from None
        return text, [f"{path} is not UTF-8: it is read as Latin-1 (Windows-1252)."]


def as_path(cell: str) -> str:
    """Returns a path of a list or table with slashes, without quotes and blanks around it."""
    cell = cell.strip().strip(QUOTES).strip().replace("\\", "/")
    return cell.removeprefix("./")


def list_lines(path: str) -> tuple[list[str], list[str], list[str], list[str]]:
    """Reads the lines "path label" of a text file.

    Returns:
        (paths, labels, the place of each line for messages, notes to print).

    Raises:
        ValueError: For a file without lines, and for lines without a label or with a comma or
            semicolon before it.
    """
    text, notes = read_text(path)
    # A path may contain blanks: the label follows the last one.
    lines = [(f"{path}, line {i}", line) for i, line in enumerate(text.splitlines(), 1)]
    lines = [(where, line.strip().strip("\ufeff\u200b")) for where, line in lines]
    comments = [where for where, line in lines if line.startswith("#")]
    if comments:
        notes.append(f"{len(comments)} lines that start with # are left out ({comments[0]}, ...).")
    lines = [(where, line) for where, line in lines if line and not line.startswith("#")]
    if not lines:
        raise ValueError(f"{path} lists no image: write 'relative/path label' in each line.")
    for name, mark in (("a comma", ","), ("a semicolon", ";")):
        refuse(
            [where for where, line in lines if re.search(rf"{mark}\s*\S+$", line)],
            f"{name} before the label",
            f"{name} is before the label, but should be a blank: write 'relative/path label', "
            "or use `dataset=csv:FILE` with the header path,label",
            of="lines",
        )
    split = [(where, line.rsplit(None, 1)) for where, line in lines]
    refuse(
        [where for where, parts in split if len(parts) < 2],
        "no label",
        "write 'relative/path label' in each line",
    )
    places, pairs = [where for where, _ in split], [parts for _, parts in split]
    first = [whole(line.split(None, 1)[0]) is not None for _, line in lines]
    last = [whole(label) is not None for _, label in pairs]
    if pairs and not any(last):
        if all(first):
            raise ValueError(
                f"{path}: the label is before the path, as in {lines[0][1]!r}: write "
                "'relative/path label' in each line."
            )
        raise ValueError(
            f"{path}: no line ends in a class number (line 1 ends in {pairs[0][1]!r}): number the "
            "classes from 0, or use `dataset=csv:FILE` with the header path,label for names."
        )
    if pairs and not last[0] and sum(last) == len(last) - 1:
        raise ValueError(f"{places[0]} is a header ({lines[0][1]!r}): delete that line.")
    return [as_path(p) for p, _ in pairs], [number_text(n) for _, n in pairs], places, notes


def whole(label: str) -> int | None:
    """Returns the integer that a label such as 7, 007, 7.0 or 7,0 means, or None."""
    return int(re.split("[.,]", label)[0]) if NUMBER.fullmatch(label) else None


def number_text(label: str) -> str:
    """Returns a label for comparison: 007 becomes 7, and a name stays the same."""
    number = whole(label)
    return label if number is None else str(number)


def check_numbers(splits: Sequence[tuple[Sequence[str], Sequence[str]]]):
    """Refuses labels that are not 0 to the number of training classes - 1.

    Args:
        splits: (labels, the place of each for messages) per split, the training split first.

    Raises:
        ValueError: For labels that start at 1, have a gap, or are no class numbers.
    """
    numbers = sorted({n for n in map(whole, splits[0][0]) if n is not None})
    count = len(numbers)
    if numbers and numbers == list(range(1, count + 1)):
        others = {whole(label) for labels, _ in splits for label in labels}
        if others <= set(numbers):
            raise ValueError(
                f"The labels start at 1 and end at {count}: number the classes from 0 to "
                f"{count - 1}."
            )
    if numbers and numbers[0] == 0 and numbers[-1] >= count and numbers[-1] < 4 * count + 4:
        first, *more = sorted(set(range(numbers[-1])) - set(numbers))
        others = f" (and {len(more)} more up to {more[-1]})" if more else ""
        raise ValueError(
            f"The training list has labels from 0 to {numbers[-1]}, but label {first} is missing"
            f"{others}: number the classes from 0 without a gap."
        )
    known = {str(i) for i in range(count)}
    for labels, where in splits:
        wrong = [i for i, label in enumerate(labels) if label not in known]
        refuse(
            [f"{where[i]}: {labels[i]}" for i in wrong],
            f"a label that is not in 0 to {count - 1}, the {count} classes that have training "
            "images",
            "number the classes from 0 without a gap",
        )


def table_rows(path: str) -> tuple[list[str], list[str], list[str], list[str] | None, list[str]]:
    """Reads the rows of a table with the columns path and label, and maybe split.

    Cells are separated by commas, semicolons, tabs or bars. Blanks around a cell and the case of
    the header are ignored.

    Returns:
        (paths, labels, the place of each row for messages, the cells of the column split or None,
        notes to print).

    Raises:
        ValueError: For another header, no rows, empty cells, or several labels per image.
    """
    text, notes = read_text(path)
    body = re.sub(r"\A\s*sep=.\r?\n", "", text)  # a first line that some spreadsheets write
    skipped = text[: len(text) - len(body)].count("\n")
    header = next((line for line in body.splitlines() if line.strip()), "")
    separator = max(SEPARATORS, key=lambda mark: len(names_in(header, mark)))
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        rows = [(reader.line_num + skipped, [clean(cell) for cell in row]) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error}).") from error
    rows = [(i, row) for i, row in rows if any(row)]
    columns = [name.lower() for name in rows[0][1]] if rows else []
    for name in ("path", "label", "split"):
        if columns.count(name) > 1:
            raise ValueError(f"{path} has {columns.count(name)} columns {name}: keep one.")
    if not {"path", "label"} <= set(columns):
        raise ValueError(
            f"{path} has the columns {', '.join(columns) or '(none)'}: its first line must name "
            "the columns path and label."
        )
    where, rows = [f"{path}, line {i}" for i, _ in rows[1:]], [row for _, row in rows[1:]]
    refuse(
        [place for place, row in zip(where, rows) if any(row[len(columns) :])],
        "more cells than columns",
        f"quote the cells that hold {separator!r}",
        of="lines",
    )
    if not rows:
        raise ValueError(f"{path} has no row below its header: write one row per image.")
    rows = [row + [""] * (len(columns) - len(row)) for row in rows]
    paths, labels = ([row[columns.index(name)] for row in rows] for name in ("path", "label"))
    refuse(
        [place for place, p, n in zip(where, paths, labels) if not p or n.lower() in MISSING],
        "no path or no label",
        "fill both columns",
    )
    check_one_label(labels, where)
    if labels and all(whole(label) is not None for label in labels):
        labels = [number_text(label) for label in labels]
    splits = [row[columns.index("split")] for row in rows] if "split" in columns else None
    return [as_path(p) for p in paths], labels, where, splits, notes


def names_in(header: str, separator: str) -> set[str]:
    """Returns which of the known column names a header has if `separator` separates its cells."""
    cells = {clean(cell.strip().strip('"')).lower() for cell in header.split(separator)}
    return cells & {"path", "label", "split"}


def check_one_label(labels: Sequence[str], where: Sequence[str]):
    """Refuses cells that hold several labels, such as "cat|dog" or "cat, dog".

    A comma or semicolon may be part of a name, unless each part also appears beside another part.
    A slash, plus or ampersand may be part of a name, unless each part is itself a label.

    Raises:
        ValueError: Names the first few such cells.
    """
    every = set(labels)
    partners: dict[str, set[str]] = {}
    for label in set(labels):
        for part in SEVERAL.split(label):
            partners.setdefault(part, set()).add(label)
    several = []
    for label, place in zip(labels, where):
        parts = SEVERAL.split(label)
        again = len(parts) > 1 and all(len(partners[part]) > 1 for part in parts)
        joined = JOINED.split(label)
        again = again or (len(joined) > 1 and all(part in every for part in joined))
        if again or "|" in label or (label.startswith("[") and label.endswith("]")):
            several.append(f"{place}: {label}")
    refuse(
        several,
        "several labels in one cell",
        "one label per image is supported, so choose one",
        of="lines",
    )


def splits_of(values: Sequence[str], where: Sequence[str]) -> list[str]:
    """Returns the split of each cell in the column `split`.

    Raises:
        ValueError: For a cell that names no split.
    """
    kinds = [split_of(value) for value in values]
    wrong = [i for i, kind in enumerate(kinds) if kind is None]
    most = Counter(values[i] for i in wrong).most_common(3)
    some = ", ".join(f"{value!r} {count} times" for value, count in most)
    refuse(
        [f"{where[i]}: {values[i]!r}" for i in wrong],
        f"no split in the column 'split' ({some})" if wrong else "",
        "write train, validation or test in the column 'split'",
        of="lines",
    )
    return kinds


def below_root(paths: Sequence[str], root: str) -> list[str]:
    """Returns paths relative to the image root; an absolute path elsewhere stays the same."""
    roots = {os.path.abspath(root) + "/", os.path.realpath(root) + "/"}

    def relative(path: str) -> str:
        start = next((r for r in roots if path.startswith(r)), "")
        return path[len(start) :]

    return [relative(path) for path in paths]
