"""Pretraining of a student's encoder on images without labels."""

from candle_tf.pretraining.images import load_unlabelled
from candle_tf.pretraining.job import pretrain

__all__ = ["load_unlabelled", "pretrain"]
