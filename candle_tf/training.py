"""The main job: data -> teacher -> calibrate -> distill -> evaluate -> export, in one workdir."""

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import larq as lq
import numpy as np
import tensorflow as tf
from candle_tf import data, metrics, students
from candle_tf.checkpoints import Checkpoints, NotFinite, newest_first
from candle_tf.classifiers import encode_dataset, weight_norms
from candle_tf.data.samplers import epoch_length
from candle_tf.distribution import (
    ALONE,
    build_strategy,
    distributed,
    first_line,
    from_first,
    leads,
    meet,
    on_all_replicas,
    share_of,
    stopping_with_the_others,
)
from candle_tf.files import Rows, check_room, locked, read_json, write_text, written_beside
from candle_tf.inputs import (
    augmentation,
    check_sampler,
    evaluation_batches,
    indices_of,
    load_data,
    place_of,
    resolution_of,
    steps_per_epoch,
    training_batches,
    training_stream,
    view_size,
)
from candle_tf.methods import Method, Setup
from candle_tf.model import CandleModel, StudentModel
from candle_tf.model_files import load_model
from candle_tf.networks import at_policy, renewed, with_synchronized_batch_norm
from candle_tf.optimizers import build_optimizer
from candle_tf.registry import arguments_of, lookup, parse_spec
from candle_tf.report import write_report
from candle_tf.second_stages import SECOND_STAGES, FirstStage
from candle_tf.settings import Settings, first_stage, resolve, resolved
from candle_tf.students import bits
from candle_tf.teacher import Teacher, named_teachers
from candle_tf.teacher_store import TeacherStore, plan_views, record_of, sources
from candle_tf.workdir import (
    CALIBRATION,
    CHECKPOINTS,
    CLASSES_FILE,
    CLASSIFIER_FILE,
    FIRST_STEP,
    FLAG_FILE,
    HISTORY_FILE,
    METRICS_FILE,
    NOT_FINITE,
    PREDICTIONS_FILE,
    REPORT,
    SKIPPED_FILE,
    TEACHER_STORE,
    check_workdir,
    claimed_workdir,
    read_results,
)

MOST_SKIPPED = 10  # batches whose loss was not finite
LETTERS = Path(__file__).parent / "assets" / "letters.h5"


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
    settings.check()
    method, settings = resolve(settings), resolved(settings)
    share_of(strategy).batch_size(settings.batch_size)  # refuses parts of different sizes
    check_workdir(settings)
    first = first_stage(settings) if settings.epochs else None
    if first:
        first.check()
        check_workdir(resolved(first))
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
    if settings.epochs and settings.teacher_views and writes:
        check_store(settings, examples, teacher)
    for each in filter(None, (first, settings)):
        check_sampler(each, examples)
    same_images(strategy, examples)
    with claimed_workdir(settings, examples) if writes else contextlib.nullcontext():
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
    sampler = resolve(settings).sampler
    made_of = sources(teacher, examples.train, size, how, resolution, sampler, settings.seed)
    if (directory / FLAG_FILE).exists():
        raise ValueError(
            f"--teacher_store={directory} is the workdir of a run: give it a directory of its own."
        )
    rows = Rows(directory, record_of(teacher.width, len(examples.class_names), how), made_of)
    labels, views = examples.train.labels, settings.teacher_views
    there, record = len(rows), rows.dtype.itemsize
    check_room(directory, (views * epoch_length(labels, sampler) - there) * record)  # before a plan
    total = len(plan_views(labels, sampler, views, resolution))
    nbytes = total * record
    check_room(directory, nbytes - there * record)
    if settings.teacher_store and there < total:
        with locked(directory):  # that it can be written
            pass
    print(
        f"{total:,} views of {len(examples.train):,} images by {settings.teacher}: "
        f"{nbytes / 1e6:,.0f} MB in {directory}"
    )
    return made_of


def mirrored_teacher(teacher: Teacher) -> Teacher:
    """The same teacher in new layers, within the scope that it is called in."""
    again = Teacher.from_config(teacher.get_config())
    again.encoder.set_weights(teacher.encoder.get_weights())
    again.classifier.set_weights(teacher.classifier.get_weights())
    return again


