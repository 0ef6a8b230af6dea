"""The compiled model of a run, and Keras' `fit` over restarts and batches left out."""

import dataclasses
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import tensorflow as tf
from candle_tf.methods import Setup, training_loss
from candle_tf.model import CandleModel
from candle_tf.networks.surgery import renewed, with_synchronized_batch_norm
from candle_tf.runs.build import computing_in, mirrored_teacher
from candle_tf.runs.checkpoints import Checkpoints, NotFinite
from candle_tf.runs.run import Run, place_of
from candle_tf.student_model import StudentModel
from candle_tf.teacher_store import TeacherStore
from candle_tf.utils.distribution import distributed
from candle_tf.utils.files import read_json, write_text
from candle_tf.utils.optimizers import build_optimizer
from candle_tf.utils.run_files import HISTORY_FILE, NOT_FINITE, SKIPPED_FILE
from candle_tf.utils.throughput import Throughput, seconds_per_item

UNTIMED = 200  # a shorter training is not worth the seconds that timing its parts needs
MOST_SKIPPED = 10  # batches whose loss was not finite


def build_model(
    run: Run, student: tf.keras.Model, setup: Setup, optimizer: str | None = None
) -> StudentModel:
    """Returns the compiled model that `fit` trains.

    Args:
        run: Run that the model belongs to.
        student: Student with the weights that its training starts from.
        setup: Networks and numbers that the method works with; the learning rate is annealed over
            its epochs.
        optimizer: Optimizer of the binary weights; the run's own by default.
    """
    settings, method = run.settings, run.method
    if settings.sync_batch_norm:
        student = with_synchronized_batch_norm(student)
    with run.strategy.scope(), computing_in(settings.precision):
        if settings.strategy:  # in layers whose variables all replicas have
            student, setup = renewed(student), mirrored_setup(setup)
        model = method.model(method, student, setup)
        model.compile(
            build_optimizer(
                optimizer or settings.binary_optimizer, annealed_rate(run, setup.epochs)
            ),
            loss=training_loss(method, setup),
            metrics=["accuracy"],
        )
    return model


def annealed_rate(run: Run, epochs: int) -> tf.keras.optimizers.schedules.CosineDecay:
    """Returns the run's learning rate, which falls to 0 over some epochs after its warm-up."""
    rate, warmup, steps = (
        run.settings.learning_rate,
        run.settings.warmup_epochs,
        run.steps_per_epoch,
    )
    return tf.keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else rate,
        (epochs - warmup) * steps,
        warmup_target=rate,
        warmup_steps=warmup * steps,
    )


def mirrored_setup(setup: Setup) -> Setup:
    """Returns the setup with its networks in new layers."""
    teacher, first = setup.teacher, setup.first_model
    return dataclasses.replace(
        setup,
        teacher=teacher and mirrored_teacher(teacher),
        first_model=first and StudentModel(renewed(first.student)),
    )


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


def fit(
    run: Run,
    model: StudentModel,
    store: TeacherStore | None,
    name: str,
    first_epoch: int,
    epochs: int,
) -> float:
    """Trains from the last checkpoint, or from the first epoch where there is none.

    Args:
        run: Run that the training belongs to.
        model: Compiled model.
        store: Store of the teacher's outputs, for a run with `teacher_views`.
        name: Directory of the checkpoints in the workdir.
        first_epoch: Number of the first epoch, from 0.
        epochs: Number of the epoch to stop before.

    Returns:
        The seconds of training, over all restarts.

    Raises:
        NotFinite: If a loss is NaN or Inf; says where the batch is noted, and what to do.
        SystemExit: After SIGTERM, when the update is saved.
        KeyboardInterrupt: After Ctrl-C, when the update is saved.
    """
    settings, workdir, steps = run.settings, run.workdir, run.steps_per_epoch
    skips = settings.on_nan == "skip"
    checkpoints = Checkpoints(model, workdir / name, settings.checkpoint_every, run.strategy, skips)
    checkpoints.updates = max(checkpoints.updates, first_epoch * steps)
    skipped_file = workdir / SKIPPED_FILE
    skipped = []
    if skipped_file.exists():
        skipped = read_json(skipped_file, list, "delete it, and the run finds such batches again")
    if checkpoints.updates < epochs * steps:
        print(
            f"Training {settings.student} by {settings.method}: epochs of {steps} updates"
            f"{f', from update {checkpoints.updates} on' if checkpoints.updates else ''}; the "
            "first update waits for TensorFlow to build its graph"
        )
        if run.method.mixup:
            print("Accuracy below is that of mixed training images, which are harder than others")
    speed = throughput(run, model, store, checkpoints.updates, epochs)
    with checkpoints.saving_on_signals():
        if skips and checkpoints.updates == first_epoch * steps:
            checkpoints.save("the beginning")
        while checkpoints.updates < epochs * steps:
            epoch, into = divmod(checkpoints.updates, steps)
            speed.left = epochs * steps - checkpoints.updates
            try:
                stream = partial(run.training_stream, checkpoints.updates, store, skipped)
                model.fit(
                    distributed(run.strategy, stream),
                    initial_epoch=epoch,
                    epochs=epoch + 1 if into else epochs,  # what was begun first
                    steps_per_epoch=steps - into,
                    callbacks=[
                        tf.keras.callbacks.LambdaCallback(on_epoch_end=checkpoints.complete),
                        *run.method.callbacks(settings.epochs),
                        *(loggers(workdir, epoch) if run.leads else ()),
                        speed,
                        checkpoints,
                    ],
                    verbose=0,  # `speed` prints
                )
            except NotFinite as error:
                skipped = leave_out(run, checkpoints, skipped, error)
                checkpoints.restore()
                print(f"Continuing from update {checkpoints.updates}.")
    run.throughput = speed.results or run.throughput
    return checkpoints.seconds


