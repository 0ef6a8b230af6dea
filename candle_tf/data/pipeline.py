"""Encoded images to batches: seeded order, decoding, stateless augmentation."""

import itertools
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from candle_tf.data.samplers import epoch_length, epoch_order


@dataclass(frozen=True)
class Examples:
    """Encoded images held in memory (their files' bytes, not their pixels) and their labels.

    Attributes:
        images: string tensor (n,), JPEG or PNG.
        labels: int64 array (n,).
    """

    images: tf.Tensor
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> "Examples":
        """The examples at `indices`."""
        return Examples(tf.gather(self.images, indices), self.labels[indices])


@dataclass(frozen=True)
class Augmentation:
    """How training images vary.

    Attributes:
        crop: "pad", a crop after padding by an eighth of the side, for small images; "resized", a
            crop of 25 to 100 % of the area, for photographs.
        flip: mirror half of the images.
        color_jitter: largest relative change of brightness, contrast and saturation.
    """

    crop: str = "resized"
    flip: bool = True
    color_jitter: float = 0.0


def training_batches(
    examples: Examples,
    image_size: int,
    batch_size: int,
    num_examples: int | None = None,
    sampler: str = "instance_balanced",
    augmentation: Augmentation = Augmentation(),
    seed: int = 0,
    first_example: int = 0,
    views: int = 1,
) -> tf.data.Dataset:
    """Augmented batches; epochs follow each other without a gap, and a batch may span two.

    What comes at a place of the stream depends on the seed and the place alone, so a stream that
    starts at `first_example` goes on exactly as one that began at 0.

    Args:
        image_size: side of the batch's images in pixels.
        num_examples: where the stream ends, counted from 0. None: each time the dataset is read
            it gives the next epoch, as `fit(dataset, epochs=...)` expects.
        sampler: a name of `candle_tf.data.SAMPLERS`; an epoch is one of `epoch_order`.
        first_example: where the stream starts, counted from 0.
        views: independently augmented views of each image.

    Returns:
        A finite dataset of (images float32 (batch, image_size, image_size, 3) in [0, 255],
        labels int64 (batch,)); with several views, the images are a tuple of such.

    Raises:
        ValueError: for an unknown sampler, `progressively_balanced` within one epoch, or no view.
    """
    n = epoch_length(examples.labels, sampler)
    num_epochs = 1 if num_examples is None else -(-num_examples // n)
    if sampler == "progressively_balanced" and num_epochs < 2:
        raise ValueError(
            f"The sampler progressively_balanced changes from one pass over the {n} images to the "
            "next: give num_examples of more than one, that is, train for more updates."
        )
    if views < 1:
        raise ValueError(f"views is {views} but must be at least 1.")

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        key = tf.random.fold_in([seed, 0], number)
        order = epoch_order(examples.labels, sampler, key, number / num_epochs)
        places = tf.data.Dataset.from_tensor_slices(order).enumerate()
        return places.map(lambda place, i: (i, tf.random.fold_in(key, place)))

    def example(index, key):
        image = decode(tf.gather(examples.images, index))
        keys = [key] if views == 1 else tf.unstack(tf.random.split(key, num=views))
        images = tuple(augment(image, key, image_size, augmentation) for key in keys)
        return images if views > 1 else images[0], tf.gather(examples.labels, index)

    if num_examples is None:
        count = itertools.count()
        number = tf.TensorSpec((), tf.int64)
        epochs = tf.data.Dataset.from_generator(lambda: [next(count)], output_signature=number)
        stream = epochs.flat_map(epoch).apply(tf.data.experimental.assert_cardinality(n))
    else:
        first_epoch = first_example // n
        epochs = tf.data.Dataset.range(first_epoch, num_epochs)
        stream = epochs.flat_map(epoch).skip(first_example - first_epoch * n)
        stream = stream.take(num_examples - first_example)
    return (
        stream.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )


def evaluation_batches(
    examples: Examples,
    image_size: int,
    batch_size: int,
    augmentation: Augmentation = Augmentation(),
) -> tf.data.Dataset:
    """Each example once, in order: resized; photographs by 8/7, then centre-cropped."""

    def example(image, label):
        image = decode(image)
        if augmentation.crop == "resized":
            image = centre_square(image, 7 / 8)
        return resize_one(image, image_size), label

    dataset = tf.data.Dataset.from_tensor_slices((examples.images, examples.labels))
    return (
        dataset.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )


def decode(image: tf.Tensor) -> tf.Tensor:
    """Bytes to float32 RGB in [0, 255], (height, width, 3)."""
    pixels = tf.io.decode_image(image, channels=3, expand_animations=False)
    return tf.cast(tf.ensure_shape(pixels, (None, None, 3)), tf.float32)


def resize_one(image: tf.Tensor, size: int) -> tf.Tensor:
    """(height, width, 3) to (size, size, 3), as it is where it has that size."""
    same = tf.reduce_all(tf.shape(image)[:2] == size)
    image = tf.cond(
        same, lambda: image, lambda: tf.image.resize(image, (size, size), antialias=True)
    )
    return tf.ensure_shape(image, (size, size, 3))


def centre_square(image: tf.Tensor, share: float) -> tf.Tensor:
    """The central square whose side is `share` of the shorter side."""
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    side = tf.cast(share * tf.cast(tf.minimum(height, width), tf.float32), tf.int32)
    side = tf.maximum(side, 1)
    return tf.image.crop_to_bounding_box(
        image, (height - side) // 2, (width - side) // 2, side, side
    )


def augment(image: tf.Tensor, key: tf.Tensor, size: int, how: Augmentation) -> tf.Tensor:
    """One random view (size, size, 3) of an image, a function of the stateless `key` (2,) alone."""
    crop_key, flip_key, color_key = tf.unstack(tf.random.split(key, num=3))
    if how.crop == "pad":
        margin = size // 8
        padded = tf.pad(resize_one(image, size), [[margin, margin], [margin, margin], [0, 0]])
        image = tf.image.stateless_random_crop(padded, (size, size, 3), crop_key)
    else:
        box, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros((1, 0, 4)),
            crop_key,
            area_range=(0.25, 1.0),
            use_image_if_no_bounding_boxes=True,
        )
        crop = tf.slice(image, box, extent)
        crop.set_shape((None, None, 3))
        image = resize_one(crop, size)
    if how.flip:
        image = tf.image.stateless_random_flip_left_right(image, flip_key)
    if how.color_jitter:
        image = jitter(image, color_key, how.color_jitter)
    return image


def jitter(image: tf.Tensor, key: tf.Tensor, amount: float) -> tf.Tensor:
    """Scales brightness, contrast and saturation, each by a factor in [1 - amount, 1 + amount]."""
    brightness, contrast, saturation = tf.unstack(
        tf.random.stateless_uniform([3], key, 1.0 - amount, 1.0 + amount)
    )
    image = image * brightness
    image = tf.image.adjust_contrast(image, contrast)
    grey = tf.image.rgb_to_grayscale(image)
    return tf.clip_by_value(grey + saturation * (image - grey), 0.0, 255.0)
