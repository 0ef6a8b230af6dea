"""What a teacher makes of fixed views of the training images, kept on disk."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

import numpy as np
import tensorflow as tf
from candle_tf.data.checks import check_examples
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

ENOUGH = 20  # views of an image: more gave no accuracy on CIFAR-10-LT (docs/results.md)
FEWEST = 4
MOST_SECONDS = 1800.0  # of a teacher at work before the training


class TeacherStore:
    """The features and logits of fixed views of the training images, in place of the teacher.

    After FKD (Shen & Xing, ECCV 2022, arXiv 2112.01528), which keeps soft labels: the views are
    drawn once, the teacher sees each view once, and training goes through the views of an image
    in turn, from the first again after the last. Mixup is left to the model, which mixes a batch
    afresh each time, so a few views of an image serve a training of any length and any sampler.

    With several resolutions each view has one of them, as often as the model draws it; a batch
    takes views of one resolution.

    Args:
        directory: Directory of the records, made if it is missing. See `records`.
        model: `CandleModel` whose teacher sees the views, at the sizes that the model draws.
        examples: Training images.
        image_size: Side in pixels of the images in the batches.
        views: Number of views of each image.
        augmentation: Bounds within which the views are drawn.
        seed: Seed of the random views.

    Raises:
        ValueError: If the directory holds another teacher's outputs, or outputs for other images,
            views or sizes; if there are fewer views than resolutions.

    Example:
        >>> store = ct.TeacherStore("store/", model, data.train, image_size=32)  # doctest: +SKIP
        >>> store.complete()  # doctest: +SKIP
        >>> model.fit(store.training_batches(128), epochs=40)  # doctest: +SKIP
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        model: CandleModel,
        examples: Examples,
        image_size: int,
        views: int = ENOUGH,
        augmentation: Augmentation = Augmentation(),
        seed: int = 0,
    ):
        check_examples(examples, model.student.output_shape[-1], "TeacherStore")
        self.model, self.examples, self.image_size = model, examples, image_size
        self.augmentation, self.seed = augmentation, seed
        self.sizes = view_sizes(model.resolution, views)
        teacher, resolution = model.teacher, model.resolution
        made_of = sources(teacher, examples, image_size, augmentation, resolution, seed)
        made_of["teacher's classifier"] = fingerprint(teacher.classifier.get_weights())
        record = record_of(teacher.width, len(teacher.class_counts))
        self.rows, self.verified = Rows(directory, record, made_of), False

    def __len__(self) -> int:
        """Returns the number of records that are needed: views times images."""
        return len(self.sizes) * len(self.examples)

    @property
    def nbytes(self) -> int:
        """The size of the records on disk."""
        return len(self) * self.rows.dtype.itemsize

    def complete(
        self,
        batch_size: int = 128,
        verbose="auto",
        strategy: tf.distribute.Strategy = ALONE,
    ):
        """Has the teacher see the views that are not there yet.

        Args:
            batch_size: of a replica.
            strategy: whose replicas each show it their part; the first worker writes.

        Raises:
            ValueError: if another process is at it, or the features exceed half precision.
            OSError: if there is no room for them.
        """
        self.rows.check()
        if from_first(strategy, len(self.rows)) >= len(self):
            return
        teacher = on_all_replicas(strategy, self.model.teacher)
        writes = leads(strategy)
        with reading_errors(), locked(self.rows.directory) if writes else contextlib.nullcontext():
            if writes:
                self.rows.claim(len(self))
            done = from_first(strategy, len(self.rows))
            progress = tf.keras.utils.Progbar(
                len(self) - done, verbose=int(verbose != 0), unit_name="view"
            )
            batch_size *= strategy.num_replicas_in_sync
            for places, size in self.places(done):
                teacher_size = self.model.teacher_size(size)
                images = distributed(strategy, partial(self.images, places, batch_size))
                for place, batch in zip(places.batch(batch_size), images):
                    features, logits = teacher(batch, teacher_size)
                    records = np.zeros(len(features), self.rows.dtype)
                    records["features"], records["logits"] = features, logits
                    records["size"] = size
                    for name in place.keys() - {"index"}:
                        records[name] = place[name]
                    if not np.isfinite(records["features"]).all():
                        raise ValueError(
                            "The teacher's features exceed half precision (65,504): do without "
                            "the store (teacher_views=0)."
                        )
                    if writes:
                        self.rows.append(records)
                    progress.add(len(records))
        meet(strategy)  # all records are there

    def images(self, places: tf.data.Dataset, batch_size: int, share: Share) -> tf.data.Dataset:
        """The views at a worker's part of the places, in batches of a replica."""
        seen = self.take(share.of(places, batch_size), share.batch_size(batch_size))
        return seen.map(lambda _, images: images).prefetch(tf.data.AUTOTUNE)

    def places(self, first: int) -> Iterator[tuple[tf.data.Dataset, int]]:
        """Yields places and size of the records from `first` on, one view of each image a time."""
        n = len(self.examples)
        for view in range(first // n, len(self.sizes)):
            key = tf.random.fold_in([self.seed, 5], view)
            places = {"index": tf.range(n, dtype=tf.int64), **draw_views(n, key, self.augmentation)}
            todo = {name: values[max(first - view * n, 0) :] for name, values in places.items()}
            yield tf.data.Dataset.from_tensor_slices(todo), int(self.sizes[view])

    def records(self) -> np.ndarray:
        """Returns what the teacher made of each view: a structured array, mapped into memory.

        Record `view * n + i` is of image i of n. Fields: features, float16 (width,); logits,
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
        num_examples: int | None = None,
        sampler: str = "instance_balanced",
        seed: int = 0,
        first_example: int = 0,
        share: Share = Share(),
    ) -> tf.data.Dataset:
        """Returns the batches of `candle_tf.data.training_batches`, with the teacher's outputs.

        Returns:
            A dataset for `CandleModel.fit`: (x, labels), where x holds `images`, `features` and
            `logits` of the teacher, and `size`, the resolution, int32 (batch,).

        Raises:
            ValueError: If records are missing or damaged, or the start is not at a batch's: a
                batch has one size.
        """
        if first_example % batch_size:
            raise ValueError(
                f"first_example is {first_example} but must be a multiple of the batch size, "
                f"{batch_size}."
            )
        if not self.verified:  # once: they may be many
            self.rows.verify()
            self.verified = True
        records, labels, resolution = self.records(), self.examples.labels, self.model.resolution
        names = [name for name in records.dtype.names if name != "checksum"]
        length = epoch_length(labels, sampler)

        def in_turn(order, _, number):
            place = tf.range(length, dtype=tf.int64)
            if num_examples is None:  # each epoch ends with a batch that may be smaller
                steps = place // batch_size + number * -(-length // batch_size)
            else:
                steps = (place + number * length) // batch_size
            view = nth_view(self.sizes, drawn_sizes(resolution, steps), number + occurrence(order))
            return {"row": view * len(labels) + order}

        def read(row):
            chosen = records[row]
            return [np.ascontiguousarray(chosen[name]) for name in names]

        def of_record(place):
            kinds = [records.dtype[name] for name in names]
            values = tf.numpy_function(read, [place["row"]], [kind.base for kind in kinds])
            values = [tf.ensure_shape(v, (None, *kind.shape)) for v, kind in zip(values, kinds)]
            return {**place, **dict(zip(names, values))}

        def batch(place, images):
            x = {name: place[name] for name in ("features", "logits", "size")}
            return {"images": images, **x}, tf.gather(labels, place["index"])

        places = training_places(labels, sampler, seed, in_turn, num_examples, first_example)
        places, size = share.of(places, batch_size), share.batch_size(batch_size)
        seen = places.batch(size).map(of_record).unbatch()
        seen = seen.apply(tf.data.experimental.assert_cardinality(places.cardinality()))
        return self.take(seen, size).map(batch).prefetch(tf.data.AUTOTUNE)

    def take(self, places: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
        return take_views(places, self.examples, self.image_size, batch_size, self.augmentation)


def sources(
    teacher: Teacher,
    examples: Examples,
    image_size: int,
    augmentation: Augmentation,
    resolution: RandomResolution,
    seed: int,
) -> dict:
    """Returns what a store follows from, but for the teacher's classifier, which comes later."""
    return {
        **teacher.identity(),
        "images (set, ratio, split or seed)": examples.digest(),
        "image size": image_size,
        "augmentation": asdict(augmentation),
        "resolutions": [resolution.base, *resolution.sizes],
        "seed": seed,
    }


def record_of(width: int, num_classes: int) -> np.dtype:
    """Returns the record of a view; see `TeacherStore.records`."""
    return np.dtype(
        [
            ("features", np.float16, width),
            ("logits", np.float32, num_classes),
            ("crop", np.float32, 4),
            ("flip", np.bool_),
            ("color", np.float32, 3),
            ("size", np.int32),
        ]
    )


def view_sizes(resolution: RandomResolution, views: int) -> np.ndarray:
    """Returns the size of each view, int32 (views,): as often as it is drawn, from the start on.

    Raises:
        ValueError: For no view, or if a size gets no view.
    """
    if views < 1:
        raise ValueError(f"views is {views} but must be at least 1.")
    which = shares_in_turn(resolution, views)
    left_out = np.setdiff1d(range(len(resolution.sizes)), which)
    if len(left_out):
        raise ValueError(
            f"With views={views} no view has the resolution {resolution.sizes[left_out[0]]}: give "
            "more views, or fewer resolutions."
        )
    return np.array(resolution.sizes, np.int32)[which]


def shares_in_turn(resolution: RandomResolution, views: int) -> np.ndarray:
    """Returns which of the sizes each view has, int64 (views,), each as often as it is drawn."""
    counts = np.zeros(len(resolution.sizes))
    which = np.zeros(views, int)
    for view in range(views):
        which[view] = np.argmax((view + 1) * resolution.probabilities - counts)
        counts[which[view]] += 1
    return which


def plan_views(
    images: int, draws: float, speed: Callable[[], float], resolution: RandomResolution
) -> tuple[int, str]:
    """Returns how many views of each image a teacher shall see beforehand, and why in words.

    As many as help (`ENOUGH`), but no more than the teacher sees in half an hour, and at least
    `FEWEST`. 0, a live teacher, where the training shows each image no more often than that.

    Args:
        images: Number of training images.
        draws: How often the training shows an image, on average.
        speed: Measures how many images a second the teacher sees; called where that matters.
        resolution: Resolutions, each of which needs a view.
    """
    live = 0, f"training shows each image {draws:.1f} times, each time in a fresh view"
    if draws <= FEWEST:
        return live
    images_per_second = speed()
    seconds = images / images_per_second
    views = int(min(ENOUGH, max(FEWEST, MOST_SECONDS // seconds)))
    while len(resolution.sizes) > len(set(shares_in_turn(resolution, views))):
        views += 1
    if draws <= views:
        return live
    return views, (
        f"the teacher sees {views} views of each of the {images:,} images once, "
        f"{duration(views * seconds)} at {images_per_second:,.0f} images a second; training shows "
        f"each image {draws:,.0f} times"
    )


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def nth_view(sizes: np.ndarray, wanted: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """Returns the view of each place, int64 (n,): the views of its size in turn.

    Args:
        sizes: Size of each view, int32 (views,).
        wanted: Which of the sizes, in ascending order, each place has, int64 (n,).
        turn: How many views of its image came before, int64 (n,).
    """
    _, counts = np.unique(sizes, return_counts=True)
    starts = np.cumsum(counts) - counts
    by_size = np.argsort(sizes, kind="stable")
    return tf.gather(by_size, tf.gather(starts, wanted) + turn % tf.gather(counts, wanted))


def drawn_sizes(resolution: RandomResolution, steps: tf.Tensor) -> tf.Tensor:
    """Which of the sizes is drawn at each of `steps`, which do not fall: int64 (n,)."""
    every = tf.range(steps[0], steps[-1] + 1)
    drawn = tf.map_fn(
        lambda step: tf.convert_to_tensor(resolution.draw(step), tf.int32),
        every,
        fn_output_signature=tf.int32,
    )
    which = tf.searchsorted(resolution.sizes, drawn, out_type=tf.int64)
    return tf.gather(which, steps - steps[0])


def occurrence(order: tf.Tensor) -> tf.Tensor:
    """How often each index of (n,) came before in it: int64 (n,)."""
    by_index = tf.argsort(order, stable=True)
    ordered = tf.gather(order, by_index)
    places = tf.range(tf.size(order), dtype=tf.int64)
    before = places - tf.searchsorted(ordered, ordered, out_type=tf.int64)
    return tf.gather(before, tf.math.invert_permutation(by_index))
