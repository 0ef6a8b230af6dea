"""The main job: data -> teacher -> calibrate -> distill -> evaluate -> export, in one workdir."""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import larq as lq
import numpy as np
import tensorflow as tf
from candle_tf import data, metrics, students
from candle_tf.classifiers import encode_dataset, weight_norms
from candle_tf.methods import METHODS, Method, Setup
from candle_tf.model import StudentModel
from candle_tf.model_files import load_model
from candle_tf.registry import lookup, parse_spec
from candle_tf.report import FLAG_FILE, HISTORY_FILE, PREDICTIONS_FILE, write_report
from candle_tf.resolution import RandomResolution
from candle_tf.second_stages import SECOND_STAGES, FirstStage
from candle_tf.students import bits
from candle_tf.teacher import CALIBRATIONS, PREPROCESSING, Teacher, named_teachers

LETTERS = Path(__file__).parent / "assets" / "letters.h5"
METRICS_FILE = "metrics.json"
CLASSES_FILE, CLASSIFIER_FILE = "class_names.json", "teacher_classifier.keras"
CHECKPOINTS, FIRST_STEP = "checkpoints", "first_step"
BEGUN = (CLASSIFIER_FILE, CHECKPOINTS, FIRST_STEP, METRICS_FILE)
MOVABLE = ("--data_dir", "--download", "--first_stage")
OWN = ("sampler", "prior_adjusted", "temperature", "calibration")  # a method's, unless given


def adam(learning_rate) -> tf.keras.optimizers.Optimizer:
    return tf.keras.optimizers.Adam(learning_rate)


def bop(learning_rate, **arguments) -> tf.keras.optimizers.legacy.Optimizer:
    """Bop flips the binary weights (Helwegen et al., arXiv 1906.02107), Adam trains the others."""
    return lq.optimizers.CaseOptimizer(
        (lq.optimizers.Bop.is_binary_variable, lq.optimizers.Bop(**arguments)),
        default_optimizer=tf.keras.optimizers.legacy.Adam(learning_rate),
    )


BINARY_OPTIMIZERS = {"adam": adam, "bop": bop}


