import os
import types

import numpy as np
import pytest
import tensorflow as tf
from candle_tf.data import Augmentation, Examples, training_batches
from candle_tf.data.pixel_file import PIXELS, SHAPES
from candle_tf.utils import files


@pytest.fixture
def examples():
    """Twelve images of different sizes, as PNG."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (10 + i, 30 - i, 3), np.uint8) for i in range(12)]
    encoded = tf.stack([tf.io.encode_png(image) for image in images])
    return Examples(encoded, np.arange(12) % 3)


def test_batches_are_those_of_the_files(examples, tmp_path):
    cached = examples.cached(tmp_path)
    for taken in (np.arange(12), np.array([7, 2, 2, 11])):
        both = [
            next(iter(training_batches(each.take(taken), 8, 6, augmentation=Augmentation("pad"))))
            for each in (examples, cached)
        ]
        np.testing.assert_array_equal(both[0][0], both[1][0])
        np.testing.assert_array_equal(both[0][1], both[1][1])
    assert cached.fingerprint() == examples.fingerprint()


def test_images_are_decoded_once(examples, tmp_path, capsys):
    first = examples.cached(tmp_path)
    assert "Decoding 12 images" in capsys.readouterr().out
    again = examples.cached(tmp_path)
    assert not capsys.readouterr().out
    np.testing.assert_array_equal(first.image(3), again.image(3))
    other = examples.take(np.arange(5)).cached(tmp_path)  # a directory is of many sets
    np.testing.assert_array_equal(other.image(3), examples.image(3))
    assert len(list(tmp_path.iterdir())) == 2


def test_pixels_in_memory_stay_there(tmp_path):
    held = Examples(tf.zeros((3, 8, 8, 3), tf.uint8), np.arange(3))
    assert held.cached(tmp_path) is held and not list(tmp_path.iterdir())


def test_what_was_interrupted_is_made_anew(examples, tmp_path):
    examples.cached(tmp_path)
    (where,) = tmp_path.iterdir()
    (where / SHAPES).unlink()
    (where / PIXELS).write_bytes(b"half")
    np.testing.assert_array_equal(examples.cached(tmp_path).image(3), examples.image(3))


@pytest.mark.parametrize("of, content", [(PIXELS, None), (SHAPES, b""), (SHAPES, b"no array")])
def test_a_damaged_file_is_named(of, content, examples, tmp_path):
    examples.cached(tmp_path)
    (where,) = tmp_path.iterdir()
    if of == PIXELS:
        os.truncate(where / PIXELS, 100)
    else:
        (where / SHAPES).write_bytes(content)
    with pytest.raises(ValueError, match=r"pixels\.bin is damaged: delete .* writes it again"):
        examples.cached(tmp_path)


def test_room_is_checked_first(examples, tmp_path, monkeypatch):
    full = types.SimpleNamespace(free=0)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: full)
    with pytest.raises(OSError, match="has no room for 0.0 MB"):
        examples.cached(tmp_path)
    assert not list(tmp_path.glob(f"*/{PIXELS}"))
