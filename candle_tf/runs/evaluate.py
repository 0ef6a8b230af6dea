"""Measures of a run's networks: predictions, sizes and the norms of the classifier's weights."""

from collections.abc import Callable, Iterable
from pathlib import Path

import larq as lq
import numpy as np
import tensorflow as tf
from candle_tf.classifiers import weight_norms
from candle_tf.data.entrance import reading_errors
from candle_tf.networks.surgery import renewed
from candle_tf.utils.files import written_beside
from candle_tf.utils.progress import progress


def logits_of(
    predict: Callable[[tf.Tensor], tf.Tensor],
    batches: Iterable[tuple[tf.Tensor, tf.Tensor]],
    total: int,
    title: str,
    verbose: bool = True,
) -> np.ndarray:
    """Returns the logits of all images, (images, classes).

    Args:
        predict: Function from a batch of images to logits.
        batches: Batches of images and labels.
        total: Number of batches, for the progress bar.
        title: Title of the progress bar.
        verbose: Whether to show the progress bar.
    """
    shown = progress(batches, title, total, "batches", verbose)
    with reading_errors():
        return np.concatenate([predict(images).numpy() for images, _ in shown])


def save_predictions(path: Path, logits: np.ndarray, labels: np.ndarray):
    """Writes labels, predictions, their confidence and the true classes' probabilities as .npz."""
    probabilities = tf.nn.softmax(logits).numpy()
    with written_beside(path) as beside:
        np.savez(
            beside,
            labels=labels,
            predictions=np.argmax(logits, axis=-1),
            confidence=np.max(probabilities, axis=-1),
            true_probability=probabilities[np.arange(len(labels)), labels],
        )


def student_size(student: tf.keras.Model) -> dict:
    """Returns the weights in kB at their own widths, and Larq's multiply-accumulates by width."""
    # A copy: Larq cannot tell the shapes of layers that serve several input sizes.
    profile = lq.models.ModelProfile(renewed(student))
    return {
        "kilobytes": profile.memory / 8 / 1000,
        "kilobytes_float": profile.fp_equivalent_memory / 8 / 1000,
        "macs": {str(n): profile.op_count("mac", n) for n in profile.unique_op_precisions},
    }


def classifier_norms(network: tf.keras.Model) -> dict:
    """Returns the weight norm of each class, in their order, of a linear classifier."""
    norms = weight_norms(network)
    return {} if norms is None else {"classifier_norms": norms.tolist()}
