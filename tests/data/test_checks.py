"""What images and labels must be, wherever they enter."""

import numpy as np
import pytest
import tensorflow as tf
from candle_tf.data.checks import check_labels, check_pixels

RNG = np.random.default_rng(0)
PHOTOS = RNG.integers(0, 256, (4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    "images",
    [
        PHOTOS,
        PHOTOS.astype(np.float32),
        PHOTOS.astype(np.float64),
        PHOTOS.astype(np.int32),
        np.float16(PHOTOS),
        tf.constant(PHOTOS),
        tf.cast(PHOTOS, tf.bfloat16),
        PHOTOS + RNG.normal(0, 5, PHOTOS.shape),  # beyond the ends a little
        np.zeros((2, 8, 8, 3), np.float32),  # black
        np.full((2, 8, 8, 3), 3.0),  # dark
        np.uint8(PHOTOS > 250),
        np.where(np.arange(192).reshape(8, 8, 3) == 5, 1.0, 0.0)[None],  # a night
        np.concatenate([PHOTOS / 255, PHOTOS]),  # judged together
        np.zeros((0, 8, 8, 3)),
    ],
)
def test_images_that_are_taken(images):
    check_pixels(images, "fit")


MEAN = np.array([123.7, 116.3, 103.5])


@pytest.mark.parametrize(
    "images, message",
    [
        (PHOTOS / 255, r"fit: images are in \[0, 255\]; these end at 1, as if divided by 255"),
        (np.float32(PHOTOS) / 255, r"these end at 1, "),
        (PHOTOS / 510, r"these end at 0.5,"),
        (PHOTOS / 127.5 - 1, r"images are in \[0, 255\]; these go from -1 to 1, as if normalised"),
        ((PHOTOS - MEAN) / 58, r"these go from -2.133 to 2.\d+, as if normalised"),
        (PHOTOS - MEAN, "these go from -123.7 to 151.5, as if normalised"),
        (PHOTOS - 128.0, "these go from -128 to 127, as if normalised"),
        (np.uint16(PHOTOS) * 257, "these end at 65535"),
        (PHOTOS * 2.0, "these end at 510"),
        (np.where(PHOTOS == PHOTOS[2, 1, 1, 1], np.nan, PHOTOS), "image . of the stream holds NaN"),
        (np.where(PHOTOS > 254, np.inf, PHOTOS), "holds NaN or Inf"),
        (PHOTOS > 99, r"these are bool: decode or cast them"),
        (PHOTOS.astype(str), "decode or cast them"),
        (PHOTOS[..., :1], r"the shape \(4, 8, 8, 1\): gray images need three channels"),
        (PHOTOS[..., 0], r"the shape \(4, 8, 8\): gray images need"),
        (np.moveaxis(PHOTOS, -1, 1), "channels come first here, so transpose them"),
        (PHOTOS[0], "a single image needs a batch around it"),
        (np.concatenate([PHOTOS, PHOTOS[..., :1]], -1), r"fourth channel out: images\[..., :3\]"),
        (PHOTOS.reshape(4, -1), r"the shape \(4, 192\): reshape them"),
    ],
)
def test_images_that_are_refused(images, message):
    with pytest.raises(ValueError, match=message) as error:
        check_pixels(images, "fit")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "labels", [[0, 2, 1], [[0], [2]], np.array([0.0, 2.0]), tf.constant([1]), np.uint8([0, 2]), []]
)
def test_labels_that_are_taken(labels):
    check_labels(labels, 3, "fit")


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 1, -1, 2], "fit: example 2 has label -1, but labels go from 0 to 2 .1 such"),
        ([0, 1, 3, 2], "example 2 has label 3, but labels go from 0 to 2"),
        ([1, 2, 3], "labels go from 0 to 2 .1 such examples.: they begin at 1, so subtract 1"),
        (np.eye(3), r"labels are class numbers, one per image, not one-hot: pass labels.argmax"),
        (np.zeros((2, 5)), r"not of the shape \(2, 5\)"),
        ([0.5, 1.0], "whole numbers, but example 0 has label 0.5"),
        ([np.nan], "example 0 has label nan"),
        (["cat"], "class numbers, these are <U3: number the classes from 0"),
    ],
)
def test_labels_that_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels, 3, "fit")


def test_examples_are_named_by_their_place_in_the_stream():
    with pytest.raises(ValueError, match="example 12 has label 9"):
        check_labels(np.array([0, 1, 9]), 3, "the stream", first=10)
