"""The main job: data -> teacher -> calibrate -> distill -> evaluate -> export, in one workdir."""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf import data
from candle_tf.calibration import CrossValidation
from candle_tf.classifiers import encode_dataset
from candle_tf.methods import Method, Setup
from candle_tf.methods.second_stages import SECOND_STAGES, FirstStage
from candle_tf.model import CandleModel, StudentModel
from candle_tf.networks.safe_load import load_model
from candle_tf.reports.report import write_report
from candle_tf.runs.build import build_model, build_student, build_teacher, computing_in, restore
from candle_tf.runs.evaluate import classifier_norms, describe, evaluate, student_size
from candle_tf.runs.fit import fit
from candle_tf.runs.inputs import (
    augmentation,
    centre_square,
    check_sampler,
    evaluation_batches,
    load_data,
    resolution_of,
    steps_per_epoch,
    training_batches,
    view_size,
    widened,
)
from candle_tf.runs.settings import Settings, canonical, first_stage_of, method_of
from candle_tf.runs.workdir import as_begun, check_workdir, claimed_workdir, of_earlier_version
from candle_tf.students import bits
from candle_tf.teacher import Teacher
from candle_tf.teacher_store import TeacherStore, plan_views, record_of, sources, view_sizes
from candle_tf.utils.distribution import (
    build_strategy,
    distributed,
    from_first,
    leads,
    meet,
    share_of,
    stopping_with_the_others,
)
from candle_tf.utils.files import Rows, check_room, locked, read_json, write_text, written_beside
from candle_tf.utils.run_files import (
    CALIBRATION,
    CALIBRATION_FILE,
    CHECKPOINTS,
    CLASSIFIER_FILE,
    FIRST_STEP,
    FLAG_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    REPORT,
    TEACHER_STORE,
    read_results,
)


def run(settings: Settings) -> dict:
    """Runs the main job and returns what it writes to metrics.json; only the first worker does.

    The same settings again continue an interrupted run in its workdir from its last checkpoint,
    and return what a finished one wrote.

    Raises:
        ValueError, OSError: one sentence that names cause and remedy.
        SystemExit: `checkpoints.INTERRUPTED` or `distribution.WORKER_LOST`.
    """
    strategy = build_strategy(settings.strategy)  # before TensorFlow runs anything
    with stopping_with_the_others(strategy):
        results = run_here(settings, strategy)
        meet(strategy)
    return results


