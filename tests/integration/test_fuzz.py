"""Whatever stands in a file of ours: it is read, or refused in one sentence."""

import json
import os
import shutil

import hypothesis.strategies as st
import numpy as np
import pytest
from absl import flags
from candle_tf.data.own_images import images
from candle_tf.data.own_images.files import load, read_csv, read_list
from candle_tf.runs.run import Run
from candle_tf.utils import files, run_files
from candle_tf.utils.names import parse_spec
from hypothesis import HealthCheck, example, given, settings

often = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LINE = st.one_of(
    st.text(max_size=30),
    st.builds("{} {}".format, st.text(max_size=12), st.integers(-3, 12)),
    st.sampled_from(["a.jpg 0", "a.jpg 0", "../b.jpg 1", "/c.png 1", "a b.jpg 1", '"x,1', "\0 0"]),
)
TEXT = st.lists(LINE, max_size=6).map("\n".join)
CONTENT = st.one_of(st.binary(max_size=80), TEXT.map(lambda t: t.encode("utf-8", "surrogatepass")))
WORD = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=3),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())
FLAGS = st.sampled_from(["--seed=1", "--epochs=x", "--=", "--flagfile=/dev/null", "--nosuch"])


def refused_in_a_sentence(read, *errors):
    """Calls `read`; what it raises is one of ours, with a message."""
    try:
        return read()
    except (ValueError, OSError, *errors) as error:
        assert str(error).strip(), repr(error)


@pytest.mark.long
@often
@given(train=CONTENT, test=CONTENT)
@example(train=b"a.jpg 0\r\n\r\nb.jpg 1", test=b"\xef\xbb\xbfa.jpg 0")
@example(train=b"a.jpg\x000 1", test=b"")
def test_lists(train, test, tmp_path):
    paths = [tmp_path / "train.txt", tmp_path / "test.txt"]
    for path, content in zip(paths, (train, test)):
        path.write_bytes(content)

    def read():
        return load(
            read_list(*map(str, paths), None),
            cache=tmp_path / "cache",
        )

    refused_in_a_sentence(read)


@often
@given(
    header=st.sampled_from(["path,label", "path,label,split", "label,path", "x", ""]), rest=CONTENT
)
@example(header="path,label,split", rest=b"a.jpg,cat,train\nb.jpg,cat\n,,\n")
@example(header="path,label", rest=b'a.jpg,"' + b"x" * 200_000 + b'"')  # beyond csv's own limit
@example(header="path,label", rest=b"a.jpg\r,cat")
@example(header="x" * 200_000, rest=b"")
def test_csv(header, rest, tmp_path):
    path = tmp_path / "images.csv"
    path.write_bytes(header.encode() + b"\n" + rest)

    def read():
        return load(
            read_csv(str(path), None, None),
            cache=tmp_path / "cache",
        )

    refused_in_a_sentence(read)


@often
@given(content=CONTENT | JSON)
@example(content=b"[" * 100_000)
@example(content=b"[]")
@example(content=b'{"updates": ')
def test_metrics(content, tmp_path):
    (tmp_path / "metrics.json").write_bytes(content)
    found = refused_in_a_sentence(lambda: run_files.read_results(str(tmp_path)))
    assert found is None or isinstance(found, dict)


@often
@given(note=CONTENT | JSON, rows=st.binary(max_size=100))
@example(note=b'{"teacher": "x"}', rows=b"")
def test_store_headers(note, rows, tmp_path):
    (tmp_path / files.NOTE).write_bytes(note)
    (tmp_path / files.ROWS).write_bytes(rows)

    def read():
        records = files.Rows(tmp_path, np.dtype([("x", np.float16, 3)]), {"teacher": "x"})
        records.verify()
        return records.read()

    refused_in_a_sentence(read)


@often
@given(content=CONTENT | JSON)
@example(content=b"PK\3\4")
def test_what_was_found_out_about_images(content, tmp_path):
    """A cache that is damaged is made again."""
    cache, paths = tmp_path / "cache", [str(tmp_path / "missing.jpg")]
    shutil.rmtree(cache, ignore_errors=True)  # of the example before
    assert images.look_at_files(paths, cache).problems == ["does not exist"]
    for path in cache.iterdir():
        path.write_bytes(content)
    assert images.look_at_files(paths, cache).problems == ["does not exist"]


@often
@given(lines=st.lists(st.text(max_size=20) | FLAGS))
def test_flag_files(lines, tmp_path):
    from candle_tf.cli import run_flags

    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    (tmp_path / "flags.cfg").write_bytes(content)
    found = refused_in_a_sentence(lambda: run_flags.run_of(str(tmp_path)), flags.Error)
    assert found is None or isinstance(found, Run)


@often
@given(spec=st.text(max_size=40) | st.builds("x:a={}".format, st.text(max_size=30)))
@example(spec="x:a=" + "(" * 500)
@example(spec="x:a=9**9**9**9")
@example(spec="x:a=__import__('os')")
def test_specs(spec):
    refused_in_a_sentence(lambda: parse_spec(spec))


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "metrics.json"
    with open(path, "wb") as file:
        os.truncate(file.fileno(), files.LARGEST_TEXT + 1)
    with pytest.raises(
        ValueError, match=r"metrics.json is damaged \(.* is over 67,108,864 bytes\)"
    ):
        run_files.read_results(str(tmp_path))
