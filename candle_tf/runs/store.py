"""The teacher's store of a run: how many views, where, and made from what."""

import time
from collections.abc import Callable

import tensorflow as tf
from candle_tf.model import CandleModel
from candle_tf.runs.run import Run
from candle_tf.teacher_store import TeacherStore, plan_views, record_of, store_made_of, view_sizes
from candle_tf.utils.distribution import from_first
from candle_tf.utils.files import Rows, check_room, locked
from candle_tf.utils.run_files import FLAG_FILE


def decide_views(run: Run):
    """Decides the number of teacher views of a run, and prints the number with the reason."""
    images, batch_size = len(run.examples.train), run.settings.batch_size

    def speed():
        shown = run.training_batches(num_examples=batch_size)
        return images_per_second(run.teacher.embed, next(iter(shown))[0])

    draws = run.updates * batch_size / images
    planned, reason = plan_views(images, draws, speed, run.resolution)
    if run.leads:
        print(f"teacher_views={planned}: {reason}")
    run.decide(teacher_views=int(from_first(run.strategy, planned)))


def images_per_second(embed: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor) -> float:
    """Returns the number of images that a network encodes per second, the better of two trials."""
    encode = tf.function(embed)
    encode(images)  # traced
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        encode(images).numpy()
        seconds.append(time.monotonic() - start)
    return len(images) / min(seconds)


def check_store(run: Run) -> dict:
    """Refuses, before the calibration, a store without room or with other contents.

    Returns:
        The sources of the store, as far as they are known before the calibration.

    Raises:
        ValueError: If the directory is a run's workdir, or holds outputs for other sources.
        OSError: If there is no room, or the directory cannot be written.
    """
    teacher, train, settings = run.teacher, run.examples.train, run.settings
    directory, augmentation, size = run.store_directory, run.augmentation, run.view_size
    made_of = store_made_of(teacher, train, size, augmentation, run.resolution, settings.seed)
    if (directory / FLAG_FILE).exists():
        raise ValueError(
            f"`teacher_store={directory}` is the workdir of a run: give the store a directory of "
            "its own."
        )
    rows = Rows(directory, record_of(teacher.width, len(run.examples.class_names)), made_of)
    total = settings.teacher_views * len(train)
    nbytes = total * rows.dtype.itemsize
    check_room(directory, nbytes - len(rows) * rows.dtype.itemsize)
    view_sizes(run.resolution, settings.teacher_views)  # refuses too few
    if settings.teacher_store and len(rows) < total:
        with locked(directory):  # that it can be written
            pass
    print(
        f"{total:,} views of {len(train):,} images by {settings.teacher}: "
        f"{nbytes / 1e6:,.0f} MB in {directory}"
    )
    return made_of


def complete_store(run: Run, model: CandleModel) -> TeacherStore:
    """Returns the store of a run, after the model's teacher has seen the views still missing."""
    store = TeacherStore(
        run.store_directory,
        model,
        run.examples.train,
        image_size=run.view_size,
        views=run.settings.teacher_views,
        augmentation=run.augmentation,
        seed=run.settings.seed,
    )
    store.complete(verbose=int(run.leads), strategy=run.strategy)
    return store
