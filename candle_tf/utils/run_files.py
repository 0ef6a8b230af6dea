"""Names of the files in a run's workdir, and the results that a finished run keeps there."""

from pathlib import Path

from candle_tf.utils.files import read_json

FLAG_FILE, METRICS_FILE, HISTORY_FILE = "flags.cfg", "metrics.json", "history.csv"
SKIPPED_FILE, NOT_FINITE = "skipped_batches.json", "not_finite"
PREDICTIONS_FILE, CLASSES_FILE = "predictions.npz", "class_names.json"
IMAGES_FILE = "images.txt"  # a digest of the training and test images
CLASSIFIER_FILE = "teacher_classifier.keras"
CALIBRATION_FILE = "teacher_calibration.json"
CALIBRATION, TEACHER_STORE = "calibration", "teacher_store"
REPORT = "report/report.html"  # written after the figures beside it
ENCODER_FILE, PRETRAINING_FILE = "encoder.npz", "pretraining.json"
UNLABELLED = "unlabelled"  # the only class of a pretraining
CHECKPOINTS, FIRST_STEP, SAVED_MODEL = "checkpoints", "first_step", "saved_model"
BEGUN = (
    CALIBRATION,
    CLASSIFIER_FILE,
    TEACHER_STORE,
    CHECKPOINTS,
    FIRST_STEP,
    METRICS_FILE,
    ENCODER_FILE,
)


def has_begun(workdir: Path) -> bool:
    """Returns whether a run has written anything that another run could not continue."""
    return any((workdir / name).exists() for name in BEGUN)


def read_results(workdir: str | Path) -> dict | None:
    """Returns the results in metrics.json, or None where the run is not finished.

    Raises:
        ValueError: If the file is damaged.
    """
    path = Path(workdir) / METRICS_FILE
    if not path.exists():
        return None
    return read_json(path, dict, "delete it, and the run's command writes it again")
