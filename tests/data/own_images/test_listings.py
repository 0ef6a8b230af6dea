"""Lists and tables as spreadsheets and other systems write them."""

import codecs

import pytest
from candle_tf.data.own_images.listings import (
    as_path,
    below_root,
    check_numbers,
    list_lines,
    number_text,
    splits_of,
    table_rows,
)


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


ROWS = [("a/1.jpg", "cat", "train"), ("a/ü.jpg", "dog", "test")]


def table(separator=",", header=("path", "label", "split"), end="\n", quote=""):
    lines = [header, *ROWS]
    return end.join(separator.join(f"{quote}{c}{quote}" for c in row) for row in lines) + end


@pytest.mark.parametrize(
    "content",
    [
        table(),
        table(";"),
        table("\t"),
        table("|"),
        table(", "),
        table(" ; "),
        table(end="\r\n"),
        table(end="\r"),
        table(quote='"'),
        table(";", end="\r\n", quote='"'),
        "sep=;\r\n" + table(";", end="\r\n"),
        table(header=("Path", " LABEL", "Split ")),
        table().encode("utf-8-sig"),
        table().encode("utf-16"),
        table().encode("utf-16-le"),
        codecs.BOM_UTF16_BE + table().encode("utf-16-be"),
        table().encode("latin-1"),
        "\n" + table() + "\n,,\n",
    ],
)
def test_tables_are_read_alike(content, written):
    paths, labels, where, splits, notes = table_rows(written(content))
    assert list(zip(paths, labels, splits)) == ROWS
    latin = isinstance(content, bytes) and content == table().encode("latin-1")
    assert bool(notes) == latin and (not latin or "is read as Latin-1" in notes[0])
    assert len(where) == 2 and where[0].startswith(written(content))


def test_a_cell_of_several_lines_keeps_the_count_of_lines(written):
    content = 'path,label,note\na.jpg,cat,"two\nlines"\nb.jpg,,\n'
    with pytest.raises(ValueError, match="no path or no label .*line 4"):
        table_rows(written(content))


@pytest.mark.parametrize("label", ["", " ", "nan", "NULL", "#N/A"])
def test_an_empty_label_is_no_class(label, written):
    with pytest.raises(ValueError, match="no path or no label .*line 3"):
        table_rows(written(f"path,label\na.jpg,1\nb.jpg,{label}\n"))


def test_blanks_around_cells_do_not_count(written):
    content = "path,label,split\na.jpg,cat ,train\n b.jpg,\u00a0cat,train\nc.jpg,cat\u200b,train\n"
    assert set(table_rows(written(content))[1]) == {"cat"}


@pytest.mark.parametrize(
    "labels, expected",
    [
        (["7", "007", "7.0"], ["7", "7", "7"]),
        (["7", "cat"], ["7", "cat"]),
        (["1.5", "007"], ["1.5", "007"]),
        (["in/kitchen", "out/kitchen", "in/bath"], ["in/kitchen", "out/kitchen", "in/bath"]),
        (["tench, Tinca tinca", "dog, Labrador"], ["tench, Tinca tinca", "dog, Labrador"]),
    ],
)
def test_labels(labels, expected, written):
    content = "path;label\n" + "".join(f"{i}.jpg;{label}\n" for i, label in enumerate(labels))
    assert table_rows(written(content))[1] == expected


@pytest.mark.parametrize(
    "labels",
    [
        ["cat|dog", "cat|emu", "dog|emu"],
        ["cat", "dog", "cat, dog"],
        ["cat;dog", "dog;cat", "cat"],
        ["['cat', 'dog']", "['cat']"],
        ["cat/dog", "cat", "dog"],
        ["cat + dog", "cat", "dog"],
    ],
)
def test_several_labels_for_an_image_are_refused(labels, written):
    content = "path\tlabel\n" + "".join(f"{i}.jpg\t{label}\n" for i, label in enumerate(labels))
    with pytest.raises(ValueError, match="several labels in one cell .*one label per image"):
        table_rows(written(content))


