import numpy as np
import pytest
import tensorflow as tf
from candle_tf.data.examples import Examples
from candle_tf.data.own_images.pixels import cut, decode
from candle_tf.data.views import (
    Augmentation,
    crop_box,
    draw_views,
    jitter,
    resized,
    shift_and_flip,
    take_views,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
FILES = tf.constant([tf.io.encode_png(image).numpy() for image in PIXELS])


def views_of(images, how, count=60, size=16):
    """`count` views of the first image."""
    places = {"index": np.zeros(count, np.int64), **draw_views(count, tf.constant([0, 1]), how)}
    places = tf.data.Dataset.from_tensor_slices(places)
    examples = Examples(tf.constant(images), np.zeros(len(images), np.int64))
    return next(iter(take_views(places, examples, size, count, how)))


def test_what_is_drawn():
    how = Augmentation("pad", color_jitter=0.4)
    drawn = draw_views(4000, tf.constant([0, 1]), how)
    drawn = {name: values.numpy() for name, values in drawn.items()}
    assert drawn["crop"].shape == (4000, 4) and drawn["color"].shape == (4000, 3)
    np.testing.assert_allclose(drawn["crop"].mean(axis=0), 0.5, atol=0.02)
    assert 0 <= drawn["crop"].min() and drawn["crop"].max() < 1
    assert abs(drawn["flip"].mean() - 0.5) < 0.03
    assert 0.6 <= drawn["color"].min() < 0.61 and 1.39 < drawn["color"].max() <= 1.4


def test_what_is_drawn_follows_the_key_alone():
    how = Augmentation("pad")
    first, again, other = (draw_views(9, tf.constant([0, k]), how) for k in (1, 1, 2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert (first["crop"].numpy() != other["crop"].numpy()).all()


@pytest.mark.parametrize("images", [tf.constant(PIXELS), FILES], ids=["pixels", "files"])
def test_padded_crops_are_slices(images):
    place, views = views_of(images, Augmentation("pad"))
    padded = np.pad(PIXELS[0], [(2, 2), (2, 2), (0, 0)]).astype(np.float32)
    for crop, flip, view in zip(place["crop"].numpy(), place["flip"].numpy(), views.numpy()):
        top, left = np.int32(crop[2:] * 5)
        expected = padded[top : top + 16, left : left + 16]
        np.testing.assert_array_equal(view, expected[:, ::-1] if flip else expected)


def test_flip_and_shift_by_hand():
    images = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1).repeat(3, -1)
    crop = np.zeros((2, 4), np.float32)
    moved = shift_and_flip(tf.constant(images), tf.constant(crop), tf.constant([False, True]), 0)
    np.testing.assert_array_equal(moved[..., 0], [[[0, 1], [2, 3]], [[5, 4], [7, 6]]])
    moved = shift_and_flip(tf.constant(images), tf.constant(crop), tf.constant([False, True]), 1)
    np.testing.assert_array_equal(moved[..., 0], [[[0, 0], [0, 0]], [[0, 0], [4, 0]]])


@pytest.mark.parametrize("draws", [(0, 0.5, 0, 0), (0.9, 0.1, 0.5, 0.99), (1, 1, 0, 0)])
def test_a_resized_crop_is_a_slice(draws):
    image = np.random.default_rng(0).uniform(0, 255, (40, 60, 3)).astype(np.float32)
    area = (0.25 + 0.75 * draws[0]) * 40 * 60
    ratio = (4 / 3) ** (2 * draws[1] - 1)
    height = min(40, round((area / ratio) ** 0.5))
    width = min(60, round((area * ratio) ** 0.5))
    top, left = int(draws[2] * (41 - height)), int(draws[3] * (61 - width))
    expected = tf.image.resize(
        image[top : top + height, left : left + width], (24, 24), antialias=True
    )
    crop = tf.constant(draws, tf.float32)
    got = resized(cut(tf.constant(image), lambda sides: crop_box(sides, crop)), 24)
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_resized_crops_stay_in_range():
    place, views = views_of(FILES, Augmentation("resized", color_jitter=0.4), size=24)
    assert views.shape == (60, 24, 24, 3)
    assert views.numpy().min() >= 0 and views.numpy().max() <= 255
    assert np.ptp(views.numpy().mean(axis=(1, 2, 3))) > 5


def test_jitter_against_numpy():
    images = np.random.default_rng(0).uniform(0, 255, (2, 4, 4, 3)).astype(np.float32)
    color = np.array([[1.1, 0.7, 1.3], [0.6, 1.4, 0.8]], np.float32)
    for image, factors, got in zip(images, color, jitter(tf.constant(images), color).numpy()):
        image = image * factors[0]
        mean = image.mean(axis=(0, 1))
        image = mean + factors[1] * (image - mean)
        grey = image @ np.array([0.2989, 0.587, 0.114], np.float32)
        expected = grey[..., None] + factors[2] * (image - grey[..., None])
        np.testing.assert_allclose(got, np.clip(expected, 0, 255), atol=0.01)
    same = jitter(tf.constant(images), np.ones((2, 3), np.float32))
    np.testing.assert_allclose(same, images, atol=1e-3)


def test_images_of_another_size_are_resized():
    place, views = views_of(tf.constant(PIXELS), Augmentation("pad", flip=False), size=24)
    expected = tf.image.resize(PIXELS[0].astype(np.float32), (24, 24), antialias=True)
    np.testing.assert_allclose(resized(tf.constant(PIXELS[0], tf.float32), 24), expected)
    top, left = np.int32(place["crop"][0, 2:] * 7)
    padded = np.pad(expected, [(3, 3), (3, 3), (0, 0)])
    np.testing.assert_allclose(views[0], padded[top : top + 24, left : left + 24], atol=1e-3)


@pytest.mark.parametrize("shape", [(50, 37, 3), (2, 20, 90, 3), (3, 224, 7, 3), (24, 24, 3)])
def test_images_are_resized_as_tensorflow_does(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = tf.image.resize(images, (24, 24), antialias=True)
    np.testing.assert_allclose(resized(tf.constant(images), 24), expected, rtol=1e-6)


def test_pixels_and_grey_files_decode_to_rgb():
    np.testing.assert_array_equal(decode(FILES[0]), PIXELS[0])
    np.testing.assert_array_equal(decode(tf.constant(PIXELS)), PIXELS)
    grey = decode(tf.io.encode_png(PIXELS[0, ..., :1]))
    np.testing.assert_array_equal(grey, PIXELS[0, ..., :1].repeat(3, axis=-1))
