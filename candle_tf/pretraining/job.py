"""Pretraining: a student learns a teacher's features from images without labels.

The teacher's features g are standardised over the images, each to mean 0 and variance 1. Without
this, a student could return one vector for all images: after a ReLU, the features share a large
mean. The student's features f and a linear adapter a then minimise

    L_FS = 2 - 2 cos(a(f(x)), g(x))

with mixup (alpha 1 by default), from a store of the teacher's outputs.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf
from candle_tf.calibration import CrossValidation
from candle_tf.classifiers import encode_dataset
from candle_tf.losses import feature_similarity
from candle_tf.model import CandleModel
from candle_tf.pretraining.images import load_unlabelled
from candle_tf.runs.build import computing_in
from candle_tf.runs.fit import annealed_rate, complete_store, fit
from candle_tf.runs.job import say_few_updates, say_kept
from candle_tf.runs.plan import check_store, decide_epochs, decide_views
from candle_tf.runs.run import Run
from candle_tf.runs.settings import PLANNED, settings_of
from candle_tf.runs.workdir import as_begun, check_images, check_workdir, claimed_workdir
from candle_tf.student_model import StudentModel
from candle_tf.students.weights import write_encoder
from candle_tf.teacher import Teacher
from candle_tf.utils.files import read_json, write_text
from candle_tf.utils.optimizers import build_optimizer
from candle_tf.utils.run_files import CALIBRATION, CHECKPOINTS, ENCODER_FILE, PRETRAINING_FILE

UNUSED = (  # settings without a meaning here
    "cache calibration calibration_epochs calibration_views first_stage imbalance_ratio "
    "label_smoothing label_weight lambda_per_sample method n_max prior_adjusted profile sampler "
    "strategy sync_batch_norm temperature two_step validation_split"
).split()
FIXED = {
    "method": "candle_feature",
    "sampler": "instance_balanced",
    "label_weight": 0.0,
    "calibration_views": 1,  # the images are encoded once, to standardise the features
}
MOST_MEASURED = 4096  # images whose features give mean and variance
LEAST_VARIANCE = 0.01  # of the mean variance: a feature that hardly varies would be noise


def pretrain(dataset: str, *, workdir: str, **settings) -> Path:
    """Trains the encoder of a student on images without labels, and returns its file.

    Other students start from it: `students.create("resnet_e", num_classes=5, weights=FILE)`. The
    same call again continues an interrupted pretraining.

    Args:
        dataset: Images, such as "folder:photos": see `candle_tf.pretraining.load_unlabelled`.
        workdir: Directory that the pretraining writes to; the file is `encoder.npz` there.
        settings: Further settings by name, as in `candle_tf.train`, except those in `UNUSED`.

    Raises:
        ValueError, OSError: One sentence with cause and remedy.

    Example:
        >>> encoder = ct.pretrain("folder:photos", workdir="runs/photos")  # doctest: +SKIP
        >>> student = f"resnet_e:weights='{encoder}'"  # doctest: +SKIP
        >>> ct.train("folder:birds", workdir="runs/birds", student=student)  # doctest: +SKIP
    """
    made = settings_of(dataset, workdir, settings, UNUSED)
    if made.epochs == 0:
        raise ValueError("`epochs` is 0 but must be at least 1: a pretraining trains.")
    student, mixup = made.student or PLANNED["student"], as_begun(made).mixup
    mixup = 1.0 if mixup is None else mixup  # the method's own is none
    # Students of other images start from it.
    made = dataclasses.replace(made, student=student, mixup=mixup, **FIXED)
    run = Run(made, scales_by_set=False)
    given, file = run.given, run.workdir / ENCODER_FILE
    say_kept(run)
    run.examples = load_unlabelled(
        given.dataset, given.data_dir, given.download, given.on_bad_image
    )
    check_workdir(run.workdir, flags_of(run))
    check_images(run.workdir, run.examples.fingerprint())
    if file.exists():
        return told(run)
    with computing_in(run.settings.precision):
        student = run.build_student(num_classes=1)
    StudentModel(student, resolutions=run.settings.resolutions)  # refuses sizes that cannot work
    if given.minutes:
        decide_epochs(run, student)
    say_few_updates(run)
    if run.settings.teacher_views is None:
        decide_views(run)
    with claimed_workdir(run.workdir, flags_of(run), run.examples):
        run.teacher = standardized(run)
        if run.settings.teacher_views:
            check_store(run)
        model = train_encoder(run, student)
        measured = {
            "held_out_feature_term": held_out_term(run, model),
            "held_out_images": len(run.examples.test),
            "images": len(run.examples.train),
            "updates": run.updates,
        }
        write_text(run.workdir / PRETRAINING_FILE, json.dumps(measured, indent=1) + "\n")
        write_encoder(model.student, file)
        shutil.rmtree(run.workdir / CALIBRATION, ignore_errors=True)
    return told(run)


def flags_of(run: Run) -> str:
    """Returns the flag file of a pretraining."""
    lines = run.settings.to_flags().splitlines(keepends=True)
    left_out = tuple(f"--{name}=" for name in UNUSED)
    return "".join(line for line in lines if not line.startswith(left_out))


def told(run: Run) -> Path:
    """Prints the result of a finished pretraining, and returns the encoder's file."""
    measured = read_json(run.workdir / PRETRAINING_FILE, dict, "delete the workdir")
    file = run.workdir / ENCODER_FILE
    print(
        f"L_FS on {measured['held_out_images']} held-out images: "
        f"{measured['held_out_feature_term']:.3f}. It is 2 if the student tells nothing apart.\n"
        f"{file} has the encoder."
    )
    return file


