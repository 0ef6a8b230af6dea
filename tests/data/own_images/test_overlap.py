import numpy as np
import pytest
import tensorflow as tf
from candle_tf import data
from candle_tf.data.own_images.overlap import overlap_of
from PIL import Image

RNG = np.random.default_rng(0)


def photo(seed):
    """A smooth picture, as photographs are."""
    rough = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(rough).resize((96, 80), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Five training images of each of two classes, and two test images."""
    for i in range(10):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(i).save(path)
    for i in (20, 21):
        path = tmp_path / "test" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(i).save(path)
    return tmp_path


def overlap(folder):
    return {k: n for k, n in data.load(f"folder:{folder}").overlap.items() if n}


def test_sets_without_overlap(folder):
    loaded = data.load(f"folder:{folder}")
    assert not any(loaded.overlap.values()) and loaded.notes == ()


def test_equal_pixels_in_another_file(folder):
    photo(0).save(folder / "test" / "a" / "x.bmp")
    assert overlap(folder) == {"test_images_in_train": 1}


@pytest.mark.parametrize("name, how", [("x.jpg", {"quality": 60}), ("x.webp", {}), ("x.png", {})])
def test_an_image_that_was_saved_again(name, how, folder):
    again = photo(0).resize((48, 40)) if name == "x.png" else photo(0)
    again.save(folder / "test" / "a" / name, **how)
    loaded = data.load(f"folder:{folder}")
    assert loaded.overlap["test_images_nearly_in_train"] == 1
    assert f"nearly equal a training image (a/{name}, ...)" in loaded.notes[0]


def test_one_image_in_two_classes_and_twice_in_one(folder):
    photo(0).save(folder / "train" / "b" / "x.png")
    photo(1).save(folder / "train" / "b" / "y.png")
    assert overlap(folder) == {"train_images_in_two_classes": 1, "train_images_twice": 1}


def test_plain_images_are_not_nearly_equal(folder):
    for split, color in (("train", 40), ("test", 41)):
        Image.new("RGB", (8, 8), (color,) * 3).save(folder / split / "a" / "plain.png")
    assert overlap(folder) == {}


def test_images_in_memory():
    pixels = RNG.integers(0, 256, (6, 4, 4, 3), np.uint8)
    train = data.Examples(tf.constant(pixels[[0, 1, 2, 0]]), np.array([0, 1, 1, 1]))
    test = data.Examples(tf.constant(pixels[[2, 3]]), np.array([0, 1]))
    found = overlap_of(train, {"test": test})
    assert found.counts == {
        "train_images_in_two_classes": 1,
        "train_images_twice": 0,
        "test_images_in_train": 1,
    }
    assert len(found.notes) == 2


def test_classes_without_an_image_to_measure_on(folder, capsys):
    for path in (folder / "test" / "b").iterdir():
        path.unlink()
    (folder / "test" / "b").rmdir()
    data.load(f"folder:{folder}")
    assert "1 of 2 classes have no test image (b)" in capsys.readouterr().out
