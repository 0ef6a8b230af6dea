"""Classifiers on fixed features: (batch, width) to logits (batch, classes)."""

import contextlib
import itertools
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import tensorflow as tf
from candle_tf.data.checks import check_labels, check_range
from candle_tf.data.entrance import check_spec, reading_errors
from candle_tf.data.samplers import epoch_length, epoch_order
from candle_tf.utils.distribution import ALONE, from_first, leads, on_all_replicas
from candle_tf.utils.files import Rows, locked
from candle_tf.utils.progress import counted


@tf.keras.saving.register_keras_serializable("candle_tf")
class LearnableWeightScaling(tf.keras.layers.Layer):
    """f_c * z_c: one learned factor per class (Kang et al., ICLR 2020; MiSLAS, stage 2).

    Example:
        >>> LearnableWeightScaling()(tf.constant([[1.0, 2.0]])).numpy()
        array([[1., 2.]], dtype=float32)
    """

    def build(self, input_shape):
        """Creates the factors, 1 at first."""
        self.scale = self.add_weight("scale", shape=(input_shape[-1],), initializer="ones")
        super().build(input_shape)

    def call(self, logits):
        """Returns the scaled logits (batch, classes)."""
        return logits * self.scale


@tf.keras.saving.register_keras_serializable("candle_tf")
class CosineClassifier(tf.keras.layers.Layer):
    """scale * cos(x, w_c) (Gidaris & Komodakis, CVPR 2018), with neither norm nor bias.

    A student for `losses.LDAM` has this classifier as its layer `logits`.

    Args:
        num_classes: Number of logits.
        scale: Inverse temperature; the logits are in [-scale, scale].

    Example:
        >>> CosineClassifier(3, scale=8.0)(tf.ones((2, 5))).shape
        TensorShape([2, 3])
    """

    def __init__(self, num_classes: int, *, scale: float = 30.0, **kwargs):
        super().__init__(**kwargs)
        self.num_classes, self.scale = num_classes, scale

    def build(self, input_shape):
        """Creates the weights w_c."""
        self.kernel = self.add_weight("kernel", shape=(input_shape[-1], self.num_classes))
        super().build(input_shape)

    def call(self, features):
        """Returns the logits (batch, classes), float32, of features (batch, width)."""
        # Squares of small features are 0 in float16.
        x = tf.math.l2_normalize(tf.cast(features, tf.float32), axis=-1)
        w = tf.math.l2_normalize(tf.cast(self.kernel, tf.float32), axis=0)
        return self.scale * tf.matmul(x, w)

    def get_config(self):
        """Returns the arguments of the constructor as Keras saves them."""
        own = {"num_classes": self.num_classes, "scale": self.scale}
        return {**super().get_config(), **own}


def linear(width: int, num_classes: int, seed: int = 0) -> tf.keras.Sequential:
    """Builds W x + b on features (batch, width), in float32.

    Args:
        width: Number of features.
        num_classes: Number of logits.
        seed: Seed of the initial weights.

    Example:
        >>> linear(5, 3).output_shape
        (None, 3)
    """
    initializer = tf.keras.initializers.GlorotUniform(seed)
    return tf.keras.Sequential(
        [
            tf.keras.Input((width,)),
            tf.keras.layers.Dense(
                num_classes, kernel_initializer=initializer, name="linear", dtype="float32"
            ),
        ],
        name="classifier",
    )


def scaled_linear(width: int, num_classes: int, seed: int = 0) -> tf.keras.Sequential:
    """Builds f * (W x + b), a linear classifier with learnable weight scaling.

    Args:
        width: Number of features.
        num_classes: Number of logits.
        seed: Seed of the initial weights.

    Example:
        >>> len(scaled_linear(5, 3).weights)
        3
    """
    classifier = linear(width, num_classes, seed)
    classifier.add(LearnableWeightScaling())
    return classifier


