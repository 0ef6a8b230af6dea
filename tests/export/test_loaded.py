"""What `export` wrote, loaded again by `Exported`."""

import sys
import zipfile

import candle_tf as ct
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.export.flatbuffer import with_names
from candle_tf.export.loaded import Exported
from candle_tf.resolution import resize

pytestmark = pytest.mark.filterwarnings(
    r"ignore:\s*Warning. tf.lite.Interpreter is deprecated:UserWarning"
)
NAMES = ["cat", "Wagen ü", "two words"]
FILES = {"saved_model": "export", "lce": "lce.tflite", "tflite": "plain.tflite"}
FLATBUFFERS = ["lce", "tflite"]


@pytest.fixture(scope="module")
def model():
    """Its classifier is scaled to give different images different probabilities."""
    tf.keras.utils.set_random_seed(0)
    model = ct.StudentModel(ct.students.resnet_e(3, 32, width=0.125, blocks=(1,)))
    images = np.random.default_rng(1).uniform(0, 255, (32, 32, 32, 3)).astype(np.float32)
    logits, classifier = model(images).numpy(), model.student.get_layer("logits")
    classifier.set_weights([classifier.kernel / logits.std(0), -logits.mean(0) / logits.std(0)])
    return model


@pytest.fixture(scope="module")
def exports(model, tmp_path_factory):
    """{format: path}."""
    directory = tmp_path_factory.mktemp("exports")
    for format, name in FILES.items():
        model.export(directory / name, class_names=NAMES, format=format)
    return {format: directory / name for format, name in FILES.items()}


@pytest.fixture(scope="module")
def loaded(exports):
    return {format: Exported(path) for format, path in exports.items()}


@pytest.mark.long
@pytest.mark.parametrize("format", FILES)
@pytest.mark.parametrize("height, width", [(32, 32), (20, 20), (48, 40)])
def test_images_of_any_size_get_the_students_probabilities(height, width, format, loaded, model):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, height, width, 3), dtype=np.uint8)
    expected = tf.nn.softmax(model.student(resize(tf.cast(images, tf.float32), 32))).numpy()
    assert np.ptp(expected, axis=0).max() > 0.05, "all images alike: this test proves nothing"
    probabilities = loaded[format].predict(images)
    assert probabilities.shape == (5, 3) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)


@pytest.mark.parametrize("format", FILES)
def test_a_tensor_of_floats_is_as_good(format, loaded):
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    answers = [loaded[format].predict(x) for x in (images, tf.cast(images, tf.float32))]
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("format", FILES)
def test_class_names(format, loaded):
    assert loaded[format].class_names == NAMES


def test_only_a_binary_file_needs_lce(exports, monkeypatch):
    monkeypatch.setitem(sys.modules, "larq_compute_engine", None)
    for format in ("saved_model", "tflite"):
        assert Exported(exports[format]).predict(np.zeros((1, 8, 8, 3), np.uint8)).shape == (1, 3)
    with pytest.raises(ImportError, match="pip install 'larq-compute-engine<0.17'"):
        Exported(exports["lce"])


@pytest.mark.parametrize("name", ["nothing", "nothing.tflite"])
def test_a_missing_path_is_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / name}: check the path"):
        Exported(tmp_path / name)


def directory(path):
    path.mkdir()
    (path / "notes.txt").touch()


def half_a_saved_model(path):
    path.mkdir()
    (path / "saved_model.pb").write_text("half")


def saved_model_of_another(path):
    module = tf.Module()
    spec = tf.TensorSpec((None, 8, 8, 3), name="images")
    module.run = tf.function(lambda images: {"probabilities": images}, input_signature=[spec])
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.run})


def another_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")


@pytest.mark.parametrize(
    "write",
    [
        directory,
        half_a_saved_model,
        saved_model_of_another,
        another_archive,
        lambda path: path.write_text("I am a note\n" * 100),
        lambda path: path.write_bytes(b""),
    ],
    ids=["directory", "half", "another", "archive", "text", "empty"],
)
def test_other_files_are_refused_by_name(write, tmp_path):
    path = tmp_path / "other.tflite"
    write(path)
    with pytest.raises(ValueError, match=f"{path} is not an export"):
        Exported(path)


def flatbuffer_of(path):
    """The file without the archive of names at its end."""
    whole = path.read_bytes()
    return whole[: whole.index(b"PK\3\4")]


@pytest.mark.parametrize("format", FLATBUFFERS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.read_bytes()[: path.stat().st_size // 2],
        lambda path: path.read_bytes()[:-1],
        flatbuffer_of,
        lambda path: with_names(flatbuffer_of(path)[:1000], "one\ntwo\nthree\n", "{}"),
    ],
    ids=["half", "last byte", "no names", "names only"],
)
def test_a_broken_flatbuffer_is_refused_by_name(damage, format, exports, tmp_path):
    path = tmp_path / "broken.tflite"
    path.write_bytes(damage(exports[format]))
    with pytest.raises(ValueError, match=f"{path} is not an export"):
        Exported(path)


def test_names_that_would_unpack_to_gigabytes_are_refused(exports, tmp_path, monkeypatch):
    bomb = tmp_path / "bomb.tflite"
    bomb.write_bytes(exports["tflite"].read_bytes())
    monkeypatch.setattr("candle_tf.export.loaded.LARGEST_TEXT", 10)  # the names here have 20
    with pytest.raises(ValueError, match=r"its class_names.txt is over 10 bytes"):
        Exported(bomb)
