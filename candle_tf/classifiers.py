"""Classifiers on fixed features, (batch, width) -> logits (batch, classes)."""

import contextlib
import itertools
import os
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import tensorflow as tf
from candle_tf.data.checks import check_labels, check_range
from candle_tf.data.entrance import check_spec, reading_errors
from candle_tf.data.samplers import epoch_length, epoch_order
from candle_tf.utils.distribution import ALONE, from_first, leads, on_all_replicas
from candle_tf.utils.files import Rows, locked


@tf.keras.saving.register_keras_serializable("candle_tf")
class LearnableWeightScaling(tf.keras.layers.Layer):
    """f_c * z_c: one learned factor a class (Kang et al., ICLR 2020; MiSLAS, stage 2)."""

    def build(self, input_shape):
        self.scale = self.add_weight("scale", shape=(input_shape[-1],), initializer="ones")
        super().build(input_shape)

    def call(self, logits):
        return logits * self.scale


@tf.keras.saving.register_keras_serializable("candle_tf")
class CosineClassifier(tf.keras.layers.Layer):
    """scale * cos(x, w_c) (Gidaris & Komodakis, CVPR 2018), with neither norm nor bias.

    As a student's classifier it stands in the layer `logits`; `losses.LDAM` wants it there.

    Args:
        num_classes: the number of logits.
        scale: the inverse temperature: the logits lie in [-scale, scale].
    """

    def __init__(self, num_classes: int, scale: float = 30.0, **kwargs):
        super().__init__(**kwargs)
        self.num_classes, self.scale = num_classes, scale

    def build(self, input_shape):
        self.kernel = self.add_weight("kernel", shape=(input_shape[-1], self.num_classes))
        super().build(input_shape)

    def call(self, features):
        x = tf.math.l2_normalize(features, axis=-1)
        w = tf.math.l2_normalize(self.kernel, axis=0)
        return self.scale * tf.matmul(x, w)

    def get_config(self):
        own = {"num_classes": self.num_classes, "scale": self.scale}
        return {**super().get_config(), **own}


def linear(width: int, num_classes: int, seed: int = 0) -> tf.keras.Sequential:
    """W x + b on features (batch, width)."""
    initializer = tf.keras.initializers.GlorotUniform(seed)
    return tf.keras.Sequential(
        [
            tf.keras.Input((width,)),
            tf.keras.layers.Dense(num_classes, kernel_initializer=initializer, name="linear"),
        ],
        name="classifier",
    )


def scaled_linear(width: int, num_classes: int, seed: int = 0) -> tf.keras.Sequential:
    """f * (W x + b): a linear classifier with learnable weight scaling."""
    classifier = linear(width, num_classes, seed)
    classifier.add(LearnableWeightScaling())
    return classifier


def encode_dataset(
    embed: Callable[[tf.Tensor], tf.Tensor],
    dataset: tf.data.Dataset,
    class_counts: Sequence[int],
    views: int = 1,
    verbose="auto",
    directory: str | os.PathLike | None = None,
    made_of: Mapping = MappingProxyType({}),
    strategy: tf.distribute.Strategy = ALONE,
) -> tuple[np.ndarray, np.ndarray]:
    """What `fit_on_features` wants: the features of a data set and its labels.

    The features lie in a file that is mapped into memory, so that they need not fit there. Of
    several workers the first writes it and alone gets them; the others get none.

    Args:
        embed: images float32 (batch, height, width, 3) -> features (batch, width).
        dataset: batches of (images, labels), read `views` times; for a strategy with several
            replicas, what `candle_tf.utils.distribution.distributed` gives.
        class_counts: images per class that it holds, (classes,).
        directory: where the features stay; a temporary one where None. The same call, with a data
            set that gives the same images again, takes up those that are there.
        made_of: what the features follow from, as in `candle_tf.utils.files.Rows`.
        strategy: whose replicas each encode their part.

    Returns:
        Features float32 (n * views, width) and labels int64 (n * views,).

    Raises:
        ValueError: for counts that do not match the labels, a label out of range or an image with
            NaN or Inf (named by its index); for a directory that holds other features.
    """
    if isinstance(dataset, tf.data.Dataset):
        check_spec(dataset.element_spec, "calibrate")
    look = on_all_replicas(strategy, look_at)
    encode = on_all_replicas(strategy, lambda images: embed(tf.cast(images, tf.float32)))
    writes = leads(strategy)
    rows, earlier, done, seen = None, np.zeros(0), 0, 0
    found = np.zeros(len(class_counts), int)
    progress = tf.keras.utils.Progbar(None, verbose=int(verbose != 0), unit_name="batch")
    with (
        reading_errors(),
        contextlib.ExitStack() as stack,
    ):  # what is unlinked stays there as long as it is mapped
        directory = directory or stack.enter_context(tempfile.TemporaryDirectory())
        if writes:
            stack.enter_context(locked(directory))
        for batch in itertools.chain.from_iterable(itertools.repeat(dataset, views)):
            images, labels, _ = tf.keras.utils.unpack_x_y_sample_weight(batch)
            labels, checks, finite, *ends = (x.numpy() for x in look(images, labels))
            check_images(finite, seen)
            if not seen:
                check_range(*ends, "calibrate")
            check_labels(labels, len(class_counts), "the stream", seen)
            end = seen + len(labels)
            features = encode(images) if end > done else None
            if not seen:
                if writes:
                    rows = Rows(directory, feature_record(features.shape[1]), made_of)
                    rows.claim(views * int(np.sum(class_counts)))
                    earlier = rows.read()
                done = from_first(strategy, len(earlier))
            if writes:
                records = np.zeros(len(labels), rows.dtype)
                records["label"], records["image"] = labels, checks
                there = earlier[seen:end]
                if any((there[x] != records[x][: len(there)]).any() for x in ("label", "image")):
                    raise ValueError(
                        f"{directory} holds features of other images: delete it, or give data "
                        "that come in the same order each time."
                    )
                if end > done:
                    records["features"] = features
                    rows.append(records[len(there) :])
            found += np.bincount(labels, minlength=len(class_counts))
            seen = end
            progress.add(1)
        if rows:
            rows.verify()
        records = rows.read()[:seen] if rows else np.zeros(0, feature_record(0))
    times = views * max(1, round(seen / (views * np.sum(class_counts))))
    if (found != times * np.asarray(class_counts)).any():
        c = np.flatnonzero(found != times * np.asarray(class_counts))[0]
        raise ValueError(
            f"class_counts says {class_counts[c]} images of class {c} but the data holds "
            f"{found[c] / times:g}: count the labels of the very data set that is passed."
        )
    return records["features"], np.array(records["label"])