def encode_dataset(
    embed: Callable[[tf.Tensor], tf.Tensor],
    dataset: tf.data.Dataset,
    class_counts: Sequence[int],
    views: int = 1,
    *,
    verbose="auto",
    directory: str | os.PathLike | None = None,
    made_of: Mapping = MappingProxyType({}),
    strategy: tf.distribute.Strategy = ALONE,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the features of a data set and its labels, as `fit_on_features` takes them.

    The features are in a file that is mapped into memory, so that they need not fit there. If there
    are several workers, the first one writes the file and returns them; the others return none.

    Args:
        embed: Function from images float32 (batch, height, width, 3) to features (batch, width).
        dataset: Batches of (images, labels), read `views` times. For a strategy with several
            replicas, the result of `candle_tf.utils.distribution.distributed`.
        class_counts: Images per class in the data set, (classes,).
        views: Number of readings of the data set.
        verbose: 0 for silence.
        directory: Directory where the features stay; a temporary one where None. The same call,
            with a data set that gives the same images again, continues with the features there.
        made_of: Everything that the features follow from, as in `candle_tf.utils.files.Rows`.
        strategy: Strategy whose replicas each encode their part.

    Returns:
        Features float32 (n * views, width) and labels int64 (n * views,).

    Raises:
        ValueError: For counts that do not match the labels, a label out of range or an image with
            NaN or Inf (named by its index); for a generator and several views; for a directory
            that holds other features.

    Example:
        >>> images = np.random.uniform(0, 255, (10, 8, 8, 3)).astype("float32")
        >>> batches = tf.data.Dataset.from_tensor_slices((images, np.arange(10) % 2)).batch(5)
        >>> mean_colour = lambda images: tf.reduce_mean(images, axis=(1, 2))
        >>> features, labels = encode_dataset(mean_colour, batches, [5, 5], verbose=0)
        >>> features.shape, labels[:4].tolist()
        ((10, 3), [0, 1, 0, 1])
    """
    if isinstance(dataset, tf.data.Dataset):
        check_spec(dataset.element_spec, "calibrate")
    if isinstance(dataset, Iterator) and views > 1:
        raise ValueError(
            f"The data are a generator, which can be read once, not {views} times: give a dataset, "
            "or views=1."
        )
    look = on_all_replicas(strategy, look_at)
    encode = on_all_replicas(strategy, lambda images: embed(tf.cast(images, tf.float32)))
    total = views * int(np.sum(class_counts))
    with reading_errors(), contextlib.ExitStack() as stack:
        # A file that is unlinked exists as long as it is mapped.
        directory = directory or stack.enter_context(tempfile.TemporaryDirectory())
        add = stack.enter_context(counted("Encoding images", total, "images", bool(verbose)))
        if leads(strategy):
            stack.enter_context(locked(directory))
        kept = KeptFeatures(directory, made_of, total, strategy)
        for batch in itertools.chain.from_iterable(itertools.repeat(dataset, views)):
            images, labels, weights = tf.keras.utils.unpack_x_y_sample_weight(batch)
            if weights is not None:
                raise ValueError(
                    "The batches hold sample weights, which a classifier on fixed features does "
                    "not use: give batches of (images, labels)."
                )
            labels, checks, *seen = (x.numpy() for x in look(images, labels))
            check_content(labels, *seen, classes=len(class_counts), first=kept.seen)
            if kept.seen > 2 * total:  # perhaps without end
                raise ValueError(
                    f"The data hold more than twice the {total // views} images of class_counts: "
                    "give the counts of these data, and leave out repeat()."
                )
            features = encode(images) if kept.lacks(len(labels)) else None
            kept.add(labels, checks, features)
            add(len(labels))
        features, labels = kept.finished()
    check_counts(kept.labels, class_counts, views)
    return features, labels


class KeptFeatures:
    """The features of a stream of images, in a file that an interrupted stream continues.

    Args:
        directory: Directory of the file.
        made_of: Everything that the features follow from, as in `candle_tf.utils.files.Rows`.
        total: Number of records to come.
        strategy: Strategy whose first worker writes the file.

    Attributes:
        seen: Number of images so far.

    Example:
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     kept = KeptFeatures(directory, {}, 2, ALONE)
        ...     kept.add(np.array([0, 1]), np.array([5, 6]), np.ones((2, 3)))
        ...     kept.lacks(1), kept.finished()[1].tolist()
        (True, [0, 1])
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        made_of: Mapping,
        total: int,
        strategy: tf.distribute.Strategy,
    ):
        self.directory, self.made_of, self.total = directory, made_of, total
        self.strategy, self.writes = strategy, leads(strategy)
        self.rows, self.earlier = None, np.zeros(0)
        self.seen = self.done = 0
        self.labels: list[np.ndarray] = []

    def lacks(self, count: int) -> bool:
        """Returns whether the features of some of the next `count` images are not there yet."""
        return self.seen + count > self.done

    def add(self, labels: np.ndarray, checks: np.ndarray, features: np.ndarray | None):
        """Keeps the next images' features, or compares these images with those of before.

        Args:
            labels: Class of each image, (n,).
            checks: Checksum of each image, (n,).
            features: Features (n, width); None for images whose features are there.
        """
        if not self.seen:
            self.open(features.shape[1])
        if self.writes:
            records = np.zeros(len(labels), self.rows.dtype)
            records["label"], records["image"] = labels, checks
            known = self.earlier[self.seen : self.seen + len(labels)]
            self.compare(records, known)
            if features is not None and self.lacks(len(labels)):
                records["features"] = features
                self.rows.append(records[len(known) :])
        self.labels.append(labels)
        self.seen += len(labels)

    def open(self, width: int):
        """Opens the file, whose records have features of this width, and counts its records."""
        if self.writes:
            self.rows = Rows(self.directory, feature_record(width), self.made_of)
            self.rows.claim(self.total)
            self.earlier = self.rows.read()
        self.done = from_first(self.strategy, len(self.earlier))

    def compare(self, records: np.ndarray, known: np.ndarray):
        """Refuses images that are not those whose features are there."""
        if any((known[x] != records[x][: len(known)]).any() for x in ("label", "image")):
            raise ValueError(
                f"{self.directory} holds features of other images: delete it, or give data "
                "that come in the same order each time."
            )

    def finished(self) -> tuple[np.ndarray, np.ndarray]:
        """Verifies the file and returns its features and labels; none where another worker writes.

        Raises:
            ValueError: If a record is damaged.
        """
        if self.rows:
            self.rows.verify()
        records = self.rows.read()[: self.seen] if self.rows else np.zeros(0, feature_record(0))
        return records["features"], np.array(records["label"])