def mirrored_setup(setup: Setup) -> Setup:
    """The setup with the networks that it brings in new layers."""
    teacher, first = setup.teacher, setup.first_stage
    return dataclasses.replace(
        setup,
        teacher=teacher and mirrored_teacher(teacher),
        first_stage=first and StudentModel(renewed(first.student)),
    )


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
                **evaluate(lambda x: teacher(x)[1], settings, examples, strategy=strategy),
                "kilobytes": 4 * teacher.count_params() / 1000,
                **classifier_norms(teacher.classifier),
            }
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
                model.export(str(workdir / "saved_model"), examples.class_names)
    return results


def as_shipped(settings: Settings, examples: data.LongTailedData) -> StudentModel:
    """The student as it is evaluated and exported: in float32, and none of a strategy's."""
    strategy = build_strategy(settings.strategy)
    if leads(strategy):
        model, _ = restore(settings)
    else:
        model = StudentModel(build_student(settings, len(examples.class_names)))
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
        resolve(settings).sampler,
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


def build_student(settings: Settings, num_classes: int) -> tf.keras.Model:
    name, arguments = parse_spec(settings.student)
    tf.keras.utils.set_random_seed(settings.seed)
    if name in students.STUDENTS:  # those of larq-zoo have their own
        info = data.info_of(settings.dataset)
        arguments = {"mean": info.mean, "std": info.std, **arguments} if info.mean else arguments
    with arguments_of("student", settings.student):
        student = students.find(name)(num_classes, settings.image_size, **arguments)
    return resolve(settings).network(bits.at_bits(student, settings.student_bits))


def build_teacher(settings: Settings) -> Teacher:
    """The teacher that `--teacher` names, not yet calibrated."""
    teacher = named_teacher(settings)
    if settings.precision != "float32":
        teacher.encoder = at_policy(teacher.encoder, settings.precision)
        teacher.encoder.trainable = False
    return teacher


def named_teacher(settings: Settings) -> Teacher:
    size, preprocessing = settings.teacher_image_size, settings.teacher_preprocessing
    kind = settings.teacher.partition(":")[0]
    named = {"keras": Teacher.from_keras, "larq_zoo": Teacher.from_larq_zoo}
    if kind in named:
        name, arguments = parse_spec(settings.teacher)
        name = name.removeprefix(f"{kind}:")
        with arguments_of("teacher", settings.teacher):
            return named[kind](
                name, size, settings.teacher_weights or None, preprocessing, **arguments
            )
    if not os.path.exists(settings.teacher) and not os.path.splitext(settings.teacher)[1]:
        lookup("teacher", settings.teacher, dict.fromkeys(named_teachers()))
    path = LETTERS if settings.teacher == "letters" else settings.teacher
    return Teacher.from_file(path, size, preprocessing, settings.allow_custom_code)


def calibrate(teacher: Teacher, settings: Settings, examples: data.LongTailedData):
    """Calibrates the teacher, or takes up the classifier of an interrupted run."""
    classifier_file = Path(settings.workdir) / CLASSIFIER_FILE
    features = Path(settings.workdir) / CALIBRATION
    strategy = build_strategy(settings.strategy)
    if from_first(strategy, classifier_file.exists()):
        teacher.classifier = load_model(classifier_file)
        teacher.classifier.trainable = False
        teacher.class_counts = examples.class_counts.tolist()
        if leads(strategy):
            shutil.rmtree(features, ignore_errors=True)
        return
    wide = widened(settings, strategy)

    def batches(share):
        return training_batches(wide, examples, seed=settings.seed + 1, share=share)

    views = settings.calibration_views
    print(f"Calibrating {settings.teacher} on {len(examples.train)} images, {views} views each")
    teacher.calibrate(
        distributed(strategy, batches),
        examples.class_counts,
        settings.calibration_epochs,
        settings.calibration,
        examples.label_smoothing,
        views,
        seed=settings.seed,
        verbose=int(leads(strategy)),
        directory=features,
        strategy=strategy,
    )
    if leads(strategy):
        with written_beside(classifier_file) as beside:
            teacher.classifier.save(beside)
        shutil.rmtree(features, ignore_errors=True)


def widened(settings: Settings, strategy: tf.distribute.Strategy) -> Settings:
    """With a whole batch for each replica, where nothing is trained on it."""
    batch_size = settings.batch_size * strategy.num_replicas_in_sync
    return dataclasses.replace(settings, batch_size=batch_size)