def standardized(run: Run) -> Teacher:
    """Returns the run's teacher with standardised features, and logits of a single class."""
    teacher, train = run.teacher, run.examples.train
    drawn = np.random.default_rng(run.settings.seed).permutation(len(train))[:MOST_MEASURED]
    sample = train.take(np.sort(drawn))
    features, _ = encode_dataset(
        teacher.embedder(len(sample)),
        run.evaluation_batches(sample, image_size=run.view_size),
        [len(sample)],
        directory=run.workdir / CALIBRATION,
        made_of=teacher.made_of(),
    )
    variance = features.var(axis=0, dtype=np.float64)
    layer = tf.keras.layers.Normalization(
        mean=features.mean(axis=0, dtype=np.float64),
        variance=np.maximum(variance, LEAST_VARIANCE * variance.mean()),
        dtype="float32",
        name="standardized_features",
    )
    encoder = tf.keras.Model(teacher.encoder.input, layer(teacher.encoder.output))
    made = Teacher(encoder, teacher.image_size, preprocessing=teacher.preprocessing.mode)
    kernel, bias = np.zeros((teacher.width, 1)), np.zeros(1)
    made.set_classifier(kernel, bias, CrossValidation(0.0, [float("nan")], [len(train)]))
    return made


def train_encoder(run: Run, student: tf.keras.Model) -> CandleModel:
    """Returns the model whose student has learned the teacher's features."""
    settings = run.settings
    with computing_in(settings.precision):
        model = CandleModel(
            run.teacher,
            student,
            resolutions=settings.resolutions,
            balancer=0.0,
            mixup=run.method.mixup,
            linear_adapter=True,
            seed=settings.seed,
        )
        rate = annealed_rate(run, settings.epochs)
        model.compile(build_optimizer(settings.binary_optimizer, rate))
    store = complete_store(run, model) if settings.teacher_views else None
    fit(run, model, store, CHECKPOINTS, 0, settings.epochs)
    return model


def held_out_term(run: Run, model: CandleModel) -> float:
    """Returns the mean L_FS of the held-out images."""
    batches = run.evaluation_batches(run.examples.test, image_size=run.view_size)
    terms = [
        feature_similarity(model.adapter(model.embed(images)), model.teacher.embed(images))
        for images, _ in batches
    ]
    return float(np.mean(np.concatenate(terms)))