def feature_record(width: int) -> np.dtype:
    """Returns the record of `encode_dataset`, where `image` is a checksum of the image.

    Example:
        >>> feature_record(3).names
        ('features', 'label', 'image')
    """
    return np.dtype([("features", np.float32, width), ("label", np.int64), ("image", np.uint32)])


def look_at(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns the label, checksum, finiteness, least and largest pixel, and type of each image.

    Args:
        images: Images (batch, height, width, 3).
        labels: Class numbers (batch,) or (batch, 1).

    Example:
        >>> labels, checks, finite, low, high, whole = look_at(tf.ones((1, 2, 2, 3)), tf.zeros(1))
        >>> int(finite[0]), float(high[0]), int(whole[0])
        (1, 1.0, 0)
    """
    if labels.shape[1:].num_elements() not in (1, None):
        raise ValueError("Labels must be class numbers, one per image, not one-hot.")
    whole = tf.constant(images.dtype.is_integer, tf.int64)  # replicas gather no bool
    images, labels = tf.cast(images, tf.float32), tf.cast(tf.reshape(labels, [-1]), tf.int64)

    def checksums(pixels):
        return np.array([zlib.crc32(image) for image in pixels], np.int64)

    finite = tf.reduce_all(tf.math.is_finite(images), axis=(1, 2, 3))
    checks = tf.ensure_shape(tf.numpy_function(checksums, [images], tf.int64), (None,))
    low, high = (reduce(images, axis=(1, 2, 3)) for reduce in (tf.reduce_min, tf.reduce_max))
    return labels, checks, tf.cast(finite, tf.int64), low, high, tf.fill(tf.shape(low), whole)


def check_content(labels, finite, *ends, classes: int, first: int):
    """Refuses a batch with NaN, labels out of range or, in the first one, pixels out of [0, 255].

    Args:
        labels: Class numbers (batch,).
        finite: Whether each image is finite, (batch,).
        *ends: Least and largest pixel and type of each image, as `look_at` returns them.
        classes: Number of classes.
        first: Index of the batch's first image in the stream.

    Example:
        >>> check_content(np.array([1]), np.array([1]), classes=2, first=7)
    """
    check_images(finite, first)
    if not first:
        check_range(*ends, "calibrate")
    check_labels(labels, classes, "the stream", first)


def check_counts(labels: Sequence[np.ndarray], class_counts: Sequence[int], views: int):
    """Refuses class counts that are not those of the labels, which may come several times.

    Args:
        labels: Labels of each batch.
        class_counts: Images per class, (classes,).
        views: Number of readings of the data set.

    Raises:
        ValueError: If a count does not match.

    Example:
        >>> check_counts([np.array([0, 0, 1])], [2, 1], views=1)
    """
    found = np.bincount(np.concatenate([*labels, []]).astype(int), minlength=len(class_counts))
    times = views * max(1, round(found.sum() / (views * np.sum(class_counts))))
    if (found != times * np.asarray(class_counts)).any():
        c = np.flatnonzero(found != times * np.asarray(class_counts))[0]
        raise ValueError(
            f"class_counts says {class_counts[c]} images of class {c} but the data holds "
            f"{found[c] / times:g}: count the labels of the very data set that is passed."
        )


def check_images(finite: np.ndarray, first: int):
    """Refuses NaN and Inf, and names the first such image by its index in the stream.

    Args:
        finite: Whether each image is finite, (batch,).
        first: Index of the batch's first image in the stream.

    Example:
        >>> check_images(np.array([1, 1]), 0)
    """
    if not finite.all():
        raise ValueError(
            f"Image {first + int(np.argmin(finite))} of the stream holds NaN or Inf: images are "
            "finite float32 RGB in [0, 255]; repair it or leave it out."
        )


def class_means(features: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the mean of each class's features, (num_classes, width).

    Args:
        features: Features (n, width).
        labels: Class of each row, (n,); each class has at least one.
        num_classes: Number of classes.

    Example:
        >>> class_means(np.array([[1.0], [3.0], [5.0]]), np.array([0, 0, 1]), 2).tolist()
        [[2.0], [5.0]]
    """
    return np.stack([features[labels == c].mean(axis=0) for c in range(num_classes)])


def fit_on_features(
    classifier: tf.keras.Model,
    features: np.ndarray,
    labels: np.ndarray,
    *,
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
        classifier: Keras model from features (batch, width) to logits (batch, classes).
        features: Features float32 (n, width), in memory or mapped into it.
        labels: Class of each row, int64 (n,).
        loss: Loss of labels and logits.
        sampler: Sampler of an epoch's features, a name of `candle_tf.data.SAMPLERS`.
        epochs: Number of epochs of `samplers.epoch_length` / `views` features each, rounded up to
            whole batches.
        batch_size: Number of features per update.
        learning_rate: First learning rate of Adam, annealed by cosine to 0.
        seed: Seed of the order of the features.
        verbose: Output of `tf.keras.Model.fit`; 0 for silence.
        views: Number of rows per image; an epoch takes one of them on average.

    Example:
        >>> x, y = np.float32([[-1], [1]] * 8), np.array([0, 1] * 8)
        >>> how = {"sampler": "class_balanced", "epochs": 9, "batch_size": 8, "seed": 0}
        >>> loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> classifier = linear(1, 2)
        >>> fit = fit_on_features(classifier, x, y, loss=loss, learning_rate=1.0, verbose=0, **how)
        >>> classifier(x[:2]).numpy().argmax(axis=1)
        array([0, 1])
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
    """Returns the L2 norm of each class's weights, float32 (classes,), of a network in W x + b.

    Learned factors per class count too. None is returned for another kind of classifier.

    Args:
        network: Keras model whose last layer, or last but one, is the classifier.

    Example:
        >>> classifier = linear(2, 1)
        >>> classifier.set_weights([np.array([[3.0], [4.0]]), np.zeros(1)])
        >>> weight_norms(classifier)
        array([5.], dtype=float32)
    """
    *layers, last = network.layers
    scale = 1.0
    if isinstance(last, LearnableWeightScaling):
        scale, last = last.scale, layers[-1]
    if type(last) is not tf.keras.layers.Dense:
        return None
    return np.linalg.norm(last.kernel * scale, axis=0)
