"""Checkpoints of a training, by epoch and by update, from which a killed run continues."""

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.student_model import StudentModel
from candle_tf.utils.distribution import agreed, first_line, from_first, meet, share_of
from candle_tf.utils.run_files import CHECKPOINTS, METRICS_FILE

INTERRUPTED = 75  # exit code of a run that SIGTERM has ended: the same command continues
NOT_BEGUN = 0, {}  # an epoch without updates, as `Checkpoints.of_epoch` returns it
SIGNALS = (signal.SIGTERM, signal.SIGINT)
AGREE_EVERY = 10  # updates between questions whether a worker got a signal: each costs a sum


class NotFinite(ValueError):
    """The loss became NaN or Inf."""


class Checkpoints(tf.keras.callbacks.Callback):
    """Saves and restores everything that the next update depends on.

    Where a checkpoint cannot be written or read, the one before it is the latest: a run is a
    function of its seed, so the training ends with the same weights.

    Of several workers the first one writes, and all read its checkpoints.

    Args:
        model: Compiled model, whose `trained_parts` are saved.
        directory: Directory of the checkpoints, of which the last two are kept.
        every: Number of updates between two checkpoints, in addition to one after each epoch.
        strategy: Strategy in whose scope the model was made.
        watch: Whether to look for NaN and Inf in the weights after each update, not only before a
            save, to know which batch to leave out.

    Attributes:
        last: Name of the last good state, for messages.
        updates: Number of updates so far.
        seconds: Seconds of training so far, over all restarts.

    Raises:
        ValueError: If there are checkpoints, but none that can be read or that fits the model.
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
        self.variables = model.descending_variables() + model.student.non_trainable_variables
        self.strategy = strategy or tf.distribute.get_strategy()
        self.share = share_of(self.strategy)
        self.asked = self.stopping = False  # by a signal here; as all workers know
        self.by_hand = False  # by Ctrl-C
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
        """The seconds of training, over all restarts."""
        return float(self.counts["seconds"])

    def restore(self):
        """Restores the newest checkpoint that can be read; all workers restore the same one."""
        there = newest_first(self.directory) if not self.share.worker else []
        taken = next(filter(self.restore_from, there), None)
        if there and not taken:
            raise ValueError(
                f"No checkpoint in {self.directory} can be read: move it away, and the same "
                "command trains from the beginning."
            )
        number = from_first(self.strategy, number_of(taken) if taken else 0)
        if (
            number
            and self.share.worker
            and not self.restore_from(f"{self.directory}/ckpt-{number}")
        ):
            raise ValueError(f"This worker cannot read ckpt-{number}, as the first one does.")
        self.last = taken or "the beginning"
        self.updates = int(self.counts["updates"])
        self.begun = json.loads(self.counts["begun"].numpy())

    def restore_from(self, path: str) -> bool:
        """Restores a checkpoint, and returns whether it could be read."""
        for part in Path(path).parent.glob(f"{Path(path).name}.*"):
            part.open("rb").close()  # where it cannot even be opened, it is not damaged
        try:
            self.checkpoint.restore(path).assert_existing_objects_matched()
            return True
        except (tf.errors.OpError, IndexError) as error:
            print(f"{path} is damaged ({first_line(error)}): continuing from the one before it.")
            return False
        except (AssertionError, ValueError) as error:
            raise ValueError(
                f"{path} comes from another version or another network ({first_line(error)}): name "
                "another `workdir`, or continue with the version that wrote the checkpoint."
            ) from error

    def save(self, what: str):
        """Writes a checkpoint, and ends the training if the process got SIGTERM or Ctrl-C.

        Args:
            what: Name of the state, for messages.

        Raises:
            NotFinite: If weights are NaN or Inf.
            OSError: If the checkpoint cannot be written.
            SystemExit: After SIGTERM, with `INTERRUPTED`.
            KeyboardInterrupt: After Ctrl-C.
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
                f"continues from {self.last}."
            ) from error
        self.last = path if not self.share.worker else self.last
        if self.stopping:
            meet(self.strategy)  # the first one has written
            self.end(f"Stopped after update {self.updates}: the same command continues from there.")

    def write(self, path: Path):
        """Writes the present state to a path outside of the checkpoints."""
        where = Path(self.manager.directory, path.name) if self.share.worker else path
        where.parent.mkdir(parents=True, exist_ok=True)
        self.checkpoint.write(str(where))

    def of_epoch(self, logs: Mapping[str, float], updates: int) -> tuple[int, dict[str, float]]:
        """Returns the number of updates in the epoch, and the means of its logs over them.

        Args:
            logs: Means over the updates since the last restart.
            updates: Number of the updates since the last restart.
        """
        before, earlier = self.begun
        total = before + updates

        def mean(name, value):
            return (before * earlier.get(name, 0.0) + updates * float(value)) / total

        return total, {name: mean(name, value) for name, value in logs.items()}

    def complete(self, epoch: int, logs: dict[str, float]):
        """Changes the logs of an epoch to the means over all its updates, for later callbacks."""
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
    def saving_on_signals(self) -> Iterator[None]:
        """Lets a process that gets SIGTERM or Ctrl-C finish and save its update first."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self.handlers = {number: signal.signal(number, self.stop) for number in heard}
        try:
            yield
        finally:
            for number, handler in self.handlers.items():
                signal.signal(number, handler)
        if agreed(self.strategy, self.asked):  # in the last save
            self.end("Stopped after the training: the same command continues from there.")

    def stop(self, number: int, frame: object):
        """Notes that the process was asked to end, as the handler of its signals."""
        self.asked, self.by_hand = True, number == signal.SIGINT
        if self.by_hand:
            print("\nStopping after the next save. Ctrl-C again: now.", file=sys.stderr, flush=True)
            signal.signal(signal.SIGINT, self.handlers[signal.SIGINT])

    def end(self, message: str):
        """Ends the training with the exception of the signal that asked for it."""
        if self.by_hand:
            raise KeyboardInterrupt(message)
        print(f"\n{message}")
        raise SystemExit(INTERRUPTED)


def all_finite(variables: Iterable[tf.Variable]) -> bool:
    """Returns whether no variable holds NaN or Inf."""
    finite = [tf.reduce_all(tf.math.is_finite(v)) for v in variables if v.dtype.is_floating]
    return bool(tf.reduce_all(finite))


def number_of(path: str) -> int:
    """Returns the number after the last dash of a checkpoint's path."""
    return int(path.rpartition("-")[2])


def newest_first(directory: Path) -> list[str]:
    """Returns the paths of the checkpoints in a directory."""
    # By their files: a damaged list of checkpoints must not look like a run that never began.
    paths = [str(path.with_suffix("")) for path in directory.glob("*.index")]
    numbered = [path for path in paths if re.fullmatch(r".+-\d+", path)]
    return sorted(numbered, key=number_of, reverse=True)


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
    except (tf.errors.OpError, IndexError) as error:
        raise ValueError(
            f"{checkpoints[0]} is damaged ({first_line(error)}): delete "
            f"{workdir / METRICS_FILE} if it is there, and the run's command continues from the "
            "checkpoint before, or trains again."
        ) from error
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"{checkpoints[0]} comes from another version or network ({first_line(error)}): use "
            "the version and the flags that wrote it, or train in another `workdir`."
        ) from error
    return student