def build_model(
    settings: Settings, method: Method, student: tf.keras.Model, setup: Setup
) -> StudentModel:
    """The compiled model that `fit` trains, its learning rate annealed over the setup's epochs."""
    if settings.sync_batch_norm:
        student = with_synchronized_batch_norm(student)
    rate, warmup = settings.learning_rate, settings.warmup_epochs
    schedule = tf.keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else rate,
        (setup.epochs - warmup) * setup.steps_per_epoch,
        warmup_target=rate,
        warmup_steps=warmup * setup.steps_per_epoch,
    )
    with build_strategy(settings.strategy).scope(), computing_in(settings.precision):
        if settings.strategy:  # in layers whose variables all replicas have
            student, setup = renewed(student), mirrored_setup(setup)
        model = method.model(method, student, setup)
        model.compile(
            build_optimizer(settings.binary_optimizer, schedule),
            loss=method.loss and method.loss(setup.class_counts),
            metrics=["accuracy"],
        )
    return model


def fit(
    settings: Settings,
    method: Method,
    model: StudentModel,
    examples: data.LongTailedData,
    store: TeacherStore | None,
    name: str,
    first_epoch: int,
    epochs: int,
) -> float:
    """Trains from `first_epoch`, or from the last checkpoint in `name`, to `epochs`.

    Returns:
        The seconds that it took, over all restarts.

    Raises:
        NotFinite: which says where the batch is noted, and what is left.
        SystemExit: after SIGTERM, when the update is saved.
    """
    workdir = Path(settings.workdir)
    steps = steps_per_epoch(settings, examples)
    strategy = build_strategy(settings.strategy)
    leader = leads(strategy)
    skips = settings.on_nan == "skip"
    checkpoints = Checkpoints(model, workdir / name, settings.checkpoint_every, strategy, skips)
    checkpoints.updates = max(checkpoints.updates, first_epoch * steps)
    skipped_file = workdir / SKIPPED_FILE
    skipped = []
    if skipped_file.exists():
        skipped = read_json(skipped_file, list, "delete it, and what it named is skipped anew")
    if checkpoints.updates < epochs * steps:
        print(f"Training {settings.student} by {settings.method}: epochs of {steps} updates")
    with checkpoints.saving_on_sigterm():
        if skips and checkpoints.updates == first_epoch * steps:
            checkpoints.save("the beginning")
        while checkpoints.updates < epochs * steps:
            epoch, into = divmod(checkpoints.updates, steps)
            try:
                stream = partial(
                    training_stream, settings, examples, checkpoints.updates, store, skipped
                )
                model.fit(
                    distributed(strategy, stream),
                    initial_epoch=epoch,
                    epochs=epoch + 1 if into else epochs,  # what was begun first
                    steps_per_epoch=steps - into,
                    callbacks=[
                        tf.keras.callbacks.LambdaCallback(on_epoch_end=checkpoints.complete),
                        *method.callbacks(settings.epochs),
                        *(loggers(workdir, epoch) if leader else ()),
                        checkpoints,
                    ],
                    verbose=int(leader),
                )
            except NotFinite as error:
                skipped = leave_out(settings, checkpoints, examples, skipped, error)
                checkpoints.restore()
                print(f"Going on from update {checkpoints.updates}.")
    return checkpoints.seconds


def leave_out(
    settings: Settings,
    checkpoints: Checkpoints,
    examples: data.LongTailedData,
    skipped: Sequence[int],
    error: NotFinite,
) -> list[int]:
    """Notes the batch of an update whose loss was not finite, and the state that it left.

    Returns:
        The places of the batches to leave out, with its own.

    Raises:
        NotFinite: where none is to be left out, or no more; says where it is noted.
    """
    place = place_of(checkpoints.updates, skipped)
    workdir, indices = Path(settings.workdir), indices_of(settings, examples, place, skipped)
    note = {"update": checkpoints.updates + 1, "indices": indices}
    note["labels"] = examples.train.labels[indices].tolist()
    if examples.train.on_disk:
        note["files"] = [os.fsdecode(examples.train.images[i].numpy()) for i in indices]
    noted = workdir / NOT_FINITE / f"batch_{place}"
    writes = leads(checkpoints.strategy)
    if writes:
        noted.mkdir(parents=True, exist_ok=True)
        write_text(noted / "batch.json", json.dumps(note, indent=1) + "\n")
    checkpoints.write(noted / "state")
    said = f"{error} Its images and the state after it are in {noted}"
    if settings.on_nan == "stop":
        raise NotFinite(
            f"{said}; the last good state is {checkpoints.last}. Lower --learning_rate and give "
            f"another --workdir; or leave out such batches, up to {MOST_SKIPPED}, by --on_nan=skip."
        ) from error
    if len(skipped) == MOST_SKIPPED:
        raise NotFinite(
            f"{said}; {MOST_SKIPPED} are left out already, so it is not the batches: lower "
            "--learning_rate and give another --workdir."
        ) from error
    print(f"\n{said}; it is left out.")
    if writes:
        write_text(workdir / SKIPPED_FILE, json.dumps([*skipped, place]) + "\n")
    return [*skipped, place]


