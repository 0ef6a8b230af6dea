"""What a teacher makes of fixed views of the training images, kept on disk."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

import numpy as np
import tensorflow as tf
from candle_tf.data.examples import Examples
from candle_tf.data.pipeline import Share, training_places
from candle_tf.data.samplers import class_probabilities, epoch_length
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


class TeacherStore:
    """The features and logits of fixed views of the training images, in place of the teacher.

    After FKD (Shen & Xing, ECCV 2022, arXiv 2112.01528), which keeps soft labels: the views are
    drawn once, the teacher sees each once, and training goes through an image's views about in
    turn, from the first again after the last. An image has as many views as the sampler brings it
    in V epochs: of class-balanced batches it is the tail's few images that want many.

    With several resolutions each view has one, as often as the model draws it; a batch takes views
    of one size.

    Args:
        directory: of the records, made if it is not there. See `records`.
        model: whose teacher sees the views, at the sizes that the model draws.
        examples: the training images.
        image_size: side in pixels of the images in the batches.
        views: V.
        augmentation: what the views are drawn from.
        sampler: a name of `candle_tf.data.SAMPLERS`.
        seed: of the views.

    Raises:
        ValueError: if the directory holds another teacher's outputs, or those for other images,
            views or sizes; if there are too few views for the resolutions; for an unknown sampler.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        model: CandleModel,
        examples: Examples,
        image_size: int,
        views: int = 10,
        augmentation: Augmentation = Augmentation(),
        sampler: str = "instance_balanced",
        seed: int = 0,
    ):
        self.model, self.examples, self.image_size = model, examples, image_size
        self.augmentation, self.sampler, self.seed = augmentation, sampler, seed
        self.plan = plan_views(examples.labels, sampler, views, model.resolution)
        teacher, resolution = model.teacher, model.resolution
        made_of = sources(teacher, examples, image_size, augmentation, resolution, sampler, seed)
        made_of["teacher's classifier"] = fingerprint(teacher.classifier.get_weights())
        record = record_of(teacher.width, len(teacher.class_counts), augmentation)
        self.rows, self.verified = Rows(directory, record, made_of), False

    def __len__(self) -> int:
        """How many records are needed: about V n, for n images."""
        return len(self.plan)

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
        with locked(self.rows.directory) if writes else contextlib.nullcontext():
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
                            "the store (--teacher_views=0)."
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
        """The views from record `first` on, in parts of one size: (places, size)."""
        plan, labels = self.plan, self.examples.labels
        for epoch in range(plan["epoch"][first], plan["epoch"][-1] + 1):
            rows = np.flatnonzero(plan["epoch"] == epoch)
            key = tf.random.fold_in([self.seed, 5], epoch)
            drawn = draw_views(labels, len(rows), key, self.augmentation)
            for size in np.unique(plan["size"][rows]):
                todo = rows[(plan["size"][rows] == size) & (rows >= first)]
                some = {name: tf.gather(values, todo - rows[0]) for name, values in drawn.items()}
                index = plan["index"][todo]
                yield tf.data.Dataset.from_tensor_slices({"index": index, **some}), int(size)

    def records(self) -> np.ndarray:
        """What the teacher made of each view of `plan`: a structured array, mapped into memory.

        Its fields: features, float16 (width,); logits, float32 (classes,); the view's crop, flip,
        color and, with mixup, partner and share, as `candle_tf.data.views.draw_views` gives them;
        size, int32, the student's resolution.

        Raises:
            ValueError: if some are missing.
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
        seed: int = 0,
        first_example: int = 0,
        share: Share = Share(),
    ) -> tf.data.Dataset:
        """As `candle_tf.data.training_batches`, with the teacher's outputs beside the images.

        The sampler is that of the views.

        Returns:
            A dataset for `CandleModel.fit`: (x, labels), where x holds `images`, `features` and
            `logits` of the teacher, and `size`, the resolution, int32 (batch,).

        Raises:
            ValueError: if records are missing or damaged, or the start is not at a batch's: a
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
        records, labels = self.records(), self.examples.labels
        plan, sizes = self.plan, self.model.resolution.sizes
        of_size = np.searchsorted(sizes, plan["size"])
        by_image = np.lexsort((of_size, plan["index"]))  # stable: in turn
        counts = np.zeros((len(labels), len(sizes)), int)
        np.add.at(counts, (plan["index"], of_size), 1)
        starts = np.cumsum(counts).reshape(counts.shape) - counts
        names = [name for name in records.dtype.names if name != "checksum"]
        length = epoch_length(labels, self.sampler)
        comings = expected_comings(labels, self.sampler, 0.5)

        def in_turn(order, _, number):
            place = tf.range(length, dtype=tf.int64)
            if num_examples is None:  # each epoch ends with a batch that may be smaller
                steps = place // batch_size + number * -(-length // batch_size)
            else:
                steps = (place + number * length) // batch_size
            which = tf.stack([order, drawn_sizes(self.model.resolution, steps)], axis=1)
            came = tf.floor(tf.cast(number, tf.float64) * tf.gather(comings, order) + 1e-6)
            turn = tf.cast(came, tf.int64) + occurrence(order)  # about: draws are random
            turn %= tf.gather_nd(counts, which)
            return {"row": tf.gather(by_image, tf.gather_nd(starts, which) + turn)}

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

        places = training_places(labels, self.sampler, seed, in_turn, num_examples, first_example)
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
    sampler: str,
    seed: int,
) -> dict:
    """What a store follows from, but for the teacher's classifier: known before it is trained."""
    return {
        **teacher.identity(),
        "images (set, ratio, split or seed)": examples.digest(),
        "image size": image_size,
        "augmentation": asdict(augmentation),
        "resolutions": [resolution.base, *resolution.sizes],
        "sampler": sampler,
        "seed": seed,
    }