def throughput(
    run: Run, model: StudentModel, store: TeacherStore | None, done: int, epochs: int
) -> Throughput:
    """Returns the callback that prints a training's epochs, after it timed the parts.

    Reading and a live teacher are each timed alone, unless the training has few updates.

    Args:
        run: Run that the training belongs to.
        model: Compiled model.
        store: Store of the teacher's outputs, for a run with `teacher_views`.
        done: Number of updates that are done.
        epochs: Number of the epoch to stop before.
    """
    parts, batch_size = {}, run.settings.batch_size
    updates = epochs * run.steps_per_epoch - done
    if updates >= UNTIMED and run.share.workers == 1:
        batches = iter(run.training_stream(store=store, share=run.share))
        parts["reading"] = seconds_per_item(batches) * run.share.replicas
        live = run.method.distills and run.teacher is not None and store is None
        parts["teacher"] = batch_size / run.live_teacher_speed if live else 0.0
    return Throughput(batch_size, updates, epochs, parts, show=run.leads)


def leave_out(
    run: Run, checkpoints: Checkpoints, skipped: Sequence[int], error: NotFinite
) -> list[int]:
    """Writes down the batch of an update whose loss was not finite, and the state after it.

    Args:
        run: Run that the training belongs to.
        checkpoints: Checkpoints of the training, which know the update.
        skipped: Places of the batches that are left out already.
        error: Error of the update.

    Returns:
        The places of the batches to leave out, with this one.

    Raises:
        NotFinite: If no batch may be left out, or no more batches; says where it is noted.
    """
    place, train = place_of(checkpoints.updates, skipped), run.examples.train
    indices = run.indices_of(place, skipped)
    note = {"update": checkpoints.updates + 1, "indices": indices}
    note["labels"] = train.labels[indices].tolist()
    if train.on_disk:
        note["files"] = [os.fsdecode(train.images[i].numpy()) for i in indices]
    noted = run.workdir / NOT_FINITE / f"batch_{place}"
    if run.leads:
        noted.mkdir(parents=True, exist_ok=True)
        write_text(noted / "batch.json", json.dumps(note, indent=1) + "\n")
    checkpoints.write(noted / "state")
    said = f"{error} Its images and the state after it are in {noted}"
    if run.settings.on_nan == "stop":
        raise NotFinite(
            f"{said}; the last good state is {checkpoints.last}. Lower `learning_rate` and give "
            f"another `workdir`; or leave out such batches, up to {MOST_SKIPPED}, by "
            "`on_nan=skip`."
        ) from error
    if len(skipped) == MOST_SKIPPED:
        raise NotFinite(
            f"{said}; {MOST_SKIPPED} batches are left out already, so the batches are not the "
            "cause: lower `learning_rate` and give another `workdir`."
        ) from error
    print(f"\n{said}; it is left out.")
    if run.leads:
        write_text(run.workdir / SKIPPED_FILE, json.dumps([*skipped, place]) + "\n")
    return [*skipped, place]


def loggers(workdir: Path, first_epoch: int) -> list[tf.keras.callbacks.Callback]:
    """Returns the loggers by epoch, and removes the rows of a killed run from `first_epoch` on."""
    path = workdir / HISTORY_FILE
    if first_epoch and path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [line for line in lines[1:] if int(line.partition(",")[0]) < first_epoch]
        write_text(path, "".join(lines[:1] + rows))
    return [
        tf.keras.callbacks.CSVLogger(path, append=first_epoch > 0),
        tf.keras.callbacks.TensorBoard(workdir / "tensorboard", write_graph=False),
    ]
