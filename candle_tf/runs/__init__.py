"""One run in one workdir, from its settings to its results, and many runs compared."""

from candle_tf.runs.job import train
from candle_tf.runs.run import Run

__all__ = ["Run", "train"]