def loggers(workdir: Path, first_epoch: int) -> list[tf.keras.callbacks.Callback]:
    """Logs by epoch, without the rows from `first_epoch` on, which a killed run may have left."""
    path = workdir / HISTORY_FILE
    if first_epoch and path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [line for line in lines[1:] if int(line.partition(",")[0]) < first_epoch]
        write_text(path, "".join(lines[:1] + rows))
    return [
        tf.keras.callbacks.CSVLogger(path, append=first_epoch > 0),
        tf.keras.callbacks.TensorBoard(workdir / "tensorboard", write_graph=False),
    ]


def restore(settings: Settings) -> tuple[StudentModel, list[str]]:
    """The student of a run as of its last checkpoint, and its class names.

    Raises:
        FileNotFoundError: if the run has no checkpoint yet.
    """
    names_file = Path(settings.workdir) / CLASSES_FILE
    class_names = read_json(names_file, list, "the run's command writes it again")
    student = build_student(settings, len(class_names))
    checkpoints = newest_first(Path(settings.workdir) / CHECKPOINTS)
    if not checkpoints:
        raise FileNotFoundError(f"{settings.workdir} holds no checkpoint yet: let train.py finish.")
    try:
        restored = tf.train.Checkpoint(student=student).restore(checkpoints[0])
        restored.assert_existing_objects_matched().expect_partial()
    except (tf.errors.OpError, IndexError, AssertionError) as error:
        raise ValueError(
            f"{checkpoints[0]} is damaged, or of another version ({first_line(error)}): delete "
            f"{METRICS_FILE} beside it, and the run's command goes on from the one before it."
        ) from error
    return StudentModel(student), class_names


def evaluate(
    network: Callable[[tf.Tensor], tf.Tensor],
    settings: Settings,
    examples: data.LongTailedData,
    predictions_file: Path | None = None,
    strategy: tf.distribute.Strategy = ALONE,
) -> dict:
    """Accuracy on the test set, and on the validation split where there is one.

    Args:
        network: images -> logits.
        predictions_file: where to save what is predicted of the test set, if anywhere.
        strategy: whose replicas each predict their part.
    """
    reports, predict = {}, on_all_replicas(strategy, network)
    wide = widened(settings, strategy)
    for split in ("validation", "test"):
        part = getattr(examples, split)
        if part is None:
            continue
        batches = distributed(strategy, partial(evaluation_batches, wide, examples, part))
        logits = np.concatenate([predict(images).numpy() for images, _ in batches])
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
    second_stage = resolve(settings).second_stage
    return {
        "method": settings.method,
        "dataset": settings.dataset,
        "class_names": examples.class_names,
        "class_counts": counts.tolist(),
        "imbalance_ratio": float(counts.max() / counts.min()),
        "test_images": len(examples.test),
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


def try_report(settings: Settings, examples: data.LongTailedData | None = None):
    """Writes the report of a finished run, its images read if not given, or says why not."""
    try:
        print(f"Wrote {report(settings, examples or load_data(settings))}")
    except (ImportError, OSError) as error:
        print(f"No report was written: {error}")


def report(settings: Settings, examples: data.LongTailedData, **compared) -> Path:
    """The report of a finished run; see `candle_tf.report.write_report`."""
    # A live teacher's steps each draw from the beginning; a store's stream goes on.
    half = settings.epochs // 2 if settings.two_step and not settings.teacher_views else 0
    steps = steps_per_epoch(settings, examples)
    resolution = resolution_of(settings)
    drawn = [resolution.draws(epochs * steps) for epochs in (half, settings.epochs - half)]
    return write_report(settings.workdir, examples, np.concatenate(drawn), **compared)


@contextlib.contextmanager
def computing_in(policy: str):
    """Layers that are built within compute by the Keras mixed-precision policy."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


@contextlib.contextmanager
def timed(seconds: dict[str, float], phase: str):
    start = time.monotonic()
    yield
    seconds[phase] = time.monotonic() - start
