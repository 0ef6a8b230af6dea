"""Keras' `fit` with a run's checkpoints, logs and batches, over restarts and batches left out."""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import tensorflow as tf
from candle_tf import data
from candle_tf.methods import Method
from candle_tf.model import StudentModel
from candle_tf.runs.checkpoints import Checkpoints, NotFinite
from candle_tf.runs.inputs import indices_of, place_of, steps_per_epoch, training_stream
from candle_tf.runs.settings import Settings
from candle_tf.teacher_store import TeacherStore
from candle_tf.utils.distribution import build_strategy, distributed, leads
from candle_tf.utils.files import read_json, write_text
from candle_tf.utils.run_files import HISTORY_FILE, NOT_FINITE, SKIPPED_FILE

MOST_SKIPPED = 10  # batches whose loss was not finite


def fit(
    settings: Settings,
    method: Method,
    model: StudentModel,
    examples: data.LongTailedData,
    store: TeacherStore | None,
    name: str,
    first_epoch: int,
    epochs: int,
) -> float:
    """Trains from `first_epoch`, or from the last checkpoint in `name`, to `epochs`.

    Returns:
        The seconds that it took, over all restarts.

    Raises:
        NotFinite: which says where the batch is noted, and what is left.
        SystemExit: after SIGTERM, when the update is saved.
    """
    workdir = Path(settings.workdir)
    steps = steps_per_epoch(settings, examples)
    strategy = build_strategy(settings.strategy)
    leader = leads(strategy)
    skips = settings.on_nan == "skip"
    checkpoints = Checkpoints(model, workdir / name, settings.checkpoint_every, strategy, skips)
    checkpoints.updates = max(checkpoints.updates, first_epoch * steps)
    skipped_file = workdir / SKIPPED_FILE
    skipped = []
    if skipped_file.exists():
        skipped = read_json(skipped_file, list, "delete it, and what it named is skipped anew")
    if checkpoints.updates < epochs * steps:
        print(
            f"Training {settings.student} by {settings.method}: epochs of {steps} updates; the "
            "first update waits for TensorFlow to build its graph"
        )
    with checkpoints.saving_on_sigterm():
        if skips and checkpoints.updates == first_epoch * steps:
            checkpoints.save("the beginning")
        while checkpoints.updates < epochs * steps:
            epoch, into = divmod(checkpoints.updates, steps)
            try:
                stream = partial(
                    training_stream, settings, examples, checkpoints.updates, store, skipped
                )
                model.fit(
                    distributed(strategy, stream),
                    initial_epoch=epoch,
                    epochs=epoch + 1 if into else epochs,  # what was begun first
                    steps_per_epoch=steps - into,
                    callbacks=[
                        tf.keras.callbacks.LambdaCallback(on_epoch_end=checkpoints.complete),
                        *method.callbacks(settings.epochs),
                        *(loggers(workdir, epoch) if leader else ()),
                        checkpoints,
                    ],
                    verbose=int(leader),
                )
            except NotFinite as error:
                skipped = leave_out(settings, checkpoints, examples, skipped, error)
                checkpoints.restore()
                print(f"Going on from update {checkpoints.updates}.")
    return checkpoints.seconds


def leave_out(
    settings: Settings,
    checkpoints: Checkpoints,
    examples: data.LongTailedData,
    skipped: Sequence[int],
    error: NotFinite,
) -> list[int]:
    """Notes the batch of an update whose loss was not finite, and the state that it left.

    Returns:
        The places of the batches to leave out, with its own.

    Raises:
        NotFinite: where none is to be left out, or no more; says where it is noted.
    """
    place = place_of(checkpoints.updates, skipped)
    workdir, indices = Path(settings.workdir), indices_of(settings, examples, place, skipped)
    note = {"update": checkpoints.updates + 1, "indices": indices}
    note["labels"] = examples.train.labels[indices].tolist()
    if examples.train.on_disk:
        note["files"] = [os.fsdecode(examples.train.images[i].numpy()) for i in indices]
    noted = workdir / NOT_FINITE / f"batch_{place}"
    writes = leads(checkpoints.strategy)
    if writes:
        noted.mkdir(parents=True, exist_ok=True)
        write_text(noted / "batch.json", json.dumps(note, indent=1) + "\n")
    checkpoints.write(noted / "state")
    said = f"{error} Its images and the state after it are in {noted}"
    if settings.on_nan == "stop":
        raise NotFinite(
            f"{said}; the last good state is {checkpoints.last}. Lower --learning_rate and give "
            f"another --workdir; or leave out such batches, up to {MOST_SKIPPED}, by --on_nan=skip."
        ) from error
    if len(skipped) == MOST_SKIPPED:
        raise NotFinite(
            f"{said}; {MOST_SKIPPED} are left out already, so it is not the batches: lower "
            "--learning_rate and give another --workdir."
        ) from error
    print(f"\n{said}; it is left out.")
    if writes:
        write_text(workdir / SKIPPED_FILE, json.dumps([*skipped, place]) + "\n")
    return [*skipped, place]


def loggers(workdir: Path, first_epoch: int) -> list[tf.keras.callbacks.Callback]:
    """Logs by epoch, without the rows from `first_epoch` on, which a killed run may have left."""
    path = workdir / HISTORY_FILE
    if first_epoch and path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [line for line in lines[1:] if int(line.partition(",")[0]) < first_epoch]
        write_text(path, "".join(lines[:1] + rows))
    return [
        tf.keras.callbacks.CSVLogger(path, append=first_epoch > 0),
        tf.keras.callbacks.TensorBoard(workdir / "tensorboard", write_graph=False),
    ]
