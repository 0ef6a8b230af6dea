import io
import sys

import pytest
import tensorflow as tf
from candle_tf.utils.progress import counted, duration, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_short_work_writes_nothing(capsys):
    assert list(progress([1, 2], "Reading")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_data_set_may_not_know_its_length():
    some = tf.data.Dataset.range(5).filter(lambda n: n > 2)
    assert [int(n) for n in progress(some, "Reading")] == [3, 4]


@pytest.fixture
def all_is_long(monkeypatch):
    monkeypatch.setattr("candle_tf.utils.progress.DELAY", 0.0)


def test_long_work_writes_two_lines_in_a_file(capsys, all_is_long):
    with counted("Reading", 1200, "images") as add:
        for _ in range(12):
            add(100)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "Reading: 100 of 1,200 images so far"
    assert last.startswith("Reading: 1,200 images in ")


def test_a_bar_on_a_terminal_disappears(monkeypatch, all_is_long):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with counted("Reading", 3, "images") as add:
        add(3)
    *shown, cleared, _ = terminal.getvalue().split("\r")
    assert any("Reading:" in text for text in shown) and not cleared.strip()
    assert "\n" not in terminal.getvalue()


def test_silence(capsys, all_is_long):
    with counted("Reading", show=False) as add:
        add(3)
    assert capsys.readouterr() == ("", "")


def test_an_interrupted_work_is_not_called_done(capsys, all_is_long):
    with pytest.raises(OSError, match="full"), counted("Reading") as add:
        add(1)
        raise OSError("full")
    assert capsys.readouterr().err == "Reading: 1 items so far\n"


def test_durations():
    assert duration(119.4) == "119 s" and duration(3600) == "60 minutes"
