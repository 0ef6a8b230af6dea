"""Random views of images: the draw for a whole batch, then the crop and the colours per image."""

import math
from dataclasses import dataclass

import tensorflow as tf
from candle_tf.data.examples import Examples
from candle_tf.utils.names import lookup

uniform = tf.random.stateless_uniform
CROPS = ("pad", "resized")
GRAY = 0.2989, 0.587, 0.114  # weights w of red, green and blue, as in `tf.image`


@dataclass(frozen=True)
class Augmentation:
    """The random changes of training images.

    Attributes:
        crop: "pad" for small images: pads by an eighth of the side, then crops. "resized" for
            photographs: crops 25 to 100 % of the area at an aspect ratio of 3/4 to 4/3.
        flip: Whether half of the images are mirrored.
        color_jitter: Largest relative change of brightness, contrast and saturation, 0 to 1.

    Raises:
        ValueError: For another crop, or a color_jitter outside 0 to 1.

    Example:
        >>> ct.data.Augmentation("pad", flip=False)
        Augmentation(crop='pad', flip=False, color_jitter=0.0)
    """

    crop: str = "resized"
    flip: bool = True
    color_jitter: float = 0.0

    @property
    def centre_square(self) -> float:
        """Side of the square that the evaluation sees, as a fraction of the shorter side."""
        return 7 / 8 if self.crop == "resized" else 1.0

    def __post_init__(self):
        lookup("crop", self.crop, dict.fromkeys(CROPS))
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"color_jitter is {self.color_jitter} but must be from 0 to 1.")


def draw_views(count: int, key: tf.Tensor, how: Augmentation) -> dict[str, tf.Tensor]:
    """Draws the numbers that describe `count` random views.

    Args:
        count: Number of views.
        key: Stateless seed, (2,): equal keys give equal views.
        how: The augmentation to draw from.

    Returns:
        crop: float32 (count, 4) in [0, 1), the positions of area, aspect ratio, top and left
            between their bounds.
        flip: bool (count,), whether the view is mirrored.
        color: float32 (count, 3), the factors of brightness, contrast and saturation.
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
    """Returns batches of (places, views), where views are float32 (batch, size, size, 3).

    Args:
        places: Dataset of dicts, one per view: `index` of the image, the values of `draw_views`,
            and any other entries, which are passed on.
        examples: The examples that `index` refers to.
        size: Side of the views in pixels.
        batch_size: Views per batch.
        how: The augmentation that `draw_views` drew from.
    """

    def cut(index, crop):
        if how.crop == "pad":
            return resized(examples.image(index), size)
        return resized(examples.part(index, lambda sides: crop_box(sides, crop), size), size)

    def read(place):
        return place, cut(place["index"], place["crop"])

    def vary(place, batch):
        margin = size // 8 if how.crop == "pad" else 0
        batch = shift_and_flip(batch, place["crop"], place["flip"], margin)
        return place, jitter(batch, place["color"]) if how.color_jitter else batch

    parallel = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    if how.crop == "pad" and examples.images.dtype == tf.uint8:
        # All images have one size, so a whole batch is cut in one call.
        return places.batch(batch_size).map(lambda place: vary(*read(place)), **parallel)
    return places.map(read, **parallel).batch(batch_size).map(vary, **parallel)


def resized(images: tf.Tensor, size: int) -> tf.Tensor:
    """Returns images as float32 (..., size, size, 3); pixels stay exact where the size is equal."""
    same = tf.reduce_all(tf.shape(images)[-3:-1] == size)
    images = tf.cond(
        same, lambda: tf.cast(images, tf.float32), lambda: shrunk_or_enlarged(images, size)
    )
    return tf.ensure_shape(images, (*images.shape[:-3], size, size, 3))


def shrunk_or_enlarged(images: tf.Tensor, size: int) -> tf.Tensor:
    """Returns `tf.image.resize(images, (size, size), antialias=True)`, but faster.

    TensorFlow is fast along the height, whose pixels have long rows behind them. So the height is
    resized, then the transposed width.
    """
    shape = tf.shape(images)
    height, width = shape[-3], shape[-2]

    def along_height(rows: tf.Tensor) -> tf.Tensor:
        return tf.image.resize(rows[:, :, None], (size, 1), antialias=True)[:, :, 0]

    rows = along_height(tf.reshape(images, (-1, height, 3 * width)))
    columns = tf.transpose(rows, (0, 2, 1))  # of each column, the channels in turn
    columns = along_height(tf.reshape(columns, (-1, width, 3 * size)))
    rows = tf.transpose(tf.reshape(columns, (-1, 3 * size, size)), (0, 2, 1))
    return tf.reshape(rows, tf.concat([shape[:-3], [size, size, 3]], 0))


def crop_box(sides: tf.Tensor, crop: tf.Tensor) -> tf.Tensor:
    """Returns top, left, height and width, int32 (4,), of a random part of an image.

    Args:
        sides: Height and width of the image, int32 (2,).
        crop: Draw of `draw_views`, float32 (4,).
    """
    sides = tf.cast(sides, tf.float32)
    area = (0.25 + 0.75 * crop[0]) * tf.reduce_prod(sides)
    ratio = tf.exp(math.log(4 / 3) * (2.0 * crop[1] - 1.0))  # width over height
    extent = tf.sqrt(area * tf.stack([1.0 / ratio, ratio]))
    extent = tf.clip_by_value(tf.round(extent), 1.0, sides)
    begin = tf.floor(crop[2:] * (sides - extent + 1.0))
    return tf.cast(tf.concat([begin, extent], 0), tf.int32)


def shift_and_flip(images: tf.Tensor, crop: tf.Tensor, flip: tf.Tensor, margin: int) -> tf.Tensor:
    """Pads images (batch, size, size, 3), crops them to their size, and mirrors those of `flip`."""
    places = tf.range(images.shape[1])
    columns = tf.where(flip[:, None], places[::-1], places)
    if margin:
        images = tf.pad(images, [[0, 0], [margin, margin], [margin, margin], [0, 0]])
        begin = tf.cast(crop[:, 2:, None] * (2 * margin + 1), tf.int32)  # top and left
        images = tf.gather(images, begin[:, 0] + places, axis=1, batch_dims=1)
        columns += begin[:, 1]
    return tf.gather(images, columns, axis=2, batch_dims=1)  # far faster than a select


def jitter(images: tf.Tensor, color: tf.Tensor) -> tf.Tensor:
    """Scales brightness, contrast and saturation of (batch, h, w, 3) by `color` (batch, 3).

    Contrast is scaled about the mean color m, saturation about the gray value w . x. With factors
    b, c and s, a pixel x becomes M x + t, clipped to [0, 255], where

        M = c B        t = (1 - c) B m        B = b (s I + (1 - s) 1 w^T)

    One matrix per image is several times as fast as three changes in turn.
    """
    brightness, contrast, saturation = (color[:, i, None, None] for i in range(3))
    mean = tf.reduce_mean(images, axis=(1, 2))[..., None]
    gray = tf.ones((3, 1)) * GRAY
    matrix = brightness * (saturation * tf.eye(3) + (1.0 - saturation) * gray)
    shift = (1.0 - contrast) * (matrix @ mean)
    flat = tf.reshape(images, (tf.shape(images)[0], -1, 3))
    flat = tf.matmul(flat, contrast * matrix, transpose_b=True) + tf.linalg.matrix_transpose(shift)
    return tf.clip_by_value(tf.reshape(flat, tf.shape(images)), 0.0, 255.0)
