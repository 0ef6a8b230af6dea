"""Examples to batches: a seeded order, and a seeded view of each image at each place."""

import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from candle_tf.data.checks import check_views
from candle_tf.data.examples import UNSHRUNK, Examples
from candle_tf.data.own_images.pixels import cut
from candle_tf.data.samplers import epoch_length, epoch_order
from candle_tf.data.views import Augmentation, draw_views, resized, take_views
from candle_tf.utils.distribution import Share


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
    share: Share = Share(),
) -> tf.data.Dataset:
    """Returns augmented batches; epochs follow each other without a gap, and a batch may span two.

    The image at a place of the stream depends on the seed and the place alone. A stream that starts
    at `first_example` therefore equals the rest of a stream that started at 0.

    Args:
        examples: Training images and their labels.
        image_size: Side of the batch's images in pixels.
        batch_size: Number of images per batch, over all replicas.
        num_examples: Place at which the stream ends, counted from 0. With None, each reading gives
            the next epoch, as `fit(dataset, epochs=...)` expects.
        sampler: Name in `candle_tf.data.SAMPLERS`; `epoch_order` gives the order of an epoch.
        augmentation: Random variation of the images.
        seed: Seed of the order and of the augmentation.
        first_example: Place at which the stream starts, counted from 0.
        views: Number of independently augmented views of each image.
        share: Part of the stream that this process reads; a batch is then the batch of one replica.
            With several workers, `first_example` is a multiple of the batch size.

    Returns:
        A finite dataset of (images float32 (batch, image_size, image_size, 3) in [0, 255],
        labels int64 (batch,)). With several views, the images are a tuple of such tensors.

    Raises:
        ValueError: For an unknown sampler, `progressively_balanced` within one epoch, or no view.

    Example:
        >>> labels, images = np.array([0, 0, 1]), tf.zeros((3, 8, 8, 3), tf.uint8)
        >>> batches = ct.data.training_batches(ct.data.Examples(images, labels), 16, 2)
        >>> [images.shape[0] for images, _ in batches]
        [2, 1]
    """
    check_views(views)
    labels, how = examples.labels, augmentation

    def view(which: int) -> tf.data.Dataset:
        def draw(order, key, _):
            return draw_views(len(order), tf.random.fold_in(key, which), how)

        places = training_places(labels, sampler, seed, draw, num_examples, first_example)
        places = share.of(places, batch_size)
        return take_views(places, examples, image_size, share.batch_size(batch_size), how)

    def batch(*seen):
        (places, images), *others = seen
        images = (images, *(other for _, other in others)) if others else images
        return images, tf.gather(labels, places["index"])

    batches = tf.data.Dataset.zip(tuple(map(view, range(views)))).map(batch)
    return batches.prefetch(tf.data.AUTOTUNE)


def training_places(
    labels: np.ndarray,
    sampler: str,
    seed: int,
    draw: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], dict[str, tf.Tensor]],
    num_examples: int | None = None,
    first_example: int = 0,
) -> tf.data.Dataset:
    """Returns the image and the view at each place of a stream of training images.

    Args:
        labels: Labels of the training images, (n,).
        sampler: Sampler, as in `training_batches`.
        seed: Seed, as in `training_batches`.
        draw: Function (order, key, number) -> the views at each place of an epoch, by name. `order`
            holds the indices of the epoch's images, and `key` is its stateless key (2,).
        num_examples: End of the stream, as in `training_batches`.
        first_example: Start of the stream, as in `training_batches`.

    Returns:
        A dataset of dicts with `index`, int64, and the names that `draw` returns.

    Raises:
        ValueError: For an unknown sampler, `progressively_balanced` within one epoch, or a start
            behind the end of the stream.
    """
    if first_example > (num_examples or 0):
        raise ValueError(
            f"first_example is {first_example} but num_examples, the end of the stream, is "
            f"{num_examples}: give the end that the stream had at its first start."
        )
    n = epoch_length(labels, sampler)
    num_epochs = 1 if num_examples is None else -(-num_examples // n)
    if sampler == "progressively_balanced" and num_epochs < 2:
        raise ValueError(
            f"The sampler progressively_balanced changes from one pass over the {n} images to the "
            "next: give num_examples of more than one, that is, train for more updates."
        )

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        key = tf.random.fold_in([seed, 0], number)
        order = epoch_order(labels, sampler, key, number / num_epochs)
        order = tf.ensure_shape(order, (n,))
        return tf.data.Dataset.from_tensor_slices({"index": order, **draw(order, key, number)})

    if num_examples is None:
        count, size = itertools.count(), n
        number = tf.TensorSpec((), tf.int64)
        epochs = tf.data.Dataset.from_generator(lambda: [next(count)], output_signature=number)
        places = epochs.flat_map(epoch)
    else:
        first_epoch, size = first_example // n, num_examples - first_example
        epochs = tf.data.Dataset.range(first_epoch, num_epochs)
        places = epochs.flat_map(epoch).skip(first_example - first_epoch * n).take(size)
    return places.apply(tf.data.experimental.assert_cardinality(size))


def evaluation_batches(
    examples: Examples,
    image_size: int,
    batch_size: int,
    augmentation: Augmentation = Augmentation(),
    share: Share = Share(),
) -> tf.data.Dataset:
    """Returns each example once, in order: a photograph's central square of 7/8, then resized.

    Args:
        examples: Images and their labels.
        image_size: Side of the batch's images in pixels.
        batch_size: Number of images per batch, over all replicas.
        augmentation: Augmentation of the training, which says whether images are photographs.
        share: Part of each batch that this process reads.

    Example:
        >>> examples = ct.data.Examples(tf.zeros((3, 8, 8, 3), tf.uint8), np.array([0, 0, 1]))
        >>> images, labels = next(iter(ct.data.evaluation_batches(examples, 16, 2)))
        >>> images.shape
        TensorShape([2, 16, 16, 3])
    """

    def example(place):
        if augmentation.centre_square < 1:
            image = examples.part(place["index"], central, UNSHRUNK)  # as predict.py
        else:
            image = examples.image(place["index"])
        return resized(image, image_size), place["label"]

    def central(sides):
        return centre_box(sides, augmentation.centre_square)

    places = {"index": np.arange(len(examples)), "label": examples.labels}
    mine = share.of(tf.data.Dataset.from_tensor_slices(places), batch_size)
    return (
        mine.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(share.batch_size(batch_size))
        .prefetch(tf.data.AUTOTUNE)
    )


def centre_square(image: tf.Tensor, share: float) -> tf.Tensor:
    """Returns the central square whose side is `share` of the shorter side."""
    return cut(image, lambda sides: centre_box(sides, share))


def centre_box(sides: tf.Tensor, share: float) -> tf.Tensor:
    """Returns top, left, height and width, int32 (4,), of the central square.

    Args:
        sides: Height and width of the image, int32 (2,).
        share: Side of the square as a fraction of the shorter side.
    """
    side = tf.cast(share * tf.cast(tf.reduce_min(sides), tf.float32), tf.int32)
    side = tf.fill([2], tf.maximum(side, 1))
    return tf.concat([(sides - side) // 2, side], 0)