def setting(default, help):
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run; scripts/train.py has a flag for each."""

    workdir: str = setting("", "Directory of this run: flags, logs, checkpoints, metrics, exports.")
    dataset: str = setting("digits", "'digits', or 'tfds:NAME' for a set of TFDS.")
    data_dir: str | None = setting(None, "Where TFDS keeps its sets; its own default if not given.")
    download: bool = setting(
        False, "Let TFDS download and prepare a set that is not in --data_dir."
    )
    imbalance_ratio: float | None = setting(
        None, "Largest over smallest class count to make; the set as published if not given."
    )
    profile: str = setting("exponential", f"Shape of the tail: {', '.join(data.PROFILES)}.")
    validation_split: float = setting(0.0, "Share of each class's training images to hold out.")
    method: str = setting("candle", f"What trains the student: {', '.join(METHODS)}.")
    sampler: str | None = setting(
        None, f"What enters the batches: {', '.join(data.SAMPLERS)}; the method's own if not given."
    )
    prior_adjusted: bool | None = setting(
        None, "Add the log prior to both sides of the KL; as the method does if not given."
    )
    temperature: float | None = setting(None, "T of the KL term; the method's own if not given.")
    lambda_per_sample: bool = setting(False, "One adversarial lambda an image, not one a batch.")
    teacher: str = setting(
        "letters",
        "'keras:NAME' of tf.keras.applications, 'larq_zoo:NAME', both with arguments as in "
        "'keras:MobileNet:alpha=0.25'; the path of a saved Keras model; or 'letters', the small "
        "network that this package ships.",
    )
    teacher_weights: str = setting(
        "imagenet", "'imagenet' or a weights file, for a named teacher; empty for random weights."
    )
    teacher_preprocessing: str | None = setting(
        None,
        f"What the teacher wants of images, as in Keras: {', '.join(PREPROCESSING)}"
        "; an application's own, and 'tf' for a file, if not given.",
    )
    teacher_image_size: int = setting(32, "Side in pixels of the images that the teacher sees.")
    allow_custom_code: bool = setting(False, "Trust a teacher file that carries code of its own.")
    calibration: str | None = setting(
        None,
        f"Loss of the calibration: {', '.join(CALIBRATIONS)}; the method's own if not given.",
    )
    calibration_epochs: int = setting(30, "Passes of the classifier over the teacher's features.")
    calibration_views: int = setting(2, "Augmented views of each image to calibrate on.")
    student: str = setting(
        "resnet_e",
        f"{', '.join(students.STUDENTS)}, or 'larq_zoo:NAME'; with arguments as in "
        "'resnet_e:width=0.5' or 'larq_zoo:QuickNet:weights=\"imagenet\"'.",
    )
    student_bits: str = setting(
        "1", f"Width of the student's weights and activations: {', '.join(bits.BITS)}."
    )
    image_size: int = setting(32, "Side in pixels of the images that the student sees.")
    resolutions: tuple[int, ...] = setting(
        (), "Student sizes to draw from, such as 24,32,40; --image_size alone if not given."
    )
    epochs: int = setting(20, "Epochs of the student; 0 stops after the calibration.")
    steps_per_epoch: int | None = setting(
        None, "Updates an epoch; one pass over the images if not given."
    )
    batch_size: int = setting(128, "Images an update.")
    learning_rate: float = setting(2.5e-3, "Adam's, annealed by cosine to 0.")
    warmup_epochs: int = setting(0, "Epochs in which the learning rate rises from 0 first.")
    binary_optimizer: str = setting(
        "adam",
        "What trains the binary weights: 'adam' on latent weights, or Larq's 'bop', with arguments "
        "as in 'bop:gamma=1e-3,threshold=1e-8'.",
    )
    two_step: bool = setting(
        False, "Real-valued weights for the first half of the epochs (binary activations first)."
    )
    first_stage: str | None = setting(
        None,
        "Workdir of the run that a method of two stages starts from, made if it is not there; "
        "first_stage in --workdir if not given.",
    )
    seed: int = setting(0, "Of everything random: the same seed gives the same run.")

    def to_flags(self) -> str:
        """A flag file that makes the same run in another workdir."""
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "workdir" or value in (None, ()):
                continue
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            lines.append(f"--{field.name}={text}\n")
        return "".join(lines)

    def check(self):
        """Refuses, before any work, names that do not exist and numbers out of range."""
        if not self.workdir:
            raise ValueError("--workdir is missing: name the directory that the run writes to.")
        method = resolve(self)
        lookup("profile", self.profile, data.PROFILES)
        lookup("sampler", self.sampler, data.SAMPLERS)
        students.find(parse_spec(self.student)[0])
        lookup("student_bits", self.student_bits, bits.BITS)
        build_optimizer(self, self.learning_rate)
        lookup("calibration", self.calibration, dict.fromkeys(CALIBRATIONS))
        if self.teacher_preprocessing is not None:
            lookup("preprocessing", self.teacher_preprocessing, dict.fromkeys(PREPROCESSING))
        least = {"epochs": 0, "seed": 0, "warmup_epochs": 0} | dict.fromkeys(
            "batch_size calibration_epochs calibration_views image_size steps_per_epoch "
            "teacher_image_size".split(),
            1,
        )
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"--{name} is {value} but must be at least {minimum}.")
        for name in ("learning_rate", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"--{name} is {getattr(self, name)} but must be above 0.")
        if self.two_step and self.epochs == 1:
            raise ValueError("--two_step needs at least 2 --epochs, one for each step.")
        if self.student_bits != "1" and not self.binary_optimizer.startswith("adam"):
            raise ValueError(
                f"--binary_optimizer={self.binary_optimizer} trains binary weights: there are none "
                f"at --student_bits={self.student_bits}, so leave one of the two out."
            )
        if method.second_stage == "tau_norm" and not self.validation_split:
            raise ValueError(
                f"--method={self.method} chooses tau on held-out images: give --validation_split, "
                "such as 0.1."
            )
        shortest = self.epochs // 2 if self.two_step else self.epochs
        if self.epochs and self.warmup_epochs >= shortest:
            raise ValueError(
                f"--warmup_epochs is {self.warmup_epochs} but must be below the {shortest} epochs "
                "that the learning rate is annealed over."
            )


def run(settings: Settings) -> dict:
    """Runs the main job and returns what it writes to metrics.json.

    The same settings again continue an interrupted run in its workdir from its last epoch, and
    return what a finished one wrote.

    Raises:
        ValueError, OSError: one sentence that names cause and remedy.
    """
    method = resolve(settings)
    first = first_stage(settings)
    settings = resolved(settings)
    settings.check()
    check_workdir(settings)
    finished = Path(settings.workdir) / METRICS_FILE
    if finished.exists():
        print(f"{settings.workdir} holds this run, finished.")
        return json.loads(finished.read_text(encoding="utf-8"))
    distills = method.distills or not settings.epochs
    teacher = build_teacher(settings) if distills else None
    seconds: dict[str, float] = {}
    with timed(seconds, "data"):
        examples = load_data(settings)
    student = build_student(settings, len(examples.class_names))
    StudentModel(student, settings.resolutions)  # refuses sizes that cannot work
    claim_workdir(settings, examples.class_names)
    workdir = Path(settings.workdir)
    if first:
        run(first)

    results = describe(settings, examples)
    if teacher is not None:
        with timed(seconds, "calibrate"):
            calibrate(teacher, settings, examples)
        with timed(seconds, "evaluate_teacher"):
            results["teacher"] = {
                **evaluate(lambda x, **kw: teacher.predict(x, **kw)[1], settings, examples),
                "kilobytes": 4 * teacher.count_params() / 1000,
                **classifier_norms(teacher.classifier),
            }
    if settings.epochs:
        if method.second_stage:
            with timed(seconds, "second_stage"):
                model = retrain_classifier(settings, method, first, examples)
        else:
            setup = set_up(settings, examples, teacher, first)
            model = train(settings, method, student, setup, examples, seconds)
        with timed(seconds, "evaluate"):
            results["student"] = {
                **evaluate(model.predict, settings, examples, workdir / PREDICTIONS_FILE),
                **student_size(model.student),
                **classifier_norms(model.student),
            }
        with timed(seconds, "export"):
            model.export(os.path.join(settings.workdir, "saved_model"), examples.class_names)
    results["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    write_text(workdir / METRICS_FILE, json.dumps(results, indent=1) + "\n")
    if settings.epochs:
        try:
            print(f"Wrote {report(settings, examples)}")
        except (ImportError, OSError) as error:  # the run itself is done
            print(f"No report was written: {error}")
    return results


def set_up(
    settings: Settings,
    examples: data.LongTailedData,
    teacher: Teacher | None = None,
    first: Settings | None = None,
) -> Setup:
    """What the run brings to its method."""
    return Setup(
        examples.class_counts,
        settings.epochs * steps_per_epoch(settings, examples),
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
    model = build_model(settings, method, student, setup, settings.epochs - half)
    if half:
        real = bits.requantize(student, kernel_quantizer=None)
        adam = dataclasses.replace(settings, binary_optimizer="adam")  # Bop finds no binary weights
        first = build_model(adam, method, real, setup, half)
        seconds["first_step"] = fit(settings, method, first, examples, FIRST_STEP, 0, half)
        parts = model.trained_parts()
        for name, part in first.trained_parts().items():
            if isinstance(part, tf.keras.layers.Layer):  # each step has optimizers of its own
                parts[name].set_weights(part.get_weights())
    seconds["train"] = fit(settings, method, model, examples, CHECKPOINTS, half, settings.epochs)
    return model


def retrain_classifier(
    settings: Settings, method: Method, first: Settings, examples: data.LongTailedData
) -> StudentModel:
    """The first stage's student with the classifier that the second stage makes of its features."""
    model, _ = restore(first)
    if method.batch_norm_shift:
        for images, _ in view_batches(settings, examples)(sampler="class_balanced"):
            model.embed(images, training=True)
    features, labels = encode_views(model, settings, examples)
    validation = None
    if examples.validation is not None:
        held_out = evaluation_batches(settings, examples, examples.validation)
        counts = np.bincount(examples.validation.labels, minlength=len(examples.class_counts))
        validation = encode_dataset(model.embed, held_out, counts)
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
    batches = view_batches(settings, examples)()
    return encode_dataset(
        model.embed, batches, examples.class_counts, settings.calibration_views, verbose=0
    )


