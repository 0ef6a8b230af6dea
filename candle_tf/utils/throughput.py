"""The line of each epoch: the metrics, the speed, the time left and the parts of an update."""

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from types import MappingProxyType

import tensorflow as tf
from candle_tf.utils.progress import duration
from tqdm import tqdm

SECONDS = 2.0  # of reading, after the first batch
BATCHES = 20  # the most that are read to measure


def seconds_per_item(items: Iterator, at_most: float = SECONDS) -> float:
    """Returns the mean seconds until an iterator gives its next item, after the first one.

    Args:
        items: Iterator of at least two items.
        at_most: Seconds after which no further item is taken.

    Example:
        >>> 0.0 < seconds_per_item(iter(tf.data.Dataset.range(5))) < 1.0
        True
    """
    next(items)
    began, count = time.monotonic(), 0
    for _ in islice(items, BATCHES):
        count += 1
        if time.monotonic() - began > at_most:
            break
    return (time.monotonic() - began) / max(count, 1)


class Throughput(tf.keras.callbacks.Callback):
    """Prints one line per epoch: the metrics, the images per second and the time left.

    The first update is left out of the speed, because TensorFlow builds its graph then. On a
    terminal, a bar shows the updates of the epoch until its line is printed.

    Args:
        images: Number of images per update.
        updates: Number of updates that are left.
        epochs: Number of epochs of the whole training.
        parts: Seconds per update that each part needs alone, by name: "reading" and "teacher". The
            student has the rest of the time. An empty mapping leaves the parts out.
        show: Whether to print.

    Attributes:
        results: `images_per_second` of the last epoch, and the share of each part, as a fraction
            of 1. Reading happens beside the update, so its share may be 1 where it is the limit.

    Example:
        >>> speed = Throughput(128, 1000, 10, {"reading": 0.02, "teacher": 0.0})
        >>> speed.measured(updates=10, seconds=1.0)
        '1,280 images a second, 100 s left; reading 20 %, teacher 0 %, student 80 % of the time'
    """

    def __init__(
        self,
        images: int,
        updates: int,
        epochs: int,
        parts: Mapping[str, float] = MappingProxyType({}),
        show: bool = True,
    ):
        super().__init__()
        self.images, self.left, self.epochs, self.parts = images, updates, epochs, dict(parts)
        self.show, self.bar = show, None
        self.results, self.began, self.counted = {}, None, 0

    def on_epoch_begin(self, epoch, logs=None):
        if self.bar:  # of an epoch that ended with an error
            self.bar.close()
        self.title, self.began = f"Epoch {epoch + 1}/{self.epochs}", None
        disable = None if self.show else True  # None: where there is no terminal
        self.bar = tqdm(
            None, self.title, self.params["steps"], unit=" updates", leave=False, disable=disable
        )

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        self.bar.update()
        if self.began is None:  # the first update of an epoch
            self.began, self.counted = time.monotonic(), 0
        else:
            self.counted += 1

    def on_epoch_end(self, epoch, logs=None):
        self.bar.close()
        said = ", ".join(f"{name} {value:.4g}" for name, value in (logs or {}).items())
        if self.counted:
            said += f"; {self.measured(self.counted, time.monotonic() - self.began)}"
        if self.show:
            print(f"{self.title}: {said}", flush=True)

    def measured(self, updates: int, seconds: float) -> str:
        """Sets `results` from some updates and their seconds, and returns them as a line."""
        each = seconds / updates
        self.results = {"images_per_second": round(self.images / each, 1)}
        said = f"{self.images / each:,.0f} images a second, {duration(self.left * each)} left"
        if not self.parts:
            return said
        shares = {name: min(1.0, part / each) for name, part in self.parts.items()}
        shares["student"] = max(0.0, 1.0 - sum(shares.values()))
        self.results |= {name: round(share, 3) for name, share in shares.items()}
        parts = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
        return f"{said}; {parts} of the time"