def record_of(width: int, num_classes: int, augmentation: Augmentation) -> np.dtype:
    """The record of a view; see `TeacherStore.records`."""
    mixed = [("partner", np.int64), ("share", np.float32)] if augmentation.mixup else []
    return np.dtype(
        [
            ("features", np.float16, width),
            ("logits", np.float32, num_classes),
            ("crop", np.float32, 4),
            ("flip", np.bool_),
            ("color", np.float32, 3),
            ("size", np.int32),
            *mixed,
        ]
    )


def plan_views(
    labels: np.ndarray, sampler: str, views: int, resolution: RandomResolution
) -> np.ndarray:
    """The views that a sampler's stream of `views` epochs asks for, in their order.

    More epochs only add to the end.

    Returns:
        A structured array of `index`, the image's; `epoch`, when it is due; `size`, the student's.

    Raises:
        ValueError: for no view, fewer of an image than there are resolutions, or an unknown
            sampler.
    """
    if views < 1:
        raise ValueError(f"views is {views} but must be at least 1.")
    comings = expected_comings(labels, sampler, 0.5)  # on average, for one that changes
    most = np.ceil(views * comings).astype(int) + 1
    index = np.repeat(np.arange(len(labels)), most)
    turn = np.arange(len(index)) - np.repeat(np.cumsum(most) - most, most)
    time = np.round(turn / comings[index], 9)  # in epochs
    due = time < views
    index, turn, time = index[due], turn[due], time[due]
    epoch = time.astype(int)
    view_sizes(resolution, np.bincount(index).min())  # that each image has a view of each size
    size = view_sizes(resolution, turn.max() + 1)[turn]
    order = np.lexsort((index, time, size, epoch))
    return np.rec.fromarrays([index[order], epoch[order], size[order]], names="index,epoch,size")


def expected_comings(labels: np.ndarray, sampler: str, progress: float) -> np.ndarray:
    """How often an epoch brings each image, float64 (n,), at a share of all epochs."""
    class_counts = np.bincount(labels)
    share = class_probabilities(class_counts, sampler, progress)[labels] / class_counts[labels]
    return epoch_length(labels, sampler) * share


def view_sizes(resolution: RandomResolution, views: int) -> np.ndarray:
    """The size of each view, int32 (views,): as often as it is drawn, also among the first few.

    Raises:
        ValueError: if a size gets no view.
    """
    counts = np.zeros(len(resolution.sizes))
    sizes = np.zeros(views, np.int32)
    for view in range(views):
        due = np.argmax((view + 1) * resolution.probabilities - counts)
        counts[due] += 1
        sizes[view] = resolution.sizes[due]
    if not counts.all():
        raise ValueError(
            f"--teacher_views leave an image with {views}, and none at resolution "
            f"{resolution.sizes[int(np.argmin(counts))]}: give more views, or fewer resolutions."
        )
    return sizes


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