def view_batches(settings: Settings, examples: data.LongTailedData) -> Callable:
    """Makes batches of augmented training images to take features of."""
    return partial(
        data.training_batches,
        examples.train,
        view_size(settings, examples),
        settings.batch_size,
        augmentation=examples.info.augmentation,
        seed=settings.seed + 1,
    )


def resolve(settings: Settings) -> Method:
    """The method's row, with what the settings change of it."""
    method = lookup("method", settings.method, METHODS)
    given = {name: getattr(settings, name) for name in OWN if getattr(settings, name) is not None}
    return dataclasses.replace(method, **given)


def resolved(settings: Settings) -> Settings:
    """The settings with all that the method decides, where they do not, and an absolute path."""
    method = resolve(settings)
    data_dir = settings.data_dir and os.path.abspath(os.path.expanduser(settings.data_dir))
    given = {name: getattr(method, name) for name in OWN}
    return dataclasses.replace(settings, data_dir=data_dir, **given)


def first_stage(settings: Settings) -> Settings | None:
    """The run that a method of two stages starts from."""
    method = lookup("method", settings.method, METHODS)
    if method.first_stage is None:
        return None
    workdir = settings.first_stage or os.path.join(settings.workdir, "first_stage")
    given = {"workdir": workdir, "first_stage": None, **method.first_stage}
    return dataclasses.replace(settings, **given)


