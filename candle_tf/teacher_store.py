"""The teacher's outputs for fixed views of the training images, kept on disk."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import tensorflow as tf
from candle_tf.data.checks import check_examples, check_views
from candle_tf.data.entrance import reading_errors
from candle_tf.data.examples import Examples
from candle_tf.data.pipeline import Share, training_places
from candle_tf.data.samplers import epoch_length
from candle_tf.data.views import Augmentation, draw_views, take_views
from candle_tf.model import CandleModel
from candle_tf.resolution import RandomResolution
from candle_tf.teacher import Teacher
from candle_tf.utils.distribution import (
    ALONE,
    distributed,
    from_first,
    leads,
    meet,
    on_all_replicas,
)
from candle_tf.utils.files import Rows, fingerprint, locked
from candle_tf.utils.progress import counted

ENOUGH = 20  # views per image: more did not help with mixup on CIFAR-10-LT (docs/lab)
FEWEST = 4  # views per image


class TeacherStore:
    """The features and logits of fixed views of the training images, in place of a live teacher.

    The store follows FKD (Shen & Xing, ECCV 2022, arXiv 2112.01528), which keeps soft labels. The
    views are drawn once, and the teacher sees each view once. Training takes the views of an image
    in turn, and starts again after the last view. If the model applies mixup, it does so to each
    batch, so a few views per image are enough for a training of any length and any sampler.

    With several resolutions, each view has one of them, each as often as the model draws it. All
    views of a batch have the same resolution.

    Args:
        directory: Directory of the records, made if it is missing. See `records`.
        model: `CandleModel` whose teacher sees the views, at the sizes that the model draws.
        examples: Training images.
        image_size: Side in pixels of the images that the teacher is shown. Training batches hold
            them at the largest size that the student needs.
        views: Number of views per image.
        augmentation: Bounds within which the views are drawn.
        seed: Seed of the random views.

    Raises:
        ValueError: If the directory holds another teacher's outputs, or outputs for other images,
            views or sizes. If a resolution gets no view.

    Example:
        >>> examples = ct.data.Examples(tf.zeros((10, 16, 16, 3), tf.uint8), np.arange(10) % 2)
        >>> encoder = tf.keras.Sequential([tf.keras.layers.Conv2D(4, 3, 2)])
        >>> encoder.build((None, 16, 16, 3))
        >>> teacher = ct.Teacher(encoder, 16)
        >>> checked = ct.calibration.CrossValidation(0.3, [0.9, 0.7], [5, 5])
        >>> teacher.set_classifier(np.zeros((4, 2)), np.zeros(2), checked)
        >>> features = tf.keras.layers.GlobalAveragePooling2D(name="features")
        >>> layers = [tf.keras.Input((16, 16, 3)), features, tf.keras.layers.Dense(2)]
        >>> model = ct.CandleModel(teacher, tf.keras.Sequential(layers))
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     store = ct.TeacherStore(directory, model, examples, image_size=16, views=2)
        ...     store.complete(verbose=0)
        ...     batches = store.training_batches(5)
        ...     sorted(next(iter(batches))[0])
        ['features', 'images', 'logits', 'size']
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        model: CandleModel,
        examples: Examples,
        *,
        image_size: int,
        views: int = ENOUGH,
        augmentation: Augmentation = Augmentation(),
        seed: int = 0,
    ):
        if not isinstance(directory, (str, os.PathLike)):
            raise ValueError(
                f"The store's directory has the type {type(directory).__name__}: pass the "
                "directory first, then the model and the examples."
            )
        if not isinstance(model, CandleModel):
            raise ValueError(
                f"The store's model has the type {type(model).__name__}: pass the CandleModel "
                "whose teacher sees the views, then the examples."
            )
        check_examples(examples, model.student.output_shape[-1], "TeacherStore")
        self.model, self.examples, self.image_size = model, examples, image_size
        self.augmentation, self.seed = augmentation, seed
        self.sizes = view_sizes(model.resolution, views)
        teacher, resolution = model.teacher, model.resolution
        how = (image_size, augmentation, resolution, seed, examples.in_parts)
        made_of = store_made_of(teacher, examples, *how)
        made_of["teacher's classifier"] = fingerprint(teacher.classifier.get_weights())
        record = record_of(teacher.width, len(teacher.class_counts))
        self.rows, self.verified = Rows(directory, record, made_of), False

    def __len__(self) -> int:
        """Returns the number of records that are needed: views times images."""
        return len(self.sizes) * len(self.examples)

    def __repr__(self) -> str:
        there = f"{min(len(self.rows), len(self)):,} of {len(self):,} records"
        views = f"{len(self.sizes)} views of {len(self.examples):,} images"
        return (
            f"TeacherStore({str(self.rows.directory)!r}, {views}: {there}, "
            f"{self.nbytes / 1e6:,.1f} MB when complete)"
        )

    @property
    def nbytes(self) -> int:
        """The size of the complete records on disk, in bytes."""
        return len(self) * self.rows.dtype.itemsize

    def complete(
        self,
        batch_size: int = 128,
        verbose="auto",
        strategy: tf.distribute.Strategy = ALONE,
    ):
        """Shows the teacher the views that are not in the store yet, and stores its outputs.

        Args:
            batch_size: Number of views per replica that the teacher sees at once.
            verbose: 0 for silence.
            strategy: Strategy whose replicas each show the teacher their part; the first worker
                writes.

        Raises:
            ValueError: If another process is completing the store, a record is damaged, or the
                features exceed half precision.
            OSError: If there is no room for the records.
        """
        self.rows.check()
        if from_first(strategy, len(self.rows)) >= len(self):
            return
        teacher = self.model.teacher
        sizes = map(self.model.teacher_size, self.sizes.tolist())
        embed = teacher.embedder(len(self), sizes, strategy)
        encode = on_all_replicas(strategy, embed)
        writes = leads(strategy)
        with reading_errors(), contextlib.ExitStack() as stack:
            if writes:
                stack.enter_context(locked(self.rows.directory))
                self.rows.claim(len(self))
                if len(self.rows):
                    self.rows.verify()  # before the teacher sees the others
            done = from_first(strategy, len(self.rows))
            total, show = len(self) - done, bool(verbose)
            add = stack.enter_context(counted("Teacher views", total, "views", show))
            batch_size *= strategy.num_replicas_in_sync
            for places, size in self.places(done):
                teacher_size = self.model.teacher_size(size)
                images = distributed(strategy, partial(self.images, places, batch_size))
                for place, batch in zip(places.batch(batch_size), images):
                    features = encode(batch, teacher_size)
                    logits = teacher.classifier(features)
                    records = self.filled(place, size, features, logits)
                    if writes:
                        self.rows.append(records)
                    add(len(records))
        meet(strategy)  # all records are there

    def filled(self, place: dict, size: int, features: tf.Tensor, logits: tf.Tensor) -> np.ndarray:
        """Returns the records of some views.

        Args:
            place: Index, crop, flip and color of each view, by name.
            size: Student's resolution of the views.
            features: Teacher's features, float32 (n, width).
            logits: Teacher's logits, float32 (n, classes).
        """
        records = np.zeros(len(features), self.rows.dtype)
        records["features"], records["logits"], records["size"] = features, logits, size
        for name in place.keys() - {"index"}:
            records[name] = place[name]
        if not np.isfinite(records["features"]).all():
            raise ValueError(
                "The teacher's features are NaN or exceed half precision (65,504): do without the "
                "store (teacher_views=0), and check the teacher if the training then has NaN too."
            )
        return records

    def images(self, places: tf.data.Dataset, batch_size: int, share: Share) -> tf.data.Dataset:
        """Returns the views at a worker's part of the places, in one batch per replica."""
        mine, size = share.of(places, batch_size), share.batch_size(batch_size)
        seen = self.take(mine, size, self.image_size)
        return seen.map(lambda _, images: images).prefetch(tf.data.AUTOTUNE)

    def places(self, first: int) -> Iterator[tuple[tf.data.Dataset, int]]:
        """Yields (places, size) of the records from `first` on, for one view of all images each."""
        n = len(self.examples)
        for view in range(first // n, len(self.sizes)):
            key = tf.random.fold_in([self.seed, 5], view)
            places = {"index": tf.range(n, dtype=tf.int64), **draw_views(n, key, self.augmentation)}
            todo = {name: values[max(first - view * n, 0) :] for name, values in places.items()}
            yield tf.data.Dataset.from_tensor_slices(todo), int(self.sizes[view])

    def records(self) -> np.ndarray:
        """Returns the teacher's outputs for each view: a structured array, mapped into memory.

        Record `view * n + i` belongs to image i of n. Fields: features, float16 (width,); logits,
        float32 (classes,); the view's crop, flip and color, as `candle_tf.data.views.draw_views`
        gives them; size, int32, the student's resolution.

        Raises:
            ValueError: If some records are missing.
        """
        records = self.rows.read()[: len(self)]
        if len(records) < len(self):
            raise ValueError(
                f"{self.rows.directory} holds {len(records)} of {len(self)} records: call "
                "complete() first."
            )
        return records

    def training_batches(
        self,
        batch_size: int,
        *,
        num_examples: int | None = None,
        sampler: str = "instance_balanced",
        seed: int = 0,
        first_example: int = 0,
        share: Share = Share(),
    ) -> tf.data.Dataset:
        """Returns the batches of `candle_tf.data.training_batches`, with the teacher's outputs.

        Args:
            batch_size: Number of images per update, over all replicas.
            num_examples: Place where the stream ends, counted from 0. None gives the next epoch at
                each reading of the dataset, as `fit(dataset, epochs=...)` expects.
            sampler: Sampler of the images, a name of `candle_tf.data.SAMPLERS`.
            seed: Seed of the order.
            first_example: Place where the stream starts, a multiple of the batch size.
            share: Part of each batch that this process reads.

        Returns:
            A dataset for `CandleModel.fit`: (x, labels), where x holds `images`, `features` and
            `logits` of the teacher, and `size`, the resolution, int32 (batch,). The images have
            the side of `needed_size`. In class-balanced batches, cross-entropy is the balanced
            label loss.

        Raises:
            ValueError: If records are missing or damaged, or `first_example` is inside a
                batch, which has one size.
        """
        size = share.batch_size(batch_size)
        if first_example % batch_size:
            raise ValueError(
                f"first_example is {first_example} but must be a multiple of the batch size, "
                f"{batch_size}."
            )
        if not self.verified:  # only once: there may be many records
            self.rows.verify()
            self.verified = True
        labels, records = self.examples.labels, self.records()
        turns = ViewTurns(
            self.sizes,
            self.model.resolution,
            images=len(labels),
            places=epoch_length(labels, sampler),
            batch_size=batch_size,
            epochs_end_batches=num_examples is None,
        )

        def rows_of(order, _, number):
            return {"row": turns.rows(order, number)}

        def batch(place, images):
            x = {name: place[name] for name in ("features", "logits", "size")}
            return {"images": images, **x}, tf.gather(labels, place["index"])

        places = training_places(labels, sampler, seed, rows_of, num_examples, first_example)
        places = share.of(places, batch_size)
        seen = places.batch(size).map(partial(with_records, records)).unbatch()
        seen = seen.apply(tf.data.experimental.assert_cardinality(places.cardinality()))
        side = needed_size(self.image_size, self.augmentation, self.model.resolution)
        return self.take(seen, size, side).map(batch).prefetch(tf.data.AUTOTUNE)

    def take(self, places: tf.data.Dataset, batch_size: int, image_size: int) -> tf.data.Dataset:
        """Returns (place, images) in batches: the views of the images at the places."""
        return take_views(places, self.examples, image_size, batch_size, self.augmentation)


@dataclass(frozen=True)
class ViewTurns:
    """The record of a store at each place of an epoch, with the views of an image in turn.

    Every place of a batch has a view of the size that the model draws for the batch's update. Among
    the views of that size, an image's turn is the number of the epoch plus the number of times that
    this epoch had the image before.

    Attributes:
        sizes: Size of each view, int32 (views,).
        resolution: Resolution that the model draws for each update.
        images: Number of training images.
        places: Number of places per epoch.
        batch_size: Number of places per update.
        epochs_end_batches: Whether each epoch ends with a batch of its own, which may be smaller.

    Example:
        >>> one_size = ct.RandomResolution((32,), 32)
        >>> turns = ViewTurns(np.int32([32, 32]), one_size, 3, 4, 2, epochs_end_batches=True)
        >>> turns.rows(tf.constant([2, 0, 2, 1], tf.int64), number=0).numpy()
        array([2, 0, 5, 1])
    """

    sizes: np.ndarray
    resolution: RandomResolution
    images: int
    places: int
    batch_size: int
    epochs_end_batches: bool

    def updates(self, number: tf.Tensor | int) -> tf.Tensor:
        """Returns the update of each place of an epoch, int64 (places,).

        Args:
            number: Number of the epoch, from 0.
        """
        place = tf.range(self.places, dtype=tf.int64)
        if self.epochs_end_batches:
            return place // self.batch_size + number * -(-self.places // self.batch_size)
        return (place + number * self.places) // self.batch_size

    def rows(self, order: tf.Tensor, number: tf.Tensor | int) -> tf.Tensor:
        """Returns the record of each place of an epoch, int64 (places,).

        Args:
            order: Index of the image at each place, int64 (places,).
            number: Number of the epoch, from 0.
        """
        size = drawn_sizes(self.resolution, self.updates(number))
        view = nth_view(self.sizes, size, number + occurrence(order))
        return view * self.images + order


def with_records(records: np.ndarray, place: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns a batch of places with the fields of their records.

    Args:
        records: Records of a store, a structured array.
        place: Tensors by name, among them `row`, int64 (batch,): the record of each place.

    Example:
        >>> records = np.zeros(3, record_of(2, 4))
        >>> with_records(records, {"row": tf.constant([1, 2])})["logits"].shape
        TensorShape([2, 4])
    """
    names = [name for name in records.dtype.names if name != "checksum"]
    kinds = [records.dtype[name] for name in names]

    def read(row):
        chosen = records[row]
        return [np.ascontiguousarray(chosen[name]) for name in names]

    values = tf.numpy_function(read, [place["row"]], [kind.base for kind in kinds])
    values = [tf.ensure_shape(v, (None, *kind.shape)) for v, kind in zip(values, kinds)]
    return {**place, **dict(zip(names, values))}


def store_made_of(
    teacher: Teacher,
    examples: Examples,
    image_size: int,
    augmentation: Augmentation,
    resolution: RandomResolution,
    seed: int,
    in_parts: bool,
) -> dict:
    """Returns everything that determines a store, except the teacher's classifier.

    A run knows the classifier only after the calibration.

    Args:
        teacher: Teacher, calibrated or not.
        examples: Training images.
        image_size: Side in pixels of the images that the teacher is shown.
        augmentation: Bounds within which the views are drawn.
        resolution: Resolutions of the student.
        seed: Seed of the random views.
        in_parts: Whether the images are decoded in parts. A cache holds them whole.

    Example:
        >>> store_made_of(teacher, data.train, 32, how, resolution, 0, True)  # doctest: +SKIP
        {'teacher': '5f...', 'teacher image size': 96, ...}
    """
    images = examples.fingerprint()
    if augmentation.crop == "resized" and in_parts:
        images += " decoded in parts"  # earlier versions decoded whole images
    return {
        **teacher.made_of(),
        "images (set, ratio, split or seed)": images,
        "image size": image_size,
        "augmentation": asdict(augmentation),
        "resolutions": [resolution.base, *resolution.sizes],
        "seed": seed,
    }


def record_of(width: int, num_classes: int) -> np.dtype:
    """Returns the record of a view; see `TeacherStore.records`.

    Args:
        width: Number of the teacher's features.
        num_classes: Number of the teacher's logits.

    Example:
        >>> record_of(256, 10).itemsize
        585
    """
    return np.dtype(
        [
            ("features", np.float16, (width,)),
            ("logits", np.float32, (num_classes,)),
            ("crop", np.float32, 4),
            ("flip", np.bool_),
            ("color", np.float32, 3),
            ("size", np.int32),
        ]
    )


def needed_size(image_size: int, augmentation: Augmentation, resolution: RandomResolution) -> int:
    """Returns the side in pixels of views whose teacher's outputs are known: the student's largest.

    Only a padded view keeps the size that the teacher saw, because it is shifted by whole pixels.

    Args:
        image_size: Side in pixels of the views that the teacher saw.
        augmentation: Bounds within which the views are drawn.
        resolution: The sizes that the student sees.

    Example:
        >>> needed_size(128, Augmentation("resized"), ct.RandomResolution((24, 32, 40), 32))
        40
    """
    return image_size if augmentation.crop == "pad" else min(image_size, max(resolution.sizes))


def view_sizes(resolution: RandomResolution, views: int) -> np.ndarray:
    """Returns the size of each view, int32 (views,), each as often as the model draws it.

    More views only add sizes at the end.

    Args:
        resolution: Resolutions that the model draws.
        views: Number of views per image.

    Raises:
        ValueError: If `views` is below 1, or a size gets no view.

    Example:
        >>> view_sizes(ct.RandomResolution((24, 32, 40), 32), 4)
        array([24, 32, 40, 24], dtype=int32)
    """
    check_views(views)
    which = sizes_in_turn(resolution, views)
    left_out = np.setdiff1d(range(len(resolution.sizes)), which)
    if len(left_out):
        raise ValueError(
            f"With views={views} no view has the resolution {resolution.sizes[left_out[0]]}: give "
            "more views, or fewer resolutions."
        )
    return np.array(resolution.sizes, np.int32)[which]


def sizes_in_turn(resolution: RandomResolution, views: int) -> np.ndarray:
    """Returns the index of each view's size, int64 (views,), each as often as the model draws it.

    Args:
        resolution: Resolutions that the model draws.
        views: Number of views per image.

    Example:
        >>> sizes_in_turn(ct.RandomResolution((32,), 32), 3)
        array([0, 0, 0])
    """
    counts = np.zeros(len(resolution.sizes))
    which = np.zeros(views, int)
    for view in range(views):
        which[view] = np.argmax((view + 1) * resolution.probabilities - counts)
        counts[which[view]] += 1
    return which


def nth_view(sizes: np.ndarray, wanted: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """Returns the view of each place, int64 (n,): the views of its size in turn.

    Args:
        sizes: Size of each view, int32 (views,).
        wanted: Index of each place's size among the sizes in ascending order, int64 (n,).
        turn: Turn of each place's image, from 0, int64 (n,); see `ViewTurns`.

    Example:
        >>> sizes, wanted = np.int32([24, 32, 24]), tf.constant([0, 0, 0, 1], tf.int64)
        >>> nth_view(sizes, wanted, tf.range(4, dtype=tf.int64)).numpy()
        array([0, 2, 0, 1])
    """
    _, counts = np.unique(sizes, return_counts=True)
    starts = np.cumsum(counts) - counts
    by_size = np.argsort(sizes, kind="stable")
    return tf.gather(by_size, tf.gather(starts, wanted) + turn % tf.gather(counts, wanted))


def drawn_sizes(resolution: RandomResolution, steps: tf.Tensor) -> tf.Tensor:
    """Returns the index of the size that the model draws at each update, int64 (n,).

    Args:
        resolution: Resolutions that the model draws.
        steps: Numbers of the updates, int64 (n,), none smaller than the one before it.

    Example:
        >>> drawn_sizes(ct.RandomResolution((32,), 32), tf.constant([4, 4, 5], tf.int64)).numpy()
        array([0, 0, 0])
    """
    every = tf.range(steps[0], steps[-1] + 1)
    drawn = tf.map_fn(
        lambda step: tf.convert_to_tensor(resolution.draw(step), tf.int32),
        every,
        fn_output_signature=tf.int32,
    )
    which = tf.searchsorted(resolution.sizes, drawn, out_type=tf.int64)
    return tf.gather(which, steps - steps[0])


def occurrence(order: tf.Tensor) -> tf.Tensor:
    """Returns the number of times that each index of (n,) came before its place, int64 (n,).

    Example:
        >>> occurrence(tf.constant([7, 3, 7, 7])).numpy()
        array([0, 0, 1, 2])
    """
    by_index = tf.argsort(order, stable=True)
    ordered = tf.gather(order, by_index)
    places = tf.range(tf.size(order), dtype=tf.int64)
    before = places - tf.searchsorted(ordered, ordered, out_type=tf.int64)
    return tf.gather(before, tf.math.invert_permutation(by_index))
