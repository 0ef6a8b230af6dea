"""Data: long-tailed profiles, the catalog of sets, samplers and the tf.data pipeline."""

from candle_tf.data.catalog import CATALOG, DatasetInfo, LongTailedData, info_of, load
from candle_tf.data.examples import Examples
from candle_tf.data.long_tail import PROFILES, long_tail_counts, long_tail_subset
from candle_tf.data.own_images.files import ON_BAD_IMAGE
from candle_tf.data.pipeline import Share, evaluation_batches, training_batches
from candle_tf.data.samplers import SAMPLERS, class_probabilities
from candle_tf.data.sources import absolute
from candle_tf.data.views import Augmentation

__all__ = [
    "CATALOG",
    "ON_BAD_IMAGE",
    "PROFILES",
    "SAMPLERS",
    "Augmentation",
    "DatasetInfo",
    "Examples",
    "LongTailedData",
    "Share",
    "absolute",
    "class_probabilities",
    "evaluation_batches",
    "info_of",
    "load",
    "long_tail_counts",
    "long_tail_subset",
    "training_batches",
]