def load_data(settings: Settings) -> data.LongTailedData:
    return data.load(
        settings.dataset,
        settings.data_dir,
        settings.imbalance_ratio,
        settings.profile,
        settings.validation_split,
        settings.seed,
        settings.download,
    )


def build_student(settings: Settings, num_classes: int) -> tf.keras.Model:
    name, arguments = parse_spec(settings.student)
    tf.keras.utils.set_random_seed(settings.seed)
    with arguments_of("student", settings.student):
        student = students.find(name)(num_classes, settings.image_size, **arguments)
    return resolve(settings).network(bits.at_bits(student, settings.student_bits))


def build_teacher(settings: Settings) -> Teacher:
    """The teacher that `--teacher` names, not yet calibrated."""
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


@contextlib.contextmanager
def arguments_of(flag: str, spec: str):
    """Names the flag whose arguments do not fit what it names."""
    try:
        yield
    except TypeError as error:
        raise ValueError(f"--{flag}={spec} has arguments that do not fit: {error}.") from error


def calibrate(teacher: Teacher, settings: Settings, examples: data.LongTailedData):
    """Calibrates the teacher, or takes up the classifier of an interrupted run."""
    classifier_file = Path(settings.workdir) / CLASSIFIER_FILE
    if classifier_file.exists():
        teacher.classifier = load_model(classifier_file)
        teacher.classifier.trainable = False
        teacher.class_counts = examples.class_counts.tolist()
        return
    batches = view_batches(settings, examples)()
    views = settings.calibration_views
    print(f"Calibrating {settings.teacher} on {len(examples.train)} images, {views} views each")
    teacher.calibrate(
        batches,
        examples.class_counts,
        settings.calibration_epochs,
        settings.calibration,
        examples.label_smoothing,
        views,
        seed=settings.seed,
        verbose=1,
    )
    written = classifier_file.with_suffix(".tmp.keras")
    teacher.classifier.save(written)
    os.replace(written, classifier_file)


def view_size(settings: Settings, examples: data.LongTailedData) -> int:
    """The largest size that student or teacher needs, never above the source's own."""
    largest = max(settings.resolutions or (settings.image_size,))
    scale = settings.teacher_image_size / settings.image_size
    needed = max(largest, settings.image_size, round(scale * largest))
    return min(needed, examples.image_size or needed)


def build_model(
    settings: Settings, method: Method, student: tf.keras.Model, setup: Setup, epochs: int
) -> StudentModel:
    """The compiled model that `fit` trains, its learning rate annealed over `epochs`."""
    model = method.model(method, student, setup)
    steps = setup.updates // settings.epochs
    warmup = settings.warmup_epochs * steps
    rate = settings.learning_rate
    schedule = tf.keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else rate, epochs * steps - warmup, warmup_target=rate, warmup_steps=warmup
    )
    model.compile(
        build_optimizer(settings, schedule),
        loss=method.loss and method.loss(setup.class_counts),
        metrics=["accuracy"],
    )
    return model


def build_optimizer(settings: Settings, learning_rate):
    name, arguments = parse_spec(settings.binary_optimizer)
    build = lookup("binary_optimizer", name, BINARY_OPTIMIZERS)
    with arguments_of("binary_optimizer", settings.binary_optimizer):
        return build(learning_rate, **arguments)


