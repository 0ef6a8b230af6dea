"""Exported students on people's files."""

import csv
import json
import os
import tracemalloc

import candle_tf as ct
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.export.loaded import Exported
from candle_tf.export.prediction import check_output, predict_files
from PIL import Image

NAMES = ["cat", "dog", "emu, large"]


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """{format: an export that was measured on the central 7/8}."""
    tf.keras.utils.set_random_seed(0)
    images = tf.keras.Input((16, 16, 3))
    x = tf.keras.layers.Conv2D(8, 3, 2)(tf.keras.layers.Rescaling(1 / 127.5, -1)(images))
    x = tf.keras.layers.GlobalAveragePooling2D(name="features")(tf.keras.layers.ReLU()(x))
    model = ct.StudentModel(tf.keras.Model(images, tf.keras.layers.Dense(3)(x)))
    directory = tmp_path_factory.mktemp("exports")
    paths = {"saved_model": directory / "saved", "tflite": directory / "plain.tflite"}
    for format, path in paths.items():
        model.export(path, class_names=NAMES, format=format, centre_square=7 / 8)
    return {format: Exported(path) for format, path in paths.items()}


@pytest.fixture
def photos(tmp_path):
    """A folder with three images, one of them broken, and a note."""
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.jpg", "deep/c.webp"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    (tmp_path / "photos" / "b.jpg").write_bytes(b"broken")
    (tmp_path / "photos" / "note.txt").write_text("a note")
    return tmp_path / "photos"


@pytest.mark.long
@pytest.mark.parametrize("format", ["saved_model", "tflite"])
def test_photographs_are_cut_as_evaluation_cuts_them(format, exports, photos):
    model = exports[format]
    assert model.centre_square == 7 / 8
    path = str(photos / "a.jpg")
    examples = ct.data.Examples(tf.constant([path]), np.array([0]), on_disk=True)
    ((images, _),) = ct.data.evaluation_batches(examples, 16, 1)
    expected = model.predict(images)[0]
    lines = []
    assert predict_files(model, [path], top=1, say=lines.append) == (1, 0)
    best = expected.argmax()
    assert lines == [f"{path}: {NAMES[best]} {100 * expected[best]:.1f} %"]
    whole = []
    predict_files(model, [path], share=1.0, say=whole.append)
    assert whole != lines


@pytest.mark.long
def test_a_bad_file_is_named_and_the_others_go_on(exports, photos):
    lines = []
    model = exports["saved_model"]
    names = [str(photos), str(photos / "*.jpg"), str(photos / "nowhere.png")]
    assert predict_files(model, names, say=lines.append) == (6, 3)
    assert lines[0] == f"{photos}: 1 files are left out: not images"
    assert lines[1].startswith(f"{photos}/a.jpg: ") and "b.jpg cannot be decoded" in lines[2]
    assert lines[3].startswith(f"{photos}/deep/c.webp: ")
    assert "nowhere.png does not exist: check the path" in lines[-1]


def test_a_folder_without_an_image_is_named(exports, tmp_path):
    lines = []
    assert predict_files(exports["saved_model"], [str(tmp_path)], say=lines.append) == (1, 1)
    assert lines == [f"{tmp_path} is a folder without an image: check the path."]


def test_csv_and_json(exports, photos, tmp_path):
    model = exports["saved_model"]
    for name in ("out/found.csv", "found.json"):
        predict_files(model, [str(photos)], str(tmp_path / name), top=5, say=lambda line: None)
    with open(tmp_path / "out" / "found.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    entries = json.loads((tmp_path / "found.json").read_text())
    assert [row["path"] for row in rows] == [entry["path"] for entry in entries]
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert "cannot be decoded" in entries[1]["error"] and entries[1]["classes"] == []
    for row, entry in zip(rows[::2], entries[::2]):
        assert [c["class"] for c in entry["classes"]] == [
            row["class"],
            row["class_2"],
            row["class_3"],
        ]
        assert sum(c["probability"] for c in entry["classes"]) == pytest.approx(1.0, abs=1e-5)
        assert float(row["probability"]) == pytest.approx(
            entry["classes"][0]["probability"], abs=1e-6
        )
    predict_files(model, [], str(tmp_path / "none.json"))
    assert json.loads((tmp_path / "none.json").read_text()) == []


@pytest.mark.long
@pytest.mark.parametrize("name", ["classes.csv", "classes.json"])
def test_ctrl_c_keeps_the_predictions_so_far(exports, photos, tmp_path, name):
    lines = []

    def say(line):
        lines.append(line)
        if "c.webp" in line:
            raise KeyboardInterrupt

    output = tmp_path / name
    with pytest.raises(KeyboardInterrupt):
        predict_files(exports["tflite"], [photos], str(output), say=say)
    assert lines[-1] == f"Stopped after 2 files, which {output} holds."
    with open(output) as file:
        rows = json.load(file) if name.endswith("json") else list(csv.DictReader(file))
    assert [os.path.basename(row["path"]) for row in rows] == ["a.jpg", "b.jpg"]


def test_names_of_any_bytes_are_written(exports, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    predict_files(exports["saved_model"], [name], str(tmp_path / "a.csv"), say=lambda line: None)
    with open(tmp_path / "a.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert next(csv.DictReader(file))["path"] == name
    with pytest.raises(ValueError, match="names is the text 'a.jpg': give a list"):
        predict_files(exports["saved_model"], "a.jpg")


def test_other_outputs_are_refused_before_any_work():
    with pytest.raises(ValueError, match="found.txt must end in .csv or .json"):
        check_output("found.txt")
    check_output(None)


def test_memory_stays_flat(exports, tmp_path):
    """One image of 12 MB is held at a time, however many there are."""
    for i in range(8):
        Image.new("RGB", (2000, 2000), (i, 0, 99)).save(tmp_path / f"{i}.png")
    model = exports["saved_model"]

    def peak(names):
        tracemalloc.start()
        predict_files(model, names, say=lambda line: None)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    one = peak([str(tmp_path / "0.png")])
    assert peak([str(tmp_path)]) < 1.5 * one + 1e6


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01, float("nan")])
def test_a_square_that_is_no_part_of_the_image(share, exports, photos, tmp_path):
    with pytest.raises(ValueError, match="centre_square is .* above 0 and at most 1"):
        predict_files(exports["tflite"], [photos], share=share)
    student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
    for format, name in {"saved_model": "saved", "tflite": "plain.tflite", "c": "c"}.items():
        with pytest.raises(ValueError, match="centre_square is .* above 0 and at most 1"):
            model = ct.StudentModel(student)
            model.export(tmp_path / "new" / name, format=format, centre_square=share)
    assert not (tmp_path / "new").exists()


def test_a_directory_is_no_output(exports, photos, tmp_path):
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(IsADirectoryError, match="out.csv is a directory: name a file"):
        predict_files(exports["tflite"], [photos], str(tmp_path / "out.csv"))
