"""What the settings name, built: student, teacher and the compiled model that `fit` trains."""

import contextlib
import dataclasses
import os
from pathlib import Path

import tensorflow as tf
from candle_tf import data, students
from candle_tf.methods import Method, Setup, training_loss
from candle_tf.model import StudentModel
from candle_tf.networks.surgery import at_policy, check_size, renewed, with_synchronized_batch_norm
from candle_tf.runs.checkpoints import newest_first
from candle_tf.runs.inputs import resolution_of, teacher_size
from candle_tf.runs.settings import Settings, method_of
from candle_tf.students import bits
from candle_tf.teacher import Teacher, named_teachers
from candle_tf.utils.distribution import build_strategy, first_line
from candle_tf.utils.files import read_json
from candle_tf.utils.names import arguments_of, lookup, parse_spec
from candle_tf.utils.optimizers import build_optimizer
from candle_tf.utils.run_files import CHECKPOINTS, CLASSES_FILE, METRICS_FILE

LETTERS = Path(__file__).parents[1] / "assets" / "letters.h5"


def build_student(settings: Settings, num_classes: int, pretrained: bool = True) -> tf.keras.Model:
    """The student that `--student` names; without pretrained weights, for those of a checkpoint."""
    name, arguments = parse_spec(settings.student)
    if not pretrained and arguments.get("weights"):
        arguments["weights"] = ""
    tf.keras.utils.set_random_seed(settings.seed)
    if name in students.STUDENTS:  # those of larq-zoo have their own
        info = data.info_of(settings.dataset)
        arguments = {"mean": info.mean, "std": info.std, **arguments} if info.mean else arguments
    with arguments_of("student", settings.student):
        student = students.find(name)(num_classes, settings.image_size, **arguments)
    return method_of(settings).network(bits.at_bits(student, settings.student_bits))


def build_teacher(settings: Settings) -> Teacher:
    """The teacher that `--teacher` names, not yet calibrated.

    Raises:
        ValueError, OSError: if there is none, or it cannot work at every resolution.
    """
    teacher = named_teacher(settings)
    if settings.resolutions:  # at its own size it has been checked
        smallest = teacher_size(settings, resolution_of(settings).sizes[0])
        check_size(teacher.encoder, teacher.image_size, smallest, "teacher")
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
            loss=training_loss(method, setup),
            metrics=["accuracy"],
        )
    return model


def mirrored_setup(setup: Setup) -> Setup:
    """The setup with the networks that it brings in new layers."""
    teacher, first = setup.teacher, setup.first_model
    return dataclasses.replace(
        setup,
        teacher=teacher and mirrored_teacher(teacher),
        first_model=first and StudentModel(renewed(first.student)),
    )


def mirrored_teacher(teacher: Teacher) -> Teacher:
    """The same teacher in new layers, within the scope that it is called in."""
    again = Teacher.from_config(teacher.get_config())
    again.encoder.set_weights(teacher.encoder.get_weights())
    again.classifier.set_weights(teacher.classifier.get_weights())
    return again


def restore(settings: Settings) -> tuple[StudentModel, list[str]]:
    """The student of a run as of its last checkpoint, and its class names.

    Raises:
        FileNotFoundError: if the run has no checkpoint yet.
        ValueError: if it trains no student, or its last checkpoint is damaged.
    """
    names_file = Path(settings.workdir) / CLASSES_FILE
    class_names = read_json(names_file, list, "the run's command writes it again")
    student = build_student(settings, len(class_names), pretrained=False)
    checkpoints = newest_first(Path(settings.workdir) / CHECKPOINTS)
    if not checkpoints and not settings.epochs:
        raise ValueError(f"{settings.workdir} has trained no student: it is of --epochs=0.")
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


@contextlib.contextmanager
def computing_in(policy: str):
    """Layers that are built within compute by the Keras mixed-precision policy."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
