"""The plan of a run before its long work: updates, views, and room for the views."""

import math
from collections.abc import Callable

import tensorflow as tf
from candle_tf.networks.surgery import renewed
from candle_tf.resolution import RandomResolution
from candle_tf.runs.run import TIMED, Run
from candle_tf.student_model import StudentModel
from candle_tf.teacher_store import (
    ENOUGH,
    FEWEST,
    needed_size,
    record_of,
    sizes_in_turn,
    store_made_of,
    view_sizes,
)
from candle_tf.utils.distribution import from_first
from candle_tf.utils.files import Rows, check_room, locked
from candle_tf.utils.progress import duration
from candle_tf.utils.run_files import FLAG_FILE
from candle_tf.utils.throughput import seconds_per_item

MOST_SECONDS = 1800.0  # for the teacher before the training


def decide_epochs(run: Run, student: tf.keras.Model):
    """Plans the epochs of a run from its `minutes`, and prints the plan.

    Calibration and teacher views may take half of the time. What they leave is for the updates.

    Args:
        run: Run whose settings give `minutes`.
        student: Student, whose weights stay as they are.

    Raises:
        ValueError: If the teacher needs more than half of the time.
    """
    settings, seconds = run.settings, 60 * run.given.minutes
    print("Measuring the speed of teacher and student, for a plan of the minutes")
    images, teacher_seconds = len(run.examples.train), 0.0
    step = seconds_per_update(run, student)
    if run.teacher is not None:
        per_image = 1 / run.teacher_speed
        views = settings.teacher_views
        if views is None:
            views = affordable_views(images * per_image, most_seconds(run))
        if not views:  # the teacher sees every batch
            step += settings.batch_size / run.live_teacher_speed
        teacher_seconds = (settings.calibration_views + views) * images * per_image
        if teacher_seconds > seconds / 2:
            raise ValueError(
                f"`minutes={run.given.minutes:g}` is too short: the teacher needs "
                f"{duration(teacher_seconds)}, and half of the time is for the updates. Give more "
                "minutes, or a smaller `teacher_image_size`."
            )
    updates = max(1, int((seconds - teacher_seconds) / step))
    steps = min(settings.steps_per_epoch, updates)
    run.decide(epochs=max(1, updates // steps), steps_per_epoch=steps)
    run.settings.check()
    print(
        f"minutes={run.given.minutes:g}: {duration(teacher_seconds)} for the teacher, then "
        f"{run.updates:,} updates of {settings.batch_size} images at {step:.2f} s"
    )


def seconds_per_update(run: Run, student: tf.keras.Model) -> float:
    """Returns the seconds that an update takes without the teacher, with the reading of images."""
    tried = StudentModel(renewed(student), resolutions=run.settings.resolutions)
    tried.compile("adam", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    size, count = run.view_size, TIMED * run.settings.batch_size
    if run.method.distills and run.settings.teacher_views != 0:  # the batches of a store
        size = needed_size(size, run.augmentation, run.resolution)
    batches = run.training_batches(image_size=size, num_examples=count)
    return seconds_per_item((tried.train_on_batch(*batch) for batch in batches), at_most=10.0)


def decide_views(run: Run):
    """Decides the number of teacher views of a run, and prints the number with the reason."""
    images, batch_size = len(run.examples.train), run.settings.batch_size
    draws = run.updates * batch_size / images
    most = most_seconds(run)
    planned, reason = plan_views(images, draws, lambda: run.teacher_speed, run.resolution, most)
    views, store = int(from_first(run.strategy, planned)), run.settings.teacher_store
    if run.leads:
        unused = f"; {store} is not used" if store and not views else ""
        print(f"teacher_views={planned}: {reason}{unused}")
    run.decide(teacher_views=views, teacher_store=store if views else None)


def affordable_views(seconds: float, most_seconds: float) -> int:
    """Returns the number of views that the teacher can see in time, from `FEWEST` to `ENOUGH`.

    Args:
        seconds: Seconds that the teacher needs for one view of each image.
        most_seconds: Seconds that the teacher may take, if `FEWEST` views allow it.

    Example:
        >>> [affordable_views(seconds, most_seconds=100.0) for seconds in (1.0, 10.0, 100.0)]
        [20, 10, 4]
    """
    return int(min(ENOUGH, max(FEWEST, most_seconds // seconds)))


def plan_views(
    images: int,
    draws: float,
    speed: Callable[[], float],
    resolution: RandomResolution,
    most_seconds: float = MOST_SECONDS,
) -> tuple[int, str]:
    """Returns the number of views that the teacher should see beforehand, and the reason in words.

    The number is `ENOUGH`, or less if the teacher would need more than `most_seconds`, but at least
    `FEWEST`. If the training shows each image no more often than this, the number is 0: the
    teacher sees each batch.

    Args:
        images: Number of training images.
        draws: Number of times that the training shows an image, on average.
        speed: Function that measures how many images per second the teacher sees.
        resolution: Resolutions, each of which needs a view.
        most_seconds: Seconds that the teacher may take, if `FEWEST` views allow it.

    Example:
        >>> plan_views(200, 12.5, lambda: 50.0, ct.RandomResolution((32,), 32))[0]
        0
    """
    live = 0, f"training shows each image {draws:.1f} times, each time in a fresh view"
    if draws <= FEWEST:
        return live
    images_per_second = speed()
    seconds = images / images_per_second
    views = affordable_views(seconds, most_seconds)
    while len(resolution.sizes) > len(set(sizes_in_turn(resolution, views))):
        views += 1
    if draws <= views:
        return live
    return views, (
        f"the teacher sees {views} views of each of the {images:,} images once, "
        f"{duration(views * seconds)} at {images_per_second:,.0f} images a second; training shows "
        f"each image {draws:,.0f} times"
    )


def most_seconds(run: Run) -> float:
    """Returns the most seconds for the teacher's views: a third of the minutes of the run."""
    return min(MOST_SECONDS, 20 * (run.given.minutes or math.inf))


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
    in_parts = train.in_parts and not settings.cache  # the run fills its cache later
    how = (size, augmentation, run.resolution, settings.seed, in_parts)
    made_of = store_made_of(teacher, train, *how)
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
        f"The teacher's outputs for {total:,} views of {len(train):,} images need "
        f"{nbytes / 1e6:,.0f} MB in {directory}"
    )
    return made_of