def run_here(settings: Settings, strategy: tf.distribute.Strategy) -> dict:
    """This process's part of the run."""
    settings = as_begun(settings)
    settings.check()
    method, settings = method_of(settings), canonical(settings)
    share_of(strategy).batch_size(settings.batch_size)  # refuses parts of different sizes
    check_workdir(settings)
    if settings.calibrates and of_earlier_version(settings):
        settings = dataclasses.replace(settings, label_weight=0.0)
        method = method_of(settings)
    first = first_stage_of(settings) if settings.epochs else None
    if first:
        first.check()
        check_workdir(canonical(first))
    results = read_results(settings.workdir)
    if from_first(strategy, bool(results)):
        print(f"{settings.workdir} holds this run, finished.")
        if leads(strategy) and settings.epochs and not (Path(settings.workdir) / REPORT).exists():
            try_report(settings)  # it was killed before that
        return results or {}
    teacher = build_teacher(settings) if settings.calibrates else None
    seconds: dict[str, float] = {}
    with timed(seconds, "data"):
        examples = load_data(settings)
    with computing_in(settings.precision):
        student = build_student(settings, len(examples.class_names))
    StudentModel(student, settings.resolutions)  # refuses sizes that cannot work
    writes = leads(strategy)
    if settings.epochs and method.distills and settings.teacher_views is None:
        settings = with_planned_views(settings, examples, teacher, strategy)
    if settings.epochs and settings.teacher_views and writes:
        check_store(settings, examples, teacher)
    for each in filter(None, (first, settings)):
        check_sampler(each, examples)
    same_images(strategy, examples)
    with claimed_workdir(settings, examples, first) if writes else contextlib.nullcontext():
        if settings.cache:
            with timed(seconds, "cache"):
                examples = cached(settings, examples, strategy)
        if first:
            run(first)
        results = execute(settings, method, first, teacher, student, examples, seconds)
        if not writes:
            return {}
        results["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
        metrics_file = Path(settings.workdir) / METRICS_FILE
        write_text(metrics_file, json.dumps(results, indent=1) + "\n")
        if settings.epochs:
            try_report(settings, examples)
    return results


def with_planned_views(
    settings: Settings,
    examples: data.LongTailedData,
    teacher: Teacher,
    strategy: tf.distribute.Strategy,
) -> Settings:
    """Returns the settings with a number of teacher views, and says which and why."""
    draws = settings.epochs * steps_per_epoch(settings, examples) * settings.batch_size
    n, resolution = len(examples.train), resolution_of(settings)

    def speed():
        shown = training_batches(settings, examples, num_examples=settings.batch_size)
        return images_per_second(teacher.embed, next(iter(shown))[0])

    planned, reason = plan_views(n, draws / n, speed, resolution)
    if leads(strategy):
        print(f"--teacher_views={planned}: {reason}")
    return dataclasses.replace(settings, teacher_views=int(from_first(strategy, planned)))


def images_per_second(embed: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor) -> float:
    """Returns how many images a second a network encodes, by the better of two goes."""
    encode = tf.function(embed)
    encode(images)  # traced
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        encode(images).numpy()
        seconds.append(time.monotonic() - start)
    return len(images) / min(seconds)


def check_store(
    settings: Settings,
    examples: data.LongTailedData,
    teacher: Teacher,
) -> dict:
    """Refuses, before the calibration, a store that has no room or holds something else.

    Returns:
        What the store follows from, as far as it is known by now.
    """
    how, resolution = augmentation(settings, examples), resolution_of(settings)
    size, directory = view_size(settings, examples), store_directory(settings)
    made_of = sources(teacher, examples.train, size, how, resolution, settings.seed)
    if (directory / FLAG_FILE).exists():
        raise ValueError(
            f"--teacher_store={directory} is the workdir of a run: give it a directory of its own."
        )
    rows = Rows(directory, record_of(teacher.width, len(examples.class_names)), made_of)
    total = settings.teacher_views * len(examples.train)
    nbytes = total * rows.dtype.itemsize
    check_room(directory, nbytes - len(rows) * rows.dtype.itemsize)
    view_sizes(resolution, settings.teacher_views)  # refuses too few
    if settings.teacher_store and len(rows) < total:
        with locked(directory):  # that it can be written
            pass
    print(
        f"{total:,} views of {len(examples.train):,} images by {settings.teacher}: "
        f"{nbytes / 1e6:,.0f} MB in {directory}"
    )
    return made_of


def store_directory(settings: Settings) -> Path:
    return Path(settings.teacher_store or Path(settings.workdir) / TEACHER_STORE)


def same_images(strategy: tf.distribute.Strategy, examples: data.LongTailedData):
    """Refuses a worker's images where they are not the first one's."""
    if share_of(strategy).workers == 1:
        return  # the digest asks for every file
    mine = int(examples.fingerprint()[:12], 16)
    if mine != from_first(strategy, mine):
        raise ValueError(
            "This worker reads other images than the first one: give all the same data."
        )


def cached(
    settings: Settings, examples: data.LongTailedData, strategy: tf.distribute.Strategy
) -> data.LongTailedData:
    """With the training images in a file, which the first worker makes before others read it."""
    if not leads(strategy):
        meet(strategy)
    train = examples.train.cached(settings.cache)
    if leads(strategy):
        meet(strategy)
    return dataclasses.replace(examples, train=train)


def execute(
    settings: Settings,
    method: Method,
    first: Settings | None,
    teacher: Teacher | None,
    student: tf.keras.Model,
    examples: data.LongTailedData,
    seconds: dict[str, float],
) -> dict:
    """Calibrates, trains, evaluates and exports; notes the seconds of each phase.

    All workers have a part in it; the first one alone writes.
    """
    workdir, strategy = Path(settings.workdir), build_strategy(settings.strategy)
    writes = leads(strategy)
    results = describe(settings, examples)
    if teacher is not None:
        with timed(seconds, "calibrate"):
            calibrate(teacher, settings, examples)
        with timed(seconds, "evaluate_teacher"):
            results["teacher"] = {
                **evaluate(
                    lambda x: teacher(x)[1], settings, examples, strategy=strategy, what="Teacher"
                ),
                "kilobytes": 4 * teacher.count_params() / 1000,
                **classifier_norms(teacher.classifier),
            }
            if checked := teacher.cross_validation:
                results["teacher"]["cross_validation"] = reported(checked, examples)
    if settings.epochs:
        if not method.second_stage:
            setup = set_up(settings, examples, teacher, first)
            model = train(settings, method, student, setup, examples, seconds)
        elif writes:
            with timed(seconds, "second_stage"):
                model = retrain_classifier(settings, method, first, examples)
        if settings.precision != "float32" or settings.strategy:
            model = as_shipped(settings, examples)
        with timed(seconds, "evaluate"):
            predictions_file = workdir / PREDICTIONS_FILE if writes else None
            results["student"] = {
                **evaluate(model, settings, examples, predictions_file, strategy),
                **student_size(model.student),
                **classifier_norms(model.student),
            }
        if writes:
            with timed(seconds, "export"):
                model.export(
                    str(workdir / "saved_model"),
                    examples.class_names,
                    centre_square=centre_square(settings),
                )
    return results


def as_shipped(settings: Settings, examples: data.LongTailedData) -> StudentModel:
    """The student as it is evaluated and exported: in float32, and none of a strategy's."""
    strategy = build_strategy(settings.strategy)
    if leads(strategy):
        model, _ = restore(settings)
    else:
        model = StudentModel(build_student(settings, len(examples.class_names), pretrained=False))
    weights = [from_first(strategy, w) for w in model.student.get_weights()]
    model.student.set_weights(weights)
    return model


def set_up(
    settings: Settings,
    examples: data.LongTailedData,
    teacher: Teacher | None = None,
    first: Settings | None = None,
) -> Setup:
    """What the run brings to its method."""
    return Setup(
        examples.class_counts,
        settings.epochs,
        steps_per_epoch(settings, examples),
        {"resolutions": settings.resolutions, "seed": settings.seed},
        teacher,
        restore(first)[0] if first else None,
        partial(encode_views, settings=settings, examples=examples),
        settings.lambda_per_sample,
        examples.label_smoothing,
    )


def train(
    settings: Settings,
    method: Method,
    student: tf.keras.Model,
    setup: Setup,
    examples: data.LongTailedData,
    seconds: dict[str, float],
) -> StudentModel:
    """Trains the student, with real-valued weights first where two steps are asked for."""
    half = settings.epochs // 2 if settings.two_step else 0
    setup = dataclasses.replace(setup, epochs=settings.epochs - half)
    model = build_model(settings, method, student, setup)
    if isinstance(model, CandleModel) and model.has_label_term and leads(model.distribute_strategy):
        print(f"The labels weigh {model.label_weight:.2f} beside the teacher's word")
    store = None
    if settings.teacher_views:
        with timed(seconds, "teacher_views"):
            store = complete_store(settings, model, examples)
    if half:
        real = bits.requantize(student, kernel_quantizer=None)
        adam = dataclasses.replace(settings, binary_optimizer="adam")  # Bop finds no binary weights
        first = build_model(adam, method, real, dataclasses.replace(setup, epochs=half))
        seconds["first_step"] = fit(settings, method, first, examples, store, FIRST_STEP, 0, half)
        parts = model.trained_parts()
        for name, part in first.trained_parts().items():
            if isinstance(part, tf.keras.layers.Layer):  # each step has optimizers of its own
                parts[name].set_weights(part.get_weights())
    to = settings.epochs
    seconds["train"] = fit(settings, method, model, examples, store, CHECKPOINTS, half, to)
    return model


def complete_store(
    settings: Settings, model: CandleModel, examples: data.LongTailedData
) -> TeacherStore:
    """What the teacher makes of `--teacher_views` of each image, taken up or made."""
    store = TeacherStore(
        store_directory(settings),
        model,
        examples.train,
        view_size(settings, examples),
        settings.teacher_views,
        augmentation(settings, examples),
        settings.seed,
    )
    strategy = build_strategy(settings.strategy)
    store.complete(verbose=int(leads(strategy)), strategy=strategy)
    return store


def retrain_classifier(
    settings: Settings, method: Method, first: Settings, examples: data.LongTailedData
) -> StudentModel:
    """The first stage's student with the classifier that the second stage makes of its features."""
    model, _ = restore(first)
    if method.batch_norm_shift:
        size = settings.batch_size
        whole = -(-len(examples.train) // size) * size  # a short last batch would weigh most
        balanced = training_batches(
            settings,
            examples,
            sampler="class_balanced",
            seed=settings.seed + 1,
            num_examples=whole,
        )
        for images, _ in balanced:
            model.embed(images, training=True)
    features, labels = encode_views(model, settings, examples)
    validation = None
    if examples.validation is not None:
        held_out = evaluation_batches(settings, examples, examples.validation)
        counts = np.bincount(examples.validation.labels, minlength=len(examples.class_counts))
        validation = encode_dataset(model.embed, held_out, counts, verbose=0)
    print(f"A new classifier by {method.second_stage}, on {len(features)} features")
    classifier = model.student.get_layer("logits")
    trained = FirstStage(
        features,
        labels,
        examples.class_counts,
        *classifier.get_weights(),
        validation,
        examples.label_smoothing,
        settings.calibration_epochs,
        settings.batch_size,
        seed=settings.seed,
    )
    classifier.set_weights(SECOND_STAGES[method.second_stage](trained))
    checkpoint = tf.train.Checkpoint(student=model.student)
    checkpoint.save(str(Path(settings.workdir) / CHECKPOINTS / "second_stage"))
    return model


def encode_views(
    model: StudentModel, settings: Settings, examples: data.LongTailedData
) -> tuple[np.ndarray, np.ndarray]:
    """The model's features of `--calibration_views` of each training image, and their labels."""
    batches = training_batches(settings, examples, seed=settings.seed + 1)
    return encode_dataset(
        model.embed, batches, examples.class_counts, settings.calibration_views, verbose=0
    )


def reported(checked: CrossValidation, examples: data.LongTailedData) -> dict:
    """Returns a calibration's cross-validation as metrics.json has it: NaN is null there."""
    return {
        "strength": checked.strength,
        "class_mean": null_for_nan(checked.class_mean),
        "ranks": checked.by_rank(examples.info.bounds),
        "per_class": [null_for_nan(value) for value in checked.per_class],
    }


def null_for_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def calibrate(teacher: Teacher, settings: Settings, examples: data.LongTailedData):
    """Calibrates the teacher, or takes up the classifier of an interrupted run."""
    classifier_file = Path(settings.workdir) / CLASSIFIER_FILE
    calibration_file = Path(settings.workdir) / CALIBRATION_FILE
    features = Path(settings.workdir) / CALIBRATION
    strategy = build_strategy(settings.strategy)
    if from_first(strategy, classifier_file.exists()):
        teacher.classifier = load_model(classifier_file)
        teacher.classifier.trainable = False
        teacher.class_counts = examples.class_counts.tolist()
        if calibration_file.exists():
            checked = read_json(calibration_file, dict, "delete the workdir")
            teacher.cross_validation = CrossValidation(**checked)
        if leads(strategy):
            shutil.rmtree(features, ignore_errors=True)
        return
    wide = widened(settings, strategy)

    def batches(share):
        return training_batches(wide, examples, seed=settings.seed + 1, share=share)

    views = settings.calibration_views
    print(f"Calibrating {settings.teacher} on {len(examples.train)} images, {views} views each")
    checked = teacher.calibrate(
        distributed(strategy, batches),
        examples.class_counts,
        loss=settings.calibration,
        label_smoothing=examples.label_smoothing,
        views=views,
        seed=settings.seed,
        verbose=int(leads(strategy)),
        directory=features,
        strategy=strategy,
    )
    if leads(strategy):
        write_text(calibration_file, json.dumps(checked.get_config()) + "\n")
        with written_beside(classifier_file) as beside:
            teacher.classifier.save(beside)
        shutil.rmtree(features, ignore_errors=True)


def try_report(settings: Settings, examples: data.LongTailedData | None = None):
    """Writes the report of a finished run, its images read if not given, or says why not."""
    try:
        print(f"Wrote {report(settings, examples or load_data(settings))}")
    except (ImportError, OSError, ValueError) as error:
        print(f"No report was written: {error}")


def report(settings: Settings, examples: data.LongTailedData, **compared) -> Path:
    """The report of a finished run; see `candle_tf.reports.report.write_report`."""
    # A live teacher's steps each draw from the beginning; a store's stream goes on.
    half = settings.epochs // 2 if settings.two_step and not settings.teacher_views else 0
    steps = steps_per_epoch(settings, examples)
    resolution = resolution_of(settings)
    drawn = [resolution.draws(epochs * steps) for epochs in (half, settings.epochs - half)]
    return write_report(settings.workdir, examples, np.concatenate(drawn), **compared)


@contextlib.contextmanager
def timed(seconds: dict[str, float], phase: str):
    start = time.monotonic()
    yield
    seconds[phase] = time.monotonic() - start
