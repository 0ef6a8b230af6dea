"""Random views of images: drawn for many at once, taken of each."""

import math
from dataclasses import dataclass

import tensorflow as tf
from candle_tf.data.examples import Examples
from candle_tf.utils.names import lookup

uniform = tf.random.stateless_uniform
CROPS = ("pad", "resized")


@dataclass(frozen=True)
class Augmentation:
    """How training images vary.

    Attributes:
        crop: "pad", a crop after padding by an eighth of the side, for small images; "resized", a
            crop of 25 to 100 % of the area and an aspect ratio of 3/4 to 4/3, cut where the image
            ends, for photographs.
        flip: mirror half of the images.
        color_jitter: largest relative change of brightness, contrast and saturation.

    Raises:
        ValueError: for another crop, or a color_jitter that is not from 0 to 1.
    """

    crop: str = "resized"
    flip: bool = True
    color_jitter: float = 0.0

    @property
    def centre_square(self) -> float:
        """The part of an image that is measured, as a share of its shorter side."""
        return 7 / 8 if self.crop == "resized" else 1.0

    def __post_init__(self):
        lookup("crop", self.crop, dict.fromkeys(CROPS))
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"color_jitter is {self.color_jitter} but must be from 0 to 1.")


def draw_views(count: int, key: tf.Tensor, how: Augmentation) -> dict[str, tf.Tensor]:
    """What makes `count` random views, a function of the stateless `key` (2,) alone.

    Returns:
        crop: float32 (count, 4) in [0, 1): where between their bounds area, aspect ratio, top and
            left of the crop lie.
        flip: bool (count,).
        color: float32 (count, 3), factors of brightness, contrast and saturation.
    """
    keys = tf.unstack(tf.random.split(key, num=5))  # 5: the views of earlier versions
    return {
        "crop": uniform([count, 4], keys[0]),
        "flip": uniform([count], keys[1]) < (0.5 if how.flip else 0.0),
        "color": uniform([count, 3], keys[2], 1.0 - how.color_jitter, 1.0 + how.color_jitter),
    }


def take_views(
    places: tf.data.Dataset, examples: Examples, size: int, batch_size: int, how: Augmentation
) -> tf.data.Dataset:
    """Batches of (places, their views float32 (batch, size, size, 3) in [0, 255]).

    Args:
        places: one by one, each a dict of `index`, the image's, what `draw_views` gives, and
            whatever else shall pass.
        examples: whose `index` the places hold.
    """

    def cut(index, crop):
        image = examples.image(index)
        return resized_crop(image, crop, size) if how.crop == "resized" else resized(image, size)

    def read(place):
        return place, cut(place["index"], place["crop"])

    def vary(place, batch):
        margin = size // 8 if how.crop == "pad" else 0
        batch = shift_and_flip(batch, place["crop"], place["flip"], margin)
        return place, jitter(batch, place["color"]) if how.color_jitter else batch

    parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    if how.crop == "pad" and examples.images.dtype == tf.uint8:
        # Pixels of one size: a batch at once.
        return places.batch(batch_size).map(lambda place: vary(*read(place)), **parallel)
    return places.map(read, **parallel).batch(batch_size).map(vary, **parallel)


def resized(images: tf.Tensor, size: int) -> tf.Tensor:
    """(..., height, width, 3) to float32 (..., size, size, 3); their own pixels at that size."""
    same = tf.reduce_all(tf.shape(images)[-3:-1] == size)
    images = tf.cond(
        same,
        lambda: tf.cast(images, tf.float32),
        lambda: tf.image.resize(images, (size, size), antialias=True),
    )
    return tf.ensure_shape(images, (*images.shape[:-3], size, size, 3))


def resized_crop(image: tf.Tensor, crop: tf.Tensor, size: int) -> tf.Tensor:
    """The crop (4,) of an image (height, width, 3), at most the whole, as (size, size, 3)."""
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    area = (0.25 + 0.75 * crop[0]) * tf.reduce_prod(sides)
    ratio = tf.exp(math.log(4 / 3) * (2.0 * crop[1] - 1.0))  # of width to height
    extent = tf.sqrt(area * tf.stack([1.0 / ratio, ratio]))
    extent = tf.clip_by_value(tf.round(extent), 1.0, sides)
    begin = tf.floor(crop[2:] * (sides - extent + 1.0))
    begin, extent = (
        tf.concat([tf.cast(x, tf.int32), [n]], 0) for x, n in ((begin, 0), (extent, 3))
    )
    return resized(tf.ensure_shape(tf.slice(image, begin, extent), (None, None, 3)), size)


def shift_and_flip(images: tf.Tensor, crop: tf.Tensor, flip: tf.Tensor, margin: int) -> tf.Tensor:
    """Images (batch, size, size, 3), padded, cropped to their size, and mirrored where `flip`."""
    places = tf.range(images.shape[1])
    columns = tf.where(flip[:, None], places[::-1], places)
    if margin:
        images = tf.pad(images, [[0, 0], [margin, margin], [margin, margin], [0, 0]])
        begin = tf.cast(crop[:, 2:, None] * (2 * margin + 1), tf.int32)  # top and left
        images = tf.gather(images, begin[:, 0] + places, axis=1, batch_dims=1)
        columns += begin[:, 1]
    return tf.gather(images, columns, axis=2, batch_dims=1)  # far faster than a select


def jitter(images: tf.Tensor, color: tf.Tensor) -> tf.Tensor:
    """Scales brightness, contrast and saturation of (batch, h, w, 3) by `color` (batch, 3)."""
    brightness, contrast, saturation = (color[:, i, None, None, None] for i in range(3))
    images *= brightness
    mean = tf.reduce_mean(images, axis=(1, 2), keepdims=True)
    images = mean + contrast * (images - mean)
    grey = tf.image.rgb_to_grayscale(images)
    return tf.clip_by_value(grey + saturation * (images - grey), 0.0, 255.0)
