"""What a killed run goes on from: saved by epoch and by update, and taken up again."""

import contextlib
import json
import os
import shutil
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.model import StudentModel
from candle_tf.utils.distribution import agreed, first_line, from_first, meet, share_of
from candle_tf.utils.run_files import CHECKPOINTS, METRICS_FILE

INTERRUPTED = 75  # exit code of a run that SIGTERM has ended: the same command goes on
NOT_BEGUN = 0, {}  # an epoch, as `Checkpoints.of_epoch` sums it up
AGREE_EVERY = 10  # updates of several workers, on whether SIGTERM has come to one: it costs a sum


class NotFinite(ValueError):
    """The loss became NaN or Inf."""


class Checkpoints(tf.keras.callbacks.Callback):
    """Saves all that the next update depends on, and takes it up again.

    A checkpoint that cannot be written leaves the one before it as the latest, and one that cannot
    be read the one before it to go on from: a run is a function of its seed, so either ends as if
    nothing had been.

    Of several workers all read the first one's, and it alone writes.

    Args:
        model: compiled; its `trained_parts` are saved.
        directory: of the checkpoints, of which the last two are kept.
        every: updates between two; those at the end of each epoch are always there.
        strategy: that the model was made in the scope of.
        watch: look for NaN and Inf in the weights after each update, not only before a save: who
            leaves out a batch has to know which.

    Attributes:
        last: names the last good state, for messages.
        updates: done so far.
        seconds: of training so far, over all restarts.

    Raises:
        ValueError: if there are checkpoints, and none that can be read or that fits the model.
    """

    def __init__(
        self,
        model: StudentModel,
        directory: str | os.PathLike,
        every: int | None = None,
        strategy: tf.distribute.Strategy | None = None,
        watch: bool = False,
    ):
        super().__init__()
        self.directory, self.every, self.watch = Path(directory), every, watch
        self.variables = model.theta() + model.student.non_trainable_variables
        self.strategy = strategy or tf.distribute.get_strategy()
        self.share = share_of(self.strategy)
        self.asked = self.stopping = False  # by SIGTERM here; as all workers know
        self.began = time.monotonic()
        self.counts = {
            "updates": tf.Variable(0, dtype=tf.int64),
            "seconds": tf.Variable(0.0, dtype=tf.float64),
            "begun": tf.Variable(json.dumps(NOT_BEGUN)),
        }
        self.checkpoint = tf.train.Checkpoint(**self.counts, **model.trained_parts())
        where = self.directory
        if self.share.worker:  # all have a part in reading the variables
            where = Path(tempfile.mkdtemp())
            weakref.finalize(self, shutil.rmtree, where, ignore_errors=True)
        listed = where / "checkpoint"
        if listed.exists() and not listed.stat().st_size:  # which the manager does not take
            listed.unlink()
        self.manager = tf.train.CheckpointManager(self.checkpoint, str(where), max_to_keep=2)
        self.restore()

    @property
    def seconds(self) -> float:
        return float(self.counts["seconds"])

    def restore(self):
        """Takes up the newest checkpoint that can be read: of several workers all the same."""
        there = newest_first(self.directory) if not self.share.worker else []
        taken = next(filter(self.take_up, there), None)
        if there and not taken:
            raise ValueError(
                f"No checkpoint in {self.directory} can be read: move it away, and the same "
                "command trains from the beginning."
            )
        number = from_first(self.strategy, number_of(taken) if taken else 0)
        if number and self.share.worker and not self.take_up(f"{self.directory}/ckpt-{number}"):
            raise ValueError(f"This worker cannot read ckpt-{number}, as the first one does.")
        self.last = taken or "the beginning"
        self.updates = int(self.counts["updates"])
        self.begun = json.loads(self.counts["begun"].numpy())

    def take_up(self, path: str) -> bool:
        """Whether the checkpoint could be read; if so it is the present state."""
        for part in Path(path).parent.glob(f"{Path(path).name}.*"):
            part.open("rb").close()  # where it cannot even be opened, it is not damaged
        try:
            self.checkpoint.restore(path).assert_existing_objects_matched()
            return True
        except (tf.errors.OpError, IndexError) as error:
            print(f"{path} is damaged ({first_line(error)}): going on from the one before it.")
            return False
        except (AssertionError, ValueError) as error:
            raise ValueError(
                f"{path} is of another version or another network ({first_line(error)}): name "
                "another --workdir, or go on with the version that wrote it."
            ) from error

    def save(self, what: str):
        """Writes a checkpoint, and ends the process where SIGTERM has come.

        Args:
            what: the state is after, for messages.

        Raises:
            NotFinite: for weights with NaN or Inf.
            OSError: if it cannot be written.
            SystemExit: `INTERRUPTED`.
        """
        if not all_finite(self.variables):
            self.updates -= 1
            raise NotFinite(f"Weights became NaN or Inf in update {self.updates + 1}.")
        now = time.monotonic()
        self.counts["updates"].assign(self.updates)
        self.counts["seconds"].assign_add(now - self.began)
        self.began = now
        try:
            path = self.manager.save()
        except (OSError, tf.errors.OpError) as error:
            raise OSError(
                f"The checkpoint of {what} cannot be written to {self.manager.directory} "
                f"({error}): make room or make it writable, and start the same command again; it "
                f"goes on from {self.last}."
            ) from error
        self.last = path if not self.share.worker else self.last
        if self.stopping:
            meet(self.strategy)  # the first one has written
            print(f"\nStopped after update {self.updates}: the same command goes on from there.")
            raise SystemExit(INTERRUPTED)

    def write(self, path: Path):
        """Writes the present state to a place of its own."""
        where = Path(self.manager.directory, path.name) if self.share.worker else path
        where.parent.mkdir(parents=True, exist_ok=True)
        self.checkpoint.write(str(where))

    def of_epoch(self, logs: Mapping[str, float], updates: int) -> tuple[int, dict[str, float]]:
        """How many updates the epoch has had, and the means of its logs over them.

        Args:
            logs: means over those since it was taken up.
            updates: the number of these.
        """
        before, earlier = self.begun
        total = before + updates

        def mean(name, value):
            return (before * earlier.get(name, 0.0) + updates * float(value)) / total

        return total, {name: mean(name, value) for name, value in logs.items()}

    def complete(self, epoch: int, logs: dict[str, float]):
        """Has the logs of an epoch be those of all its updates, for the callbacks that follow."""
        logs.update(self.of_epoch(logs, self.params["steps"])[1])

    def on_train_begin(self, logs=None):
        self.began = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        if not np.isfinite(logs["loss"]) or (self.watch and not all_finite(self.variables)):
            raise NotFinite(f"Loss or weights became NaN or Inf in update {self.updates + 1}.")
        self.updates += 1
        if self.share.workers == 1 or self.updates % AGREE_EVERY == 0:
            self.stopping = agreed(self.strategy, self.asked)
        due = self.stopping or (self.every and self.updates % self.every == 0)
        if due and batch + 1 < self.params["steps"]:  # the last one is the epoch's
            self.counts["begun"].assign(json.dumps(self.of_epoch(logs, batch + 1)))
            self.save(f"update {self.updates}")

    def on_epoch_end(self, epoch, logs=None):
        self.stopping = agreed(self.strategy, self.asked)
        self.counts["begun"].assign(json.dumps(NOT_BEGUN))
        self.begun = NOT_BEGUN
        self.save(f"epoch {epoch + 1}")

    @contextlib.contextmanager
    def saving_on_sigterm(self) -> Iterator[None]:
        """Within, SIGTERM has the update finished and saved before the process ends."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return
        before = signal.signal(signal.SIGTERM, self.stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
        if agreed(self.strategy, self.asked):  # in the last save
            raise SystemExit(INTERRUPTED)

    def stop(self, *_):
        self.asked = True


def all_finite(variables: Iterable[tf.Variable]) -> bool:
    finite = [tf.reduce_all(tf.math.is_finite(v)) for v in variables if v.dtype.is_floating]
    return bool(tf.reduce_all(finite))


def number_of(path: str) -> int:
    """Of a checkpoint's, what follows its last dash."""
    return int(path.rpartition("-")[2])


def newest_first(directory: Path) -> list[str]:
    """The checkpoints that lie in a directory."""
    # By their files: a damaged list of checkpoints must not look like a run that never began.
    paths = [str(path.with_suffix("")) for path in directory.glob("*-*.index")]
    return sorted(paths, key=number_of, reverse=True)


def restored(student: tf.keras.Model, workdir: Path) -> tf.keras.Model:
    """Returns the student with the weights of the last checkpoint in a workdir.

    Raises:
        FileNotFoundError: If there is no checkpoint yet.
        ValueError: If the last checkpoint is damaged, or does not fit the student.
    """
    checkpoints = newest_first(workdir / CHECKPOINTS)
    if not checkpoints:
        raise FileNotFoundError(f"{workdir} holds no checkpoint yet: let the run finish first.")
    try:
        found = tf.train.Checkpoint(student=student).restore(checkpoints[0])
        found.assert_existing_objects_matched().expect_partial()
    except (tf.errors.OpError, IndexError, AssertionError) as error:
        raise ValueError(
            f"{checkpoints[0]} is damaged, or of another version ({first_line(error)}): delete "
            f"{METRICS_FILE} beside it, and the run's command continues from the checkpoint before."
        ) from error
    return student