@pytest.mark.parametrize(
    "content, message",
    [
        ("file,label\na,b\n", "has the columns file, label: its first line must name the columns"),
        ("a.jpg,cat\nb.jpg,dog\n", "has the columns a.jpg, cat: its first line must name"),
        ("path,label,label\na,b,c\n", "has 2 columns label: keep one"),
        ("path,label\na, b.jpg,cat\n", "more cells than columns .*quote the cells"),
        ("", r"has the columns \(none\)"),
    ],
)
def test_tables_that_are_refused(content, message, written):
    with pytest.raises(ValueError, match=message):
        table_rows(written(content))


def test_splits():
    assert splits_of(["Train", " val", "TEST", "dev"], "abcd") == [
        "train",
        "validation",
        "test",
        "validation",
    ]
    with pytest.raises(
        ValueError, match="2 lines with no split in the column 'split' .'x' 2 times"
    ):
        splits_of(["train", "x", "x"], ["f, line 2", "f, line 3", "f, line 4"])


@pytest.mark.parametrize(
    "content",
    ["a/1.jpg 0\nb c/2.jpg 1\n", "a/1.jpg\t0\r\nb c/2.jpg\t1\r\n", "a\\1.jpg 000\nb c\\2.jpg 001\n"]
    + ["./a/1.jpg 0\n\n'b c/2.jpg' 1.0\n", "\ufeffa/1.jpg 0\nb c/2.jpg   1  "],
)
def test_lists_are_read_alike(content, written):
    paths, labels, where, notes = list_lines(written(content))
    assert (paths, labels, notes) == (["a/1.jpg", "b c/2.jpg"], ["0", "1"], [])


def test_comments_in_a_list_are_counted(written):
    *_, notes = list_lines(written("# made by hand\na.jpg 0\n"))
    assert notes == [f"1 lines that start with # are left out ({written('x')}, line 1, ...)."]


@pytest.mark.parametrize(
    "content, message",
    [
        ("a.jpg, 0\nb.jpg, 1\n", "a comma is before the label"),
        ("a.jpg,0\nb.jpg,1\n", "a comma is before the label"),
        ("a.jpg;0\n", "a semicolon is before the label"),
        ("0 a.jpg\n1 b.jpg\n", "the label is before the path, as in '0 a.jpg'"),
        ("a.jpg cat\nb.jpg dog\n", "no line ends in a class number .*csv:FILE` with the header"),
        ("path label\na.jpg 0\nb.jpg 1\n", "line 1 is a header .'path label'.: delete that line"),
        ("a.jpg\nb.jpg\n", "2 lines or images with no label"),
    ],
)
def test_lists_that_are_refused(content, message, written):
    with pytest.raises(ValueError, match=message):
        list_lines(written(content))


@pytest.mark.parametrize(
    "train, test, message",
    [
        ("1 2 3", "1 3", "labels start at 1 and end at 3: number the classes from 0 to 2"),
        ("0 2 4", "0", "labels from 0 to 4, but label 1 is missing .and 1 more up to 3"),
        ("0 1 3", "0", "label 2 is missing: number"),
        ("0 1", "2", "a label that is not in 0 to 1"),
        ("0 900", "0", "a label that is not in 0 to 1, .*900"),
    ],
)
def test_labels_of_lists(train, test, message):
    splits = [(text.split(), [f"line {i}" for i in range(9)]) for text in (train, test)]
    with pytest.raises(ValueError, match=message):
        check_numbers(splits)


def test_paths(tmp_path):
    assert as_path(' "a\\b.jpg" ') == "a/b.jpg" and as_path("./a b/c.jpg") == "a b/c.jpg"
    root = str(tmp_path)
    assert below_root([f"{root}/a/b.jpg", "c.jpg", "/etc/x"], root) == [
        "a/b.jpg",
        "c.jpg",
        "/etc/x",
    ]
    assert [number_text(n) for n in ("007", "3.0", "3,00", "-1", "cat")] == "7 3 3 -1 cat".split()
