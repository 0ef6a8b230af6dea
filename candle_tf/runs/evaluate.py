"""What a run says of its networks: accuracy, size, norms of the classifier's weights."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import larq as lq
import numpy as np
import tensorflow as tf
from candle_tf import data, metrics
from candle_tf.classifiers import weight_norms
from candle_tf.data.entrance import reading_errors
from candle_tf.networks.surgery import renewed
from candle_tf.runs.inputs import evaluation_batches, steps_per_epoch, widened
from candle_tf.runs.settings import Settings, method_of
from candle_tf.utils.distribution import ALONE, distributed, leads, on_all_replicas
from candle_tf.utils.files import written_beside
from candle_tf.utils.progress import progress


def evaluate(
    network: Callable[[tf.Tensor], tf.Tensor],
    settings: Settings,
    examples: data.LongTailedData,
    predictions_file: Path | None = None,
    strategy: tf.distribute.Strategy = ALONE,
    what: str = "Student",
) -> dict:
    """Accuracy on the test set, and on the validation split where there is one.

    Args:
        network: images -> logits.
        predictions_file: where to save what is predicted of the test set, if anywhere.
        strategy: whose replicas each predict their part.
        what: the network's name on the progress bar.
    """
    reports, predict = {}, on_all_replicas(strategy, network)
    wide = widened(settings, strategy)
    for split in ("validation", "test"):
        part = getattr(examples, split)
        if part is None:
            continue
        batches = distributed(strategy, partial(evaluation_batches, wide, examples, part))
        total = -(-len(part) // wide.batch_size)
        shown = progress(batches, f"{what} on {split} images", total, "batch", leads(strategy))
        with reading_errors():
            logits = np.concatenate([predict(images).numpy() for images, _ in shown])
        if predictions_file and split == "test":
            save_predictions(predictions_file, logits, part.labels)
        predictions = np.argmax(logits, axis=-1)
        reports[split] = metrics.accuracy_report(
            part.labels, predictions, examples.class_counts, examples.info.bounds
        )
    return reports


def save_predictions(path: Path, logits: np.ndarray, labels: np.ndarray):
    """An .npz of labels, predictions, their confidence and the true classes' probabilities."""
    probabilities = tf.nn.softmax(logits).numpy()
    with written_beside(path) as beside:
        np.savez(
            beside,
            labels=labels,
            predictions=np.argmax(logits, axis=-1),
            confidence=np.max(probabilities, axis=-1),
            true_probability=probabilities[np.arange(len(labels)), labels],
        )


def describe(settings: Settings, examples: data.LongTailedData) -> dict:
    """What was run, on what; the updates of a first stage stand in its own metrics.json."""
    counts = examples.class_counts
    second_stage = method_of(settings).second_stage
    return {
        "method": settings.method,
        "dataset": settings.dataset,
        "class_names": examples.class_names,
        "class_counts": counts.tolist(),
        "imbalance_ratio": float(counts.max() / counts.min()),
        "test_images": len(examples.test),
        "files_left_out": examples.left_out,
        "overlap": dict(examples.overlap),
        "notes": list(examples.notes),
        "updates": 0 if second_stage else settings.epochs * steps_per_epoch(settings, examples),
    }


def student_size(student: tf.keras.Model) -> dict:
    """Weights in kB at their own widths, and multiply-accumulates by width, as Larq counts them."""
    # A copy: Larq cannot tell the shapes of layers that serve several input sizes.
    profile = lq.models.ModelProfile(renewed(student))
    return {
        "kilobytes": profile.memory / 8 / 1000,
        "kilobytes_float": profile.fp_equivalent_memory / 8 / 1000,
        "macs": {str(n): profile.op_count("mac", n) for n in profile.unique_op_precisions},
    }


def classifier_norms(network: tf.keras.Model) -> dict:
    """Weight norm of each class, in their order, where the network ends in a linear classifier."""
    norms = weight_norms(network)
    return {} if norms is None else {"classifier_norms": norms.tolist()}
