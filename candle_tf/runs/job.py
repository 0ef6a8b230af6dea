"""The main job: calibrate a teacher, train a student, evaluate and export it, in one workdir."""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.calibration import CrossValidation
from candle_tf.classifiers import encode_dataset
from candle_tf.export.saved_model import check_target
from candle_tf.methods import SECOND_STAGES, FirstStage, Setup
from candle_tf.networks.safe_load import load_model
from candle_tf.reports.report import read_student, write_report
from candle_tf.runs.build import calibrate_for_all, computing_in
from candle_tf.runs.evaluate import classifier_norms, student_size
from candle_tf.runs.fit import build_model, complete_store, fit
from candle_tf.runs.plan import check_store, decide_epochs, decide_views
from candle_tf.runs.run import Run
from candle_tf.runs.settings import Settings, settings_of
from candle_tf.runs.workdir import check_workdir, claimed_workdir, of_earlier_version
from candle_tf.student_model import StudentModel
from candle_tf.students import bits
from candle_tf.utils.distribution import (
    build_strategy,
    distributed,
    from_first,
    meet,
    stopping_with_the_others,
)
from candle_tf.utils.files import read_json, write_text, written_beside
from candle_tf.utils.run_files import (
    CALIBRATION,
    CALIBRATION_FILE,
    CHECKPOINTS,
    CLASSIFIER_FILE,
    FIRST_STEP,
    METRICS_FILE,
    PREDICTIONS_FILE,
    REPORT,
    SAVED_MODEL,
)

FEW_UPDATES = 1000  # below which a run says that a student learns little
FEW_FOR_DIGITS = 400


def train(dataset: str, *, workdir: str, **settings) -> Run:
    """Trains a student on long-tailed images, and returns the finished run.

    The same call again continues an interrupted run, and returns a finished one at once.

    Args:
        dataset: Name of a data set, such as "digits" or "tfds:cifar10", or your own images, such as
            "folder:photos".
        workdir: Directory that the run writes to.
        settings: Further settings by name; see `candle_tf.runs.settings.Settings`.

    Raises:
        ValueError, OSError: One sentence with cause and remedy.

    Example:
        >>> run = ct.train("folder:photos", workdir="runs/photos")  # doctest: +SKIP
        >>> print(run.summary())  # doctest: +SKIP
        >>> run.export("photos.tflite", format="lce")  # doctest: +SKIP
    """
    finished, _ = run_to_the_end(settings_of(dataset, workdir, settings))
    return finished


def run(settings: Settings) -> dict:
    """Runs the main job, and returns the results, which it writes to metrics.json.

    The same settings again continue an interrupted run in its workdir from its last checkpoint, and
    return the results of a finished one. Of several workers the first one alone has results.

    Raises:
        ValueError, OSError: One sentence with cause and remedy.
        SystemExit: `checkpoints.INTERRUPTED` or `distribution.WORKER_LOST`.
    """
    _, results = run_to_the_end(settings)
    return results


def run_to_the_end(settings: Settings) -> tuple[Run, dict]:
    """Completes a run, of all workers, and returns it with its results."""
    strategy = build_strategy(settings.strategy)  # before TensorFlow runs anything
    with stopping_with_the_others(strategy):
        finished = Run(settings)
        say_unread(finished)
        results = complete(finished)
        meet(strategy)
    return finished, results