def steps_per_epoch(settings: Settings, examples: data.LongTailedData) -> int:
    return settings.steps_per_epoch or max(1, len(examples.train) // settings.batch_size)


class Checkpoints(tf.keras.callbacks.Callback):
    """Saves what the next epoch depends on after each one, and takes it up again.

    A checkpoint that cannot be written leaves the one before it as the latest.
    """

    def __init__(self, model: StudentModel, directory: Path):
        super().__init__()
        self.epoch = tf.Variable(0, dtype=tf.int64)
        self.seconds = tf.Variable(0.0, dtype=tf.float64)  # of training, over all restarts
        checkpoint = tf.train.Checkpoint(
            epoch=self.epoch, seconds=self.seconds, **model.trained_parts()
        )
        self.manager = tf.train.CheckpointManager(checkpoint, str(directory), max_to_keep=2)
        self.manager.restore_or_initialize()

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        last = self.manager.latest_checkpoint or "the beginning"
        if not np.isfinite(logs["loss"]):
            raise ValueError(
                f"The loss became NaN or Inf in epoch {epoch + 1}: lower --learning_rate and give "
                f"another --workdir; the last good state here is {last}."
            )
        self.epoch.assign(epoch + 1)
        self.seconds.assign_add(time.monotonic() - self.began)
        try:
            self.manager.save()
        except (OSError, tf.errors.OpError) as error:
            raise OSError(
                f"The checkpoint of epoch {epoch + 1} cannot be written to "
                f"{self.manager.directory} ({error}): make room or make it writable, and start "
                f"the same command again; it goes on from {last}."
            ) from error


def fit(
    settings: Settings,
    method: Method,
    model: StudentModel,
    examples: data.LongTailedData,
    name: str,
    first_epoch: int,
    epochs: int,
) -> float:
    """Trains from `first_epoch`, or from the last checkpoint in `name`, to `epochs`.

    Returns:
        The seconds that it took, over all restarts.
    """
    workdir = Path(settings.workdir)
    checkpoints = Checkpoints(model, workdir / name)
    first_epoch = max(first_epoch, int(checkpoints.epoch))
    if first_epoch == epochs:
        return float(checkpoints.seconds)
    steps = steps_per_epoch(settings, examples)
    batches = partial(
        data.training_batches,
        examples.train,
        view_size(settings, examples),
        settings.batch_size,
        settings.epochs * steps * settings.batch_size,
        augmentation=examples.info.augmentation,
        first_example=first_epoch * steps * settings.batch_size,
    )
    stream = batches(sampler=method.sampler, seed=settings.seed, views=method.views)
    if method.partner_sampler:
        partner = batches(sampler=method.partner_sampler, seed=settings.seed + 3)
        pairs = tf.data.Dataset.zip((stream, partner))
        stream = pairs.map(lambda a, b: ((a[0], b[0]), (a[1], b[1])))
    print(f"Training {settings.student} by {settings.method}: epochs of {steps} updates")
    model.fit(
        stream,
        initial_epoch=first_epoch,
        epochs=epochs,
        steps_per_epoch=steps,
        callbacks=[
            *method.callbacks(settings.epochs),
            history_logger(workdir / HISTORY_FILE, first_epoch),
            checkpoints,
            tf.keras.callbacks.TensorBoard(workdir / "tensorboard", write_graph=False),
            tf.keras.callbacks.TerminateOnNaN(),
        ],
        verbose=1,
    )
    return float(checkpoints.seconds)


def history_logger(path: Path, first_epoch: int) -> tf.keras.callbacks.CSVLogger:
    """Logs by epoch, and drops the rows from `first_epoch` on, which a killed run may have left."""
    if first_epoch and path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [line for line in lines[1:] if int(line.partition(",")[0]) < first_epoch]
        write_text(path, "".join(lines[:1] + rows))
    return tf.keras.callbacks.CSVLogger(path, append=first_epoch > 0)


def restore(settings: Settings) -> tuple[StudentModel, list[str]]:
    """The student of a run as of its last checkpoint, and its class names.

    Raises:
        FileNotFoundError: if the run has no checkpoint yet.
    """
    class_names = json.loads((Path(settings.workdir) / CLASSES_FILE).read_text(encoding="utf-8"))
    student = build_student(settings, len(class_names))
    latest = tf.train.latest_checkpoint(str(Path(settings.workdir) / CHECKPOINTS))
    if latest is None:
        raise FileNotFoundError(f"{settings.workdir} holds no checkpoint yet: let train.py finish.")
    restored = tf.train.Checkpoint(student=student).restore(latest)
    restored.assert_existing_objects_matched().expect_partial()
    return StudentModel(student), class_names


def evaluate(
    predict: Callable,
    settings: Settings,
    examples: data.LongTailedData,
    predictions_file: Path | None = None,
) -> dict:
    """Accuracy on the test set, and on the validation split where there is one.

    Args:
        predict: batches -> logits.
        predictions_file: where to save what is predicted of the test set, if anywhere.
    """
    reports = {}
    for split in ("validation", "test"):
        part = getattr(examples, split)
        if part is None:
            continue
        batches = evaluation_batches(settings, examples, part)
        logits = predict(batches, verbose=0)
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
    written = path.with_name("tmp." + path.name)
    np.savez(
        written,
        labels=labels,
        predictions=np.argmax(logits, axis=-1),
        confidence=np.max(probabilities, axis=-1),
        true_probability=probabilities[np.arange(len(labels)), labels],
    )
    os.replace(written, path)


def evaluation_batches(
    settings: Settings, examples: data.LongTailedData, part: data.Examples
) -> tf.data.Dataset:
    """A split of the data as the run's student sees it, in batches of (images, labels)."""
    return data.evaluation_batches(
        part, view_size(settings, examples), settings.batch_size, examples.info.augmentation
    )


def describe(settings: Settings, examples: data.LongTailedData) -> dict:
    """What was run, on what."""
    counts = examples.class_counts
    return {
        "method": settings.method,
        "dataset": settings.dataset,
        "class_names": examples.class_names,
        "class_counts": counts.tolist(),
        "imbalance_ratio": float(counts.max() / counts.min()),
        "test_images": len(examples.test),
        "updates": settings.epochs * steps_per_epoch(settings, examples),
    }


def student_size(student: tf.keras.Model) -> dict:
    """Weights in kB at their own widths, and multiply-accumulates by width, as Larq counts them."""
    # A copy: Larq cannot tell the shapes of layers that serve several input sizes.
    profile = lq.models.ModelProfile(bits.requantize(student))
    return {
        "kilobytes": profile.memory / 8 / 1000,
        "kilobytes_float": profile.fp_equivalent_memory / 8 / 1000,
        "macs": {str(n): profile.op_count("mac", n) for n in profile.unique_op_precisions},
    }


def classifier_norms(network: tf.keras.Model) -> dict:
    """Weight norm of each class, in their order, where the network ends in a linear classifier."""
    norms = weight_norms(network)
    return {} if norms is None else {"classifier_norms": norms.tolist()}


def report(settings: Settings, examples: data.LongTailedData, **compared) -> Path:
    """The report of a finished run; see `candle_tf.report.write_report`."""
    half = settings.epochs // 2 if settings.two_step else 0  # each step draws from the beginning
    steps = steps_per_epoch(settings, examples)
    sizes = settings.resolutions or (settings.image_size,)
    resolution = RandomResolution(sizes, settings.image_size, settings.seed)
    drawn = [resolution.draws(epochs * steps) for epochs in (half, settings.epochs - half)]
    return write_report(settings.workdir, examples, np.concatenate(drawn), **compared)


def check_workdir(settings: Settings):
    """Refuses a workdir in which another run has begun; where its sources lie may change."""
    workdir = Path(settings.workdir)
    path = workdir / FLAG_FILE
    begun = any((workdir / name).exists() for name in BEGUN)
    if not path.exists() or not begun:
        return
    old, new = (
        {line for line in text.splitlines() if not line.startswith(MOVABLE)}
        for text in (path.read_text(encoding="utf-8"), settings.to_flags())
    )
    if old != new:
        raise ValueError(
            f"{settings.workdir} holds another run ({' '.join(sorted(old - new))} there, "
            f"{' '.join(sorted(new - old))} here): give another --workdir, or delete it."
        )


def claim_workdir(settings: Settings, class_names: list[str]):
    """Makes the workdir and writes down whose it is."""
    workdir = Path(settings.workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / CLASSES_FILE, json.dumps(class_names) + "\n")
        write_text(workdir / FLAG_FILE, settings.to_flags())
    except OSError as error:
        raise OSError(
            f"The workdir cannot be written ({error}): give another --workdir."
        ) from error


def write_text(path: Path, text: str):
    """Writes beside `path` and renames into place, so that a reader never sees half of it."""
    written = path.with_name(path.name + ".tmp")
    written.write_text(text, encoding="utf-8")
    os.replace(written, path)


@contextlib.contextmanager
def timed(seconds: dict[str, float], phase: str):
    start = time.monotonic()
    yield
    seconds[phase] = time.monotonic() - start
