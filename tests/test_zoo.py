"""Each trained student of zoo/ is what its card says, and damaged files get a sentence."""

import pathlib
import shutil

import add_to_zoo
import candle_tf as ct
import numpy as np
import pytest
import tensorflow as tf
from candle_tf import zoo
from candle_tf.resolution import resize
from candle_tf.students.weights import read_weights, write_weights
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = ct.zoo.list()


def photographs(folder: pathlib.Path, count: int, size: int) -> np.ndarray:
    lines = (folder / "test.txt").read_text().splitlines()
    paths = [folder / line.rpartition(" ")[0] for line in lines[:: len(lines) // count][:count]]
    images = [np.asarray(Image.open(path).convert("RGB"), np.float32) for path in paths]
    return np.stack([resize(image[None], size).numpy()[0] for image in images])


@pytest.fixture(scope="module")
def digits():
    """The test images of the digits' student and their labels."""
    data = ct.data.load("digits", imbalance_ratio=20)
    batches = data.evaluation_batches(batch_size=400)
    return next(iter(batches))


def copied(folder, monkeypatch, name="digits_lt") -> pathlib.Path:
    """Copies an entry into a folder that takes the zoo's place."""
    for path in (ROOT / "zoo").glob(f"{name}.*"):
        shutil.copy(path, folder)
    monkeypatch.setattr(zoo, "PLACES", (folder,))
    return folder / name


def test_the_names_and_a_wrong_one():
    assert {"digits_lt", "cifar10_lt_100", "flowers102_lt", "clothing", "caltech101"} <= set(NAMES)
    for ask in (ct.zoo.load, ct.zoo.card):
        with pytest.raises(ValueError, match="zoo 'flowers102': did you mean 'flowers102_lt'"):
            ask("flowers102")


@pytest.mark.parametrize("name", NAMES)
def test_a_student_equals_its_flatbuffer_on_photographs(name, shared_data):
    student, card = ct.zoo.load(name), ct.zoo.card(name)
    images = photographs(shared_data / "images" / "clothing", 12, card["image_size"])
    exported = ct.export.Exported(card["file"])
    assert exported.class_names == card["class_names"]
    assert exported.centre_square == card["centre_square"]
    expected = tf.nn.softmax(student(images)).numpy()
    difference = np.abs(exported.predict(images) - expected).max(axis=1)
    # Rounding may turn the sign of an activation, in few images and with little effect.
    assert np.mean(difference < 1e-3) > 0.8 and difference.max() < 0.05
    assert expected.std(axis=0).max() > 0.05  # the images get different answers


def test_the_digits_are_as_accurate_as_the_card_says(digits):
    images, labels = digits
    student, card = ct.zoo.load("digits_lt"), ct.zoo.card("digits_lt")
    right = np.mean(ct.StudentModel(student)(images).numpy().argmax(-1) == labels)
    found = card["accuracy"]["overall"]
    assert found["low"] < found["value"] < found["high"]
    assert right == pytest.approx(found["value"], abs=0.01)  # processors round differently


@pytest.mark.long
def test_a_student_trains_further_and_is_exported(digits, tmp_path):
    student, card = ct.zoo.load("digits_lt"), ct.zoo.card("digits_lt")
    model = ct.StudentModel(student)
    before = student.get_weights()
    model.compile(tf.keras.optimizers.Adam(1e-3))
    images, labels = (each[:64] for each in digits)
    first, *_, last = model.fit(images, labels, 16, epochs=4, verbose=0).history["loss"]
    assert last < first
    assert any((a != b).any() for a, b in zip(before, student.get_weights()))
    model.export(str(tmp_path / "digits.tflite"), format="tflite", class_names=card["class_names"])
    exported = ct.export.Exported(tmp_path / "digits.tflite")
    expected = tf.nn.softmax(model(images[:4])).numpy()
    np.testing.assert_allclose(exported.predict(images[:4].numpy()), expected, atol=1e-3)


@pytest.mark.parametrize(
    "spec, packed",
    [
        ("resnet_e:width=0.25", True),
        ("resnet_e:width=0.25,kernel_quantizer='magnitude_aware_sign'", False),
        pytest.param("reactnet_a:width=0.125", True, marks=pytest.mark.long),
    ],
)
def test_weights_are_restored_exactly(spec, packed, tmp_path):
    """Kernels of other quantizers than the sign stay as they are."""
    sizes = {"num_classes": 3, "image_size": 32}
    student, again = (ct.students.create(spec, **sizes) for _ in range(2))
    random = np.random.default_rng(0)
    student.set_weights(
        [random.uniform(0.1, 1, w.shape) - 0.4 * (len(w.shape) > 1) for w in student.weights]
    )
    file = tmp_path / "student.npz"
    write_weights(student, file)
    again.set_weights(read_weights(file, [w.shape for w in again.weights]))
    images = random.uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(student(images), again(images))
    assert (file.stat().st_size < student.count_params()) == packed


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def changed(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def of_another_student(path):
    write_weights(ct.students.create("resnet_e:width=0.25", num_classes=10, image_size=24), path)


def of_another_depth(path):
    spec = "resnet_e:width=0.25,blocks=(1,)"
    write_weights(ct.students.create(spec, num_classes=10, image_size=24), path)


@pytest.mark.parametrize(
    "damage", [cut, changed, of_another_student, of_another_depth, pathlib.Path.unlink]
)
def test_damaged_weights_get_a_sentence(damage, tmp_path, monkeypatch):
    entry = copied(tmp_path, monkeypatch)
    damage(entry.with_suffix(".npz"))
    with pytest.raises(
        ValueError, match=r"digits_lt\.npz is damaged \(.*: install candle_tf again"
    ):
        ct.zoo.load("digits_lt")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"student": "resnet_f", "class_names": [1]}'])
def test_a_damaged_card_gets_a_sentence(text, tmp_path, monkeypatch):
    copied(tmp_path, monkeypatch).with_suffix(".json").write_text(text)
    with pytest.raises(
        ValueError, match=r"digits_lt\.json is damaged \(.*: install candle_tf again"
    ):
        ct.zoo.load("digits_lt")


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_a_card_is_made_from_its_data(name):
    card = ct.zoo.card(name)
    page = (ROOT / "zoo" / f"{name}.md").read_text(encoding="utf-8")
    assert page == add_to_zoo.page(card)
    for head in ("## Data", "Licence of the images", "confusions", "must not be used for"):
        assert head in page
    assert all(len(card["accuracy"][group]) == 3 for group in ("overall", "head", "tail"))


def test_the_table_of_the_docs_is_made_from_the_cards():
    rows = add_to_zoo.table([ct.zoo.card(name) for name in NAMES])
    assert rows in (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