def complete(run: Run) -> dict:
    """Does this process's part of a run, and returns the results."""
    settings, first = run.settings, run.first_stage
    say_kept(run)
    run.share.batch_size(settings.batch_size)  # refuses parts of different sizes
    check_workdir(run.workdir, settings.to_flags())
    if settings.calibrates and of_earlier_version(run.workdir):
        if run.leads and not run.results and run.method.label_weight != 0:
            print(f"{CALIBRATION_FILE} is missing, as in earlier versions: no label term is added.")
        run.decide(label_weight=0.0)
    if first:
        check_workdir(first.workdir, first.settings.to_flags())
    results = run.results
    if from_first(run.strategy, bool(results)):
        print(f"{run.workdir} holds this run, finished.")
        if run.leads and settings.epochs and not (run.workdir / REPORT).exists():
            try_report(run)  # it was killed before that
        return results or {}
    student, seconds = prepare(run)
    claimed = contextlib.nullcontext()
    if run.leads:
        starts_from = first and first.workdir
        claimed = claimed_workdir(run.workdir, run.settings.to_flags(), run.examples, starts_from)
    with claimed:
        if settings.cache:
            with timed(seconds, "cache"):
                cache_images(run)
        if first:
            complete(first)
            meet(run.strategy)  # the first stage is written
        results = execute(run, student, seconds)
        if not run.leads:
            return {}
        if run.throughput:
            results["throughput"] = run.throughput
        results["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
        write_text(run.workdir / METRICS_FILE, json.dumps(results, indent=1) + "\n")
        if settings.epochs:
            try_report(run)
    return results


def say_kept(run: Run):
    """Prints the settings that are not given and come from the run that began in the workdir."""
    if run.kept and run.leads:
        kept = ", ".join(f"{name}={getattr(run.given, name)}" for name in run.kept)
        print(f"Kept from the run that began here: {kept}; other values need another workdir")


def say_unread(run: Run):
    """Prints the given settings that the method does not read."""
    if run.unread and run.leads:
        print(f"Not read by {run.given.method}: {', '.join(run.unread)}")


def say_few_updates(run: Run):
    """Prints a warning if a run that chose its number of updates has only a few."""
    chosen = run.given.minutes or run.given.steps_per_epoch is None
    few = FEW_FOR_DIGITS if run.settings.dataset == "digits" else FEW_UPDATES
    if 0 < run.updates < few and chosen and run.leads:
        print(
            f"Only {run.updates} updates in all, {run.steps_per_epoch} per epoch. A student gets "
            "better for thousands of updates: give it more "
            f"{'minutes' if run.given.minutes else 'steps per epoch'}."
        )


def prepare(run: Run) -> tuple[tf.keras.Model, dict[str, float]]:
    """Makes teacher, data and student, so that no mistake is found only after long work.

    Returns:
        The student before its training, and the seconds of each phase so far.
    """
    settings, first = run.settings, run.first_stage
    run.teacher  # noqa: B018  a teacher that cannot be built is refused here
    seconds: dict[str, float] = {}
    with timed(seconds, "data"):
        examples = run.examples
    with computing_in(settings.precision):
        student = run.build_student(len(examples.class_names))
    StudentModel(student, resolutions=settings.resolutions)  # refuses sizes that cannot work
    if run.given.minutes:
        decide_epochs(run, student)
    say_few_updates(run)
    if settings.epochs and run.method.distills and settings.teacher_views is None:
        decide_views(run)
    if settings.epochs and run.settings.teacher_views and run.leads:
        check_store(run)
    if first:
        first.examples = examples
        first.check_sampler()
    run.check_sampler()
    if settings.epochs and run.leads:
        check_target(run.workdir / SAVED_MODEL)
    check_same_images(run)
    return student, seconds


def check_same_images(run: Run):
    """Refuses a worker's images where they differ from those of the first worker."""
    if run.share.workers == 1:
        return  # the digest asks for every file
    mine = int(run.examples.fingerprint()[:12], 16)
    if mine != from_first(run.strategy, mine):
        raise ValueError(
            "This worker reads other images than the first one: give all the same data."
        )


def cache_images(run: Run):
    """Decodes the training images into a file, which the first worker makes for all."""
    if not run.leads:
        meet(run.strategy)
    cached = run.examples.train.cached(run.settings.cache)
    if run.leads:
        meet(run.strategy)
    run.examples = dataclasses.replace(run.examples, train=cached)


def execute(run: Run, student: tf.keras.Model, seconds: dict[str, float]) -> dict:
    """Calibrates, trains, evaluates and exports; all workers take part, and the first one writes.

    Args:
        run: Run to execute.
        student: Student before its training.
        seconds: Seconds of each phase, which this function adds to.
    """
    settings, strategy, results = run.settings, run.strategy, describe(run)
    if run.teacher is not None:
        with timed(seconds, "calibrate"):
            calibrate(run)
        with timed(seconds, "evaluate_teacher"):
            results["teacher"] = measured_teacher(run)
    if settings.epochs:
        if not run.method.second_stage:
            model = train_student(run, student, set_up(run), seconds)
        elif run.leads:
            with timed(seconds, "second_stage"):
                model = retrain_classifier(run)
        if settings.precision != "float32" or settings.strategy:
            model = as_shipped(run)
        run.student = model
        with timed(seconds, "evaluate"):
            predictions_file = run.workdir / PREDICTIONS_FILE if run.leads else None
            results["student"] = {
                **run.measure(model, predictions_file, strategy),
                **student_size(model.student),
                **classifier_norms(model.student),
            }
        if run.leads:
            with timed(seconds, "export"):
                run.export(run.workdir / SAVED_MODEL)
    return results


def describe(run: Run) -> dict:
    """Returns the part of metrics.json that says what was run on which data."""
    examples, counts = run.examples, run.examples.class_counts
    return {
        "method": run.settings.method,
        "dataset": run.settings.dataset,
        "class_names": examples.class_names,
        "class_counts": counts.tolist(),
        "imbalance_ratio": float(counts.max() / counts.min()),
        "test_images": len(examples.test),
        "files_left_out": examples.left_out,
        "overlap": dict(examples.overlap),
        "notes": list(examples.notes),
        "updates": run.updates,
    }


def measured_teacher(run: Run) -> dict:
    """Returns the part of metrics.json on the calibrated teacher."""
    teacher = run.teacher
    embed = teacher.embedder(len(run.examples.test), strategy=run.strategy)
    numbers = teacher.encoder.count_params() + teacher.classifier.count_params()
    measured = {
        **run.measure(
            lambda images: teacher.classifier(embed(images)),
            strategy=run.strategy,
            title="Teacher",
            image_size=run.view_size,
        ),
        "kilobytes": 4 * numbers / 1000,
        **classifier_norms(teacher.classifier),
    }
    if checked := teacher.cross_validation:
        measured["cross_validation"] = {
            "strength": checked.strength,
            "class_mean": null_for_nan(checked.class_mean),
            "ranks": checked.by_rank(run.examples.info.bounds),
            "per_class": [null_for_nan(value) for value in checked.per_class],
        }
    return measured


def null_for_nan(value: float) -> float | None:
    """Returns None for NaN, which JSON does not have."""
    return None if np.isnan(value) else float(value)


def as_shipped(run: Run) -> StudentModel:
    """Returns the student for evaluation and export: in float32, outside of any strategy."""
    if run.leads:
        model = run.restore()
    else:
        model = StudentModel(run.build_student(len(run.examples.class_names), pretrained=False))
    weights = [from_first(run.strategy, w) for w in model.student.get_weights()]
    model.student.set_weights(weights)
    return model


def set_up(run: Run) -> Setup:
    """Returns the networks and numbers that the run's method works with."""
    return Setup(
        class_counts=run.examples.class_counts,
        epochs=run.settings.epochs,
        steps_per_epoch=run.steps_per_epoch,
        resolution={"resolutions": run.settings.resolutions, "seed": run.settings.seed},
        teacher=run.teacher,
        first_model=run.first_stage and run.first_stage.restore(),
        encode=lambda model: encode_views(run, model),
        lambda_per_sample=run.settings.lambda_per_sample,
        label_smoothing=run.label_smoothing,
    )


def train_student(
    run: Run, student: tf.keras.Model, setup: Setup, seconds: dict[str, float]
) -> StudentModel:
    """Trains the student, with real-valued weights first where the run has two steps.

    Args:
        run: Run that the training belongs to.
        student: Student with the weights that its training starts from.
        setup: Networks and numbers that the method works with.
        seconds: Seconds of each phase, which this function adds to.
    """
    settings = run.settings
    half = settings.epochs // 2 if settings.two_step else 0
    setup = dataclasses.replace(setup, epochs=settings.epochs - half)
    model = build_model(run, student, setup)
    if run.method.distills and model.has_label_term and run.leads:
        print(
            f"The labels have a weight of {model.weight_of_labels:.2f} beside the teacher's output"
        )
    store = None
    if settings.teacher_views:
        with timed(seconds, "teacher_views"):
            store = complete_store(run, model)
    if half:
        real = bits.requantize(student, kernel_quantizer=None)
        # Bop would find no binary weights in the first step.
        first = build_model(run, real, dataclasses.replace(setup, epochs=half), optimizer="adam")
        seconds["first_step"] = fit(run, first, store, FIRST_STEP, 0, half)
        parts = model.trained_parts()
        for name, part in first.trained_parts().items():
            if isinstance(part, tf.keras.layers.Layer):  # each step has optimizers of its own
                parts[name].set_weights(part.get_weights())
    seconds["train"] = fit(run, model, store, CHECKPOINTS, half, settings.epochs)
    return model


def retrain_classifier(run: Run) -> StudentModel:
    """Returns the first stage's student with the new classifier of the second stage."""
    settings, examples, method = run.settings, run.examples, run.method
    model = run.first_stage.restore()
    if method.batch_norm_shift:
        size = settings.batch_size
        whole = -(-len(examples.train) // size) * size  # a short last batch would weigh most
        balanced = run.training_batches(
            sampler="class_balanced", seed=settings.seed + 1, num_examples=whole
        )
        for images, _ in balanced:
            model.embed(images, training=True)
    features, labels = encode_views(run, model)
    validation = None
    if examples.validation is not None:
        held_out = run.evaluation_batches(examples.validation)
        counts = np.bincount(examples.validation.labels, minlength=len(examples.class_counts))
        validation = encode_dataset(model.embed, held_out, counts, verbose=0)
    print(f"A new classifier by {method.second_stage}, on {len(features)} features")
    classifier = model.student.get_layer("logits")
    kernel, bias = classifier.get_weights()
    trained = FirstStage(
        features=features,
        labels=labels,
        class_counts=examples.class_counts,
        kernel=kernel,
        bias=bias,
        validation=validation,
        label_smoothing=run.label_smoothing,
        epochs=settings.calibration_epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    classifier.set_weights(SECOND_STAGES[method.second_stage](trained))
    checkpoint = tf.train.Checkpoint(student=model.student)
    checkpoint.save(str(run.workdir / CHECKPOINTS / "second_stage"))
    return model


def encode_views(run: Run, model: StudentModel) -> tuple[np.ndarray, np.ndarray]:
    """Returns features and labels of `calibration_views` views of each training image."""
    batches = run.training_batches(seed=run.settings.seed + 1)
    counts, views = run.examples.class_counts, run.settings.calibration_views
    return encode_dataset(model.embed, batches, counts, views, verbose=0)


def calibrate(run: Run):
    """Calibrates the run's teacher, or reads the classifier of an interrupted run."""
    settings, strategy, teacher = run.settings, run.strategy, run.teacher
    counts = run.examples.class_counts
    classifier_file = run.workdir / CLASSIFIER_FILE
    calibration_file = run.workdir / CALIBRATION_FILE
    features = run.workdir / CALIBRATION
    if from_first(strategy, classifier_file.exists()):
        teacher.classifier = load_model(classifier_file)
        teacher.classifier.trainable = False
        teacher.class_counts = counts.tolist()
        if calibration_file.exists():
            checked = read_json(calibration_file, dict, "delete the workdir")
            teacher.cross_validation = CrossValidation(**checked)
        if run.leads:
            shutil.rmtree(features, ignore_errors=True)
        return
    wide = settings.batch_size * strategy.num_replicas_in_sync  # nothing is trained on a batch
    views, images = settings.calibration_views, len(run.examples.train)
    print(f"Calibrating {settings.teacher} on {images} images, {views} views each")
    checked = calibrate_for_all(
        teacher,
        distributed(
            strategy, lambda share: run.training_batches(wide, seed=settings.seed + 1, share=share)
        ),
        counts,
        views,
        features,
        strategy,
        loss=settings.calibration,
        label_smoothing=run.label_smoothing,
        seed=settings.seed,
    )
    if run.leads:
        write_text(calibration_file, json.dumps(checked.get_config()) + "\n")
        with written_beside(classifier_file) as beside:
            teacher.classifier.save(beside)
        shutil.rmtree(features, ignore_errors=True)


def try_report(run: Run):
    """Writes the report of a finished run, or prints why it cannot."""
    try:
        print(f"Wrote {report(run)}")
    except (ImportError, OSError, ValueError) as error:
        print(f"No report was written: {error}")


def report(run: Run, **compared) -> Path:
    """Writes the report of a finished run; see `candle_tf.reports.report.write_report`."""
    read_student(run.workdir)  # refuses a directory without one, before the images are read
    run.check_own_images()
    return write_report(run.workdir, run.examples, run.drawn_sizes, **compared)


@contextlib.contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Notes the seconds that the code within takes."""
    start = time.monotonic()
    yield
    seconds[phase] = time.monotonic() - start
