import json
import subprocess
import sys

import numpy as np
import pytest
from candle_tf.utils.files import (
    Rows,
    check_made_of,
    directory_beside,
    fingerprint,
    locked,
    write_text,
)

RECORD = np.dtype([("x", np.float16, 3), ("y", np.int64)])


def records(n: int, start: int = 0) -> np.ndarray:
    made = np.zeros(n, [*RECORD.descr, ("checksum", np.uint32)])
    made["x"] = np.arange(start, start + n)[:, None] + [0.0, 0.25, 0.5]
    made["y"] = np.arange(start, start + n)
    return made


def same(a: np.ndarray, b: np.ndarray):
    np.testing.assert_array_equal(a[["x", "y"]], b[["x", "y"]])


def test_rows_come_back_in_order(tmp_path):
    rows = Rows(tmp_path, RECORD, {"seed": 0})
    assert len(rows) == 0
    rows.claim(8)
    rows.append(records(5))
    rows.append(records(3, 5))
    again = Rows(tmp_path, RECORD, {"seed": 0})
    assert len(again) == 8
    same(again.read(), records(8))
    again.verify()
    assert isinstance(again.read(), np.memmap)


@pytest.mark.parametrize("torn", [1, RECORD.itemsize + 3])
def test_a_torn_record_is_written_over(tmp_path, torn):
    rows = Rows(tmp_path, RECORD, {})
    rows.claim(7)
    rows.append(records(5))
    with open(rows.path, "ab") as file:
        file.write(b"?" * torn)
    assert len(rows) == 5
    same(rows.read(), records(5))
    rows.append(records(2, 5))
    same(rows.read(), records(7))


def test_rows_of_something_else_are_refused(tmp_path):
    Rows(tmp_path, RECORD, {"teacher": "a", "sizes": [24, 32]}).claim(1)
    Rows(tmp_path, RECORD, {"teacher": "a", "sizes": (24, 32)})
    with pytest.raises(ValueError, match="was made of another sizes .*name another directory"):
        Rows(tmp_path, RECORD, {"teacher": "a", "sizes": [24]})
    check_made_of(tmp_path, {"teacher": "a"})
    with pytest.raises(ValueError, match="another teacher"):
        check_made_of(tmp_path, {"teacher": "b"})
    check_made_of(tmp_path / "not there", {"teacher": "b"})


def test_what_another_made_in_the_meantime_is_refused(tmp_path):
    ours, theirs = (Rows(tmp_path, RECORD, {"seed": seed}) for seed in (0, 1))
    theirs.claim(5)
    theirs.append(records(5))
    for use in (lambda: ours.claim(5), ours.check, ours.read):
        with pytest.raises(ValueError, match="made of another seed"):
            use()
    same(theirs.read(), records(5))


def test_records_without_a_note_are_refused(tmp_path):
    rows = Rows(tmp_path, RECORD, {})
    rows.claim(1)
    rows.append(records(1))
    (tmp_path / "made_of.json").unlink()
    with pytest.raises(ValueError, match="records of unknown origin"):
        Rows(tmp_path, RECORD, {})


def test_a_damaged_record_is_named(tmp_path):
    rows = Rows(tmp_path, RECORD, {})
    rows.claim(2000)
    rows.append(records(2000))
    rows.verify()
    content = bytearray(rows.path.read_bytes())
    content[1500 * rows.dtype.itemsize] ^= 1
    rows.path.write_bytes(content)
    with pytest.raises(ValueError, match="rows.bin is damaged at record 1500: delete"):
        rows.verify()


@pytest.mark.long
def test_a_full_disk_says_how_to_go_on(tmp_path):
    """A file-size limit stands for the full disk."""
    code = f"""
import pathlib, resource
import numpy as np
from candle_tf.utils.files import Rows, write_text
text = pathlib.Path({str(tmp_path)!r}, "a.json")
write_text(text, "before")
rows = Rows({str(tmp_path)!r}, np.dtype([("x", np.float32)]), {{}})
rows.claim(200)
rows.append(np.zeros(100, rows.dtype))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_text(text, "x" * 2000)
except OSError as error:
    print(error, text.read_text())
rows.append(np.zeros(100, rows.dtype))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        "make room, and start the same command again; it continues from record 100" in done.stderr
    )
    assert "a.json cannot be written" in done.stdout and done.stdout.endswith("again. before\n")


def test_a_damaged_note_is_refused(tmp_path):
    Rows(tmp_path, RECORD, {"teacher": "a"}).claim(1)
    for text in ("{", "", "[1]", "3", "null"):
        (tmp_path / "made_of.json").write_text(text)
        with pytest.raises(ValueError, match="is damaged .* delete"):
            Rows(tmp_path, RECORD, {"teacher": "a"})


def test_rows_that_find_no_room_are_refused(tmp_path):
    rows = Rows(tmp_path, RECORD, {})
    with pytest.raises(OSError, match="has no room for .* MB .* are free"):
        rows.claim(10**15)
    assert not rows.path.exists()


def test_a_fingerprint_tells_values_shapes_and_order():
    a, b = np.arange(6.0), np.arange(6.0).reshape(2, 3)
    files = np.array([b"one", b"two"], object)
    made = [
        fingerprint(arrays)
        for arrays in ([a], [b], [a, b], [b, a], [a + 1], [files], [files[::-1]], [a.astype("f4")])
    ]
    assert len(set(made)) == len(made)
    assert fingerprint([a.copy(), files.copy()]) == fingerprint([a, files])


@pytest.mark.long
def test_a_locked_directory_keeps_other_processes_out(tmp_path):
    code = f"from candle_tf.utils.files import locked\nwith locked({str(tmp_path)!r}): pass"
    with locked(tmp_path):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Another process is at work in" in other.stderr
    with locked(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"), locked(tmp_path / "file"):
        pass


def test_text_is_renamed_into_place(tmp_path):
    write_text(tmp_path / "a.json", json.dumps([1]))
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_link_stays_and_leads_to_what_was_written(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old.txt").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with directory_beside(tmp_path / "link") as written:
        (written / "new.txt").write_text("new")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["new.txt"]
    (tmp_path / "a.json").symlink_to(tmp_path / "target" / "new.txt")
    write_text(tmp_path / "a.json", "newer")
    assert (tmp_path / "target" / "new.txt").read_text() == "newer"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "a.json").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"target", "link", "a.json"}
