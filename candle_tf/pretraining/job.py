"""Pretraining: a student learns a teacher's features from images without labels.

The features g are standardised over the images, each to mean 0 and variance 1. Otherwise their
common mean would be most of what the student can match: after a ReLU, a constant vector comes near
all of them. The student f and its linear adapter a then minimise

    L_FS = 2 - 2 cos(a(f(x)), g(x))

with mixup, from a store of the teacher's outputs. Other students start from the encoder.
"""

import dataclasses
import os
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
from candle_tf.runs.plan import check_store, decide_epochs, decide_views
from candle_tf.runs.run import Run
from candle_tf.runs.settings import Settings
from candle_tf.runs.workdir import check_workdir, claimed_workdir
from candle_tf.students.weights import write_encoder
from candle_tf.teacher import Teacher
from candle_tf.utils.names import lookup
from candle_tf.utils.optimizers import build_optimizer
from candle_tf.utils.run_files import CALIBRATION, CHECKPOINTS, ENCODER_FILE

UNUSED = (  # settings without a meaning here
    "calibration calibration_epochs calibration_views first_stage imbalance_ratio label_smoothing "
    "label_weight lambda_per_sample method n_max prior_adjusted profile sampler strategy "
    "sync_batch_norm temperature two_step validation_split"
).split()
METHOD = {"method": "candle_feature", "sampler": "instance_balanced", "label_weight": 0.0}
MOST_STANDARDIZED = 4096  # images whose features give mean and variance
LEAST_VARIANCE = 1e-6  # a feature that hardly varies would be noise


def pretrain(dataset: str, *, workdir: str, **settings) -> Path:
    """Trains the encoder of a student on images without labels, and returns its file.

    Give the file to a student: `students.create("resnet_e", num_classes=5, weights=FILE)`. The same
    call again continues an interrupted pretraining.

    Args:
        dataset: Images, such as "folder:photos": see `candle_tf.pretraining.load_unlabelled`.
        workdir: Directory that the pretraining writes to; the file is `encoder.npz` there.
        settings: Further settings by name, as in `candle_tf.train`, except those in `UNUSED`.

    Raises:
        ValueError, OSError: One sentence with cause and remedy.

    Example:
        >>> encoder = ct.pretrain("folder:photos", workdir="runs/photos")  # doctest: +SKIP
        >>> ct.train("folder:birds", workdir="runs/birds",
        ...          student=f"resnet_e:weights='{encoder}'")  # doctest: +SKIP
    """
    names = {field.name: field for field in dataclasses.fields(Settings)}
    for name in UNUSED:
        del names[name]
    for name in settings:
        lookup("setting of a pretraining", name, names)
    run = Run(Settings(dataset=dataset, workdir=os.fspath(workdir), **settings, **METHOD))
    given, file = run.given, run.workdir / ENCODER_FILE
    run.examples = load_unlabelled(
        given.dataset, given.data_dir, given.download, given.on_bad_image
    )
    check_workdir(run.workdir, run.settings.to_flags())
    if file.exists():
        print(f"{file} is there: this pretraining is finished.")
        return file
    with computing_in(run.settings.precision):
        student = run.build_student(num_classes=1)
    if given.minutes:
        decide_epochs(run, student)
    if run.settings.teacher_views is None:
        decide_views(run)
    with claimed_workdir(run.workdir, run.settings.to_flags(), run.examples):
        run.teacher = standardized(run)
        if run.settings.teacher_views:
            check_store(run)
        model = train_encoder(run, student)
        write_encoder(model.student, file)
    term = float(np.mean([held_out_term(model, *batch) for batch in held_out(run)]))
    print(f"L_FS on {len(run.examples.test)} held-out images: {term:.3f}; 2 for a constant vector")
    print(f"Wrote {file}")
    return file


def standardized(run: Run) -> Teacher:
    """Returns the run's teacher with standardised features, and with no class to tell apart."""
    teacher, train = run.teacher, run.examples.train
    some = train.take(np.arange(min(len(train), MOST_STANDARDIZED)))
    batches = run.evaluation_batches(some, image_size=run.view_size)
    features, _ = encode_dataset(
        teacher.embedder(len(some)),
        batches,
        [len(some)],
        directory=run.workdir / CALIBRATION,
        made_of=teacher.made_of(),
    )
    layer = tf.keras.layers.Normalization(
        mean=features.mean(axis=0, dtype=np.float64),
        variance=features.var(axis=0, dtype=np.float64) + LEAST_VARIANCE,
        dtype="float32",
    )
    encoder = tf.keras.Model(teacher.encoder.input, layer(teacher.encoder.output))
    same = Teacher(encoder, teacher.image_size, preprocessing=teacher.preprocessing.mode)
    nothing = np.zeros((teacher.width, 1)), np.zeros(1)
    same.set_classifier(*nothing, CrossValidation(0.0, [float("nan")], [len(train)]))
    return same


def train_encoder(run: Run, student: tf.keras.Model) -> CandleModel:
    """Returns the model whose student learns the teacher's features."""
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


def held_out(run: Run) -> tf.data.Dataset:
    """Returns the batches of the held-out images, at the size that the teacher is shown."""
    return run.evaluation_batches(run.examples.test, image_size=run.view_size)


def held_out_term(model: CandleModel, images: tf.Tensor, _) -> np.ndarray:
    """Returns L_FS of each image of a batch, (batch,)."""
    return feature_similarity(model.adapter(model.embed(images)), model.teacher.embed(images))
