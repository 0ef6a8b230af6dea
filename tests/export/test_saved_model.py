"""The exported student, served by a process that has neither Larq nor this library."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from candle_tf import StudentModel
from candle_tf.export.saved_model import export_saved_model
from candle_tf.students import resnet_e

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "Wagen ü"]
SERVE = """
import json, sys
import numpy as np
import tensorflow as tf

path, images, outputs = sys.argv[1:]
model = tf.saved_model.load(path)
images = np.load(images)
results = {}
for name in images.files:
    signature = "serving_uint8" if images[name].dtype == np.uint8 else "serving_default"
    answer = model.signatures[signature](images=tf.constant(images[name]))
    results.update({f"{name} {key}": value.numpy() for key, value in answer.items()})
np.savez(outputs, **results)
asset = model.class_names.asset_path.numpy().decode()
print(json.dumps({
    "modules": [m for m in ("larq", "candle_tf", "keras", "tf_keras") if m in sys.modules],
    "signatures": sorted(model.signatures),
    "asset": asset,
    "class_names": tf.io.read_file(asset).numpy().decode(),
}))
"""


@pytest.fixture(scope="module")
def images(cifar10):
    small = cifar10("test[:64]")[0]
    other = tf.image.resize(tf.cast(small[:8], tf.float32), (48, 40)).numpy()
    return {"uint8": small, "float": small.astype(np.float32), "other": other}


def small_student(classes=10):
    tf.keras.utils.set_random_seed(0)
    return resnet_e(classes, 32, width=0.125)


@pytest.fixture(scope="module")
def trained(images):
    """A binary student whose batch norm has left its initial state."""
    model = StudentModel(small_student())
    model.compile(tf.keras.optimizers.Adam(1e-2))
    model.fit(images["float"], np.arange(64) % 10, batch_size=16, epochs=3, verbose=0)
    return model


@pytest.fixture(scope="module")
def served(trained, images, tmp_path_factory):
    """(what the fresh process says of itself, its answers, where it read the export)."""
    directory = tmp_path_factory.mktemp("served")
    trained.export(directory / "written", class_names=NAMES)
    path = directory / "moved"  # an export is a thing of its own: it works elsewhere
    os.rename(directory / "written", path)
    np.savez(directory / "images.npz", **images)
    arguments = [path, directory / "images.npz", directory / "answers.npz"]
    env = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    done = subprocess.run(
        [sys.executable, "-c", SERVE, *arguments],
        cwd=directory,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    return report, np.load(directory / "answers.npz"), path


@pytest.mark.long
def test_it_needs_no_larq_and_no_library(served):
    report, _, _ = served
    assert not {"larq", "candle_tf"} & set(report["modules"])
    assert report["signatures"] == ["serving_default", "serving_uint8"]


@pytest.mark.long
@pytest.mark.parametrize("name", ["float", "uint8", "other"])
def test_probabilities_are_the_students(name, served, trained, images):
    _, answers, _ = served
    pixels = images[name].astype(np.float32)
    if pixels.shape[1:3] != (32, 32):
        pixels = tf.image.resize(pixels, (32, 32), antialias=True)
    expected = tf.nn.softmax(trained.student(pixels)).numpy()
    assert np.ptp(expected, axis=0).max() > 0.05, "all images alike: this test proves nothing"
    probabilities, classes = answers[f"{name} probabilities"], answers[f"{name} classes"]
    assert probabilities.dtype == np.float32 and classes.dtype == np.int64
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_array_equal(classes, probabilities.argmax(-1))


@pytest.mark.long
def test_bytes_and_floats_are_served_alike(served):
    _, answers, _ = served
    for key in ("probabilities", "classes"):
        np.testing.assert_array_equal(answers[f"uint8 {key}"], answers[f"float {key}"])


@pytest.mark.long
def test_class_names_are_an_asset(served):
    report, _, path = served
    assert report["asset"] == str(path / "assets" / "class_names.txt")
    assert report["class_names"].splitlines() == NAMES


@pytest.mark.long
@pytest.mark.parametrize(
    "name, dtype", [("serving_default", "float32"), ("serving_uint8", "uint8")]
)
def test_signatures(name, dtype, served):
    signature = tf.saved_model.load(str(served[2])).signatures[name]
    positional, inputs = signature.structured_input_signature
    assert positional == () and list(inputs) == ["images"]
    assert inputs["images"].shape.as_list() == [None, None, None, 3]
    assert inputs["images"].dtype == dtype
    outputs = signature.structured_outputs
    assert {key: value.dtype.name for key, value in outputs.items()} == {
        "classes": "int64",
        "probabilities": "float32",
    }


def names_at(path):
    return (path / "assets" / "class_names.txt").read_text().split()


@pytest.fixture
def exported(tmp_path):
    """An earlier export of three classes."""
    export_saved_model(small_student(3), tmp_path / "export", 32, ["old", "older", "oldest"])
    (tmp_path / "export" / "assets" / "stale").touch()
    return tmp_path / "export"


@pytest.mark.long
def test_the_names_are_numbers_by_default_and_a_new_export_replaces_the_old(exported):
    export_saved_model(small_student(2), exported, 32)
    assert names_at(exported) == ["0", "1"]
    assert not (exported / "assets" / "stale").exists()
    assert os.listdir(exported.parent) == ["export"]
    answer = tf.saved_model.load(str(exported)).signatures["serving_default"](
        images=tf.zeros((1, 8, 8, 3))
    )
    assert answer["probabilities"].shape == (1, 2)


def fail(*_, **__):
    raise OSError("No space left on device")


def half_written(module, path, **_):
    with open(os.path.join(path, "saved_model.pb"), "w") as file:
        file.write("half")
    fail()


@pytest.mark.long
@pytest.mark.parametrize(
    "place, broken, names, error",
    [
        (None, None, ["one", "two"], "class_names has 2 names but the student has 3 classes"),
        (None, None, ["one", "two", "a\n"], r"class name 'a\\n' is not one line"),
        ("tensorflow.saved_model.save", half_written, None, "No space left"),
        ("os.makedirs", fail, None, "No space left"),
        ("os.replace", fail, None, "No space left"),
    ],
    ids=["names", "name of two lines", "saving", "unwritable parent", "renaming"],
)
def test_a_failure_leaves_the_old_export(place, broken, names, error, exported, monkeypatch):
    if place:
        monkeypatch.setattr(place, broken)
    with pytest.raises((ValueError, OSError), match=error):
        export_saved_model(small_student(3), exported, 32, names)
    monkeypatch.undo()
    assert os.listdir(exported.parent) == ["export"]
    assert names_at(exported) == ["old", "older", "oldest"]
    assert (exported / "assets" / "stale").exists()
    assert sorted(tf.saved_model.load(str(exported)).signatures)


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        export_saved_model(small_student(3), tmp_path / "file" / "export", 32)
    assert os.listdir(tmp_path) == ["file"]


def test_the_rest_of_a_killed_export_is_no_obstacle(tmp_path):
    (tmp_path / f"export.{os.getpid()}.tmp").mkdir()
    export_saved_model(small_student(3), tmp_path / "export", 32)
    assert os.listdir(tmp_path) == ["export"]


@pytest.mark.parametrize("other", ["file", "directory", "beside an export", "its name"])
def test_other_files_are_never_replaced(other, tmp_path):
    path = tmp_path / "results"
    if other == "beside an export":
        export_saved_model(small_student(3), path, 32)
    name = "assets/note.txt" if other == "its name" else "note.txt"
    note = path if other == "file" else path / name
    note.parent.mkdir(exist_ok=True, parents=True)
    note.write_text("keep me")
    with pytest.raises(OSError, match="not an earlier SavedModel"):
        export_saved_model(small_student(3), path, 32)
    assert note.read_text() == "keep me"