def feature_record(width: int) -> np.dtype:
    """What `encode_dataset` keeps: `image` is a checksum of the image that was seen."""
    return np.dtype([("features", np.float32, width), ("label", np.int64), ("image", np.uint32)])


def look_at(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """The label of each image, its checksum, whether it is finite, its least and largest pixel."""
    if labels.shape[1:].num_elements() not in (1, None):
        raise ValueError("Labels must be class numbers, one an image, not one-hot.")
    whole = tf.constant(images.dtype.is_integer, tf.int64)  # replicas gather no bool
    images, labels = tf.cast(images, tf.float32), tf.cast(tf.reshape(labels, [-1]), tf.int64)

    def checksums(pixels):
        return np.array([zlib.crc32(image) for image in pixels], np.int64)

    finite = tf.reduce_all(tf.math.is_finite(images), axis=(1, 2, 3))
    checks = tf.ensure_shape(tf.numpy_function(checksums, [images], tf.int64), (None,))
    low, high = (reduce(images, axis=(1, 2, 3)) for reduce in (tf.reduce_min, tf.reduce_max))
    return labels, checks, tf.cast(finite, tf.int64), low, high, tf.fill(tf.shape(low), whole)


def check_images(finite: np.ndarray, first: int):
    """Refuses NaN and Inf, naming the first such image by its index in the stream."""
    if not finite.all():
        raise ValueError(
            f"Image {first + int(np.argmin(finite))} of the stream holds NaN or Inf: images are "
            "finite float32 RGB in [0, 255]; repair it or leave it out."
        )


def class_means(features: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The mean of features (n, width) of each class, which has some: (num_classes, width)."""
    return np.stack([features[labels == c].mean(axis=0) for c in range(num_classes)])


def fit_on_features(
    classifier: tf.keras.Model,
    features: np.ndarray,
    labels: np.ndarray,
    loss: tf.keras.losses.Loss,
    sampler: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    verbose="auto",
    views: int = 1,
) -> tf.keras.callbacks.History:
    """Trains a classifier on features that were computed once.

    Args:
        classifier: features (batch, width) -> logits (batch, classes).
        features: float32 (n, width), or mapped into memory.
        labels: int64 (n,).
        loss: of labels and logits.
        sampler: which features an epoch takes, a name of `candle_tf.data.SAMPLERS`.
        epochs: of `samplers.epoch_length` / `views` features each, rounded up to whole batches.
        batch_size, learning_rate: of Adam, annealed by cosine to 0.
        seed: of the order of the features.
        verbose: as in `tf.keras.Model.fit`.
        views: of each image that `features` holds; an epoch takes one of them on average.
    """

    def epoch(number):
        key = tf.random.fold_in([seed, 2], number)
        order = epoch_order(labels, sampler, key, tf.minimum(views * number / epochs, 1.0))
        return tf.data.Dataset.from_tensor_slices(order)

    stream = tf.data.Dataset.counter().flat_map(epoch).batch(batch_size)

    def batch(i):
        x = tf.numpy_function(lambda i: features[i], [i], features.dtype)
        return tf.ensure_shape(x, (None, features.shape[1])), tf.gather(labels, i)

    batches = stream.map(batch).prefetch(tf.data.AUTOTUNE)
    steps = -(-epoch_length(labels, sampler) // (views * batch_size))
    schedule = tf.keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)
    classifier.compile(tf.keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
    return classifier.fit(batches, epochs=epochs, steps_per_epoch=steps, verbose=verbose)


def weight_norms(network: tf.keras.Model) -> np.ndarray | None:
    """L2 norm of each class's weights, float32 (classes,), where a network ends in W x + b.

    Learned factors a class after it count; None for another kind of classifier.
    """
    *layers, last = network.layers
    scale = 1.0
    if isinstance(last, LearnableWeightScaling):
        scale, last = last.scale, layers[-1]
    if type(last) is not tf.keras.layers.Dense:
        return None
    return np.linalg.norm(last.kernel * scale, axis=0)
