"""The plan of a run before its long work: updates, views, and room for the views."""

import math

import tensorflow as tf
from candle_tf.networks.surgery import renewed
from candle_tf.runs.run import TIMED, Run
from candle_tf.student_model import StudentModel
from candle_tf.teacher_store import (
    MOST_SECONDS,
    affordable_views,
    needed_size,
    plan_views,
    record_of,
    store_made_of,
    view_sizes,
)
from candle_tf.utils.distribution import from_first
from candle_tf.utils.files import Rows, check_room, locked
from candle_tf.utils.progress import duration
from candle_tf.utils.run_files import FLAG_FILE
from candle_tf.utils.throughput import seconds_per_item


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
    if run.leads:
        print(f"teacher_views={planned}: {reason}")
    run.decide(teacher_views=int(from_first(run.strategy, planned)))


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
