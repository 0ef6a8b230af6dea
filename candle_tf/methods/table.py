"""The table of all methods: one row per method says what is in a batch and what is minimised."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import tensorflow as tf
from candle_tf import classifiers, losses
from candle_tf.balancer import AdversarialBalancer
from candle_tf.data import class_probabilities
from candle_tf.methods.auxiliary import AuxiliaryModel
from candle_tf.methods.bbn import BbnModel
from candle_tf.methods.dive import DiveModel
from candle_tf.methods.experts import branch
from candle_tf.methods.mixup import MixupModel
from candle_tf.methods.oltr import OltrModel, with_meta_embedding
from candle_tf.methods.paco import PacoModel
from candle_tf.methods.tade import TadeModel
from candle_tf.model import CandleModel
from candle_tf.networks.surgery import reconfigured
from candle_tf.student_model import StudentModel
from candle_tf.students import bits
from candle_tf.teacher import Teacher


@dataclass(frozen=True)
class Setup:
    """The facts about a run that its method needs.

    Attributes:
        class_counts: Training images per class, int64 (classes,).
        epochs: Epochs of the training, or of one of its two steps.
        steps_per_epoch: Updates per epoch.
        resolution: The arguments `resolutions` and `seed` of the model.
        teacher: The calibrated teacher, for a method that distills it.
        first_model: The trained model of the first stage, for a method that needs one.
        encode: Function from a model to its features and labels of the training images.
        lambda_per_sample: Whether the adversarial balancer gives one lambda per image.
        label_smoothing: Factors of label-aware smoothing, (head, tail).

    Example:
        >>> setup = ct.methods.Setup(class_counts=[40, 20, 4], epochs=1, steps_per_epoch=2)
        >>> student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
        >>> method = ct.methods.METHODS["mixup"]
        >>> type(method.model(method, student, setup)).__name__
        'MixupModel'
    """

    class_counts: np.ndarray
    epochs: int
    steps_per_epoch: int
    resolution: Mapping[str, object] = field(default_factory=dict)
    teacher: Teacher | None = None
    first_model: StudentModel | None = None
    encode: Callable[[StudentModel], tuple[np.ndarray, np.ndarray]] | None = None
    lambda_per_sample: bool = False
    label_smoothing: tuple[float, float] = (0.05, 0.1)


def alone(method: "Method", student: tf.keras.Model, setup: Setup) -> StudentModel:
    """Returns the student without a teacher, with mixup if the method has it."""
    if method.mixup:
        return MixupModel(student, method.mixup, **setup.resolution)
    return StudentModel(student, **setup.resolution)


def candle(method: "Method", student: tf.keras.Model, setup: Setup) -> CandleModel:
    """Returns the student with its calibrated teacher and balancer."""
    balancer = method.fixed_lambda
    if balancer is None:
        balancer = AdversarialBalancer(
            setup.lambda_per_sample, seed=setup.resolution.get("seed", 0)
        )
    return CandleModel(
        setup.teacher,
        student,
        balancer=balancer,
        temperature=method.temperature,
        prior_adjusted=method.prior_adjusted,
        label_weight=method.label_weight,
        mixup=method.mixup,
        **setup.resolution,
    )


def bbn(method: "Method", student: tf.keras.Model, setup: Setup) -> StudentModel:
    """Returns BBN's model, which needs the total number of updates."""
    updates = setup.epochs * setup.steps_per_epoch
    return BbnModel(student, updates, **setup.resolution)


def tade(method: "Method", student: tf.keras.Model, setup: Setup) -> StudentModel:
    """Returns TADE's model, which needs the class counts."""
    return TadeModel(student, setup.class_counts, **setup.resolution)


def paco(method: "Method", student: tf.keras.Model, setup: Setup) -> StudentModel:
    """Returns PaCo's model, which needs the class counts."""
    return PacoModel(student, setup.class_counts, **setup.resolution)


def dive(method: "Method", student: tf.keras.Model, setup: Setup) -> StudentModel:
    """Returns DiVE's model with the network of the first stage as its teacher."""
    return DiveModel(setup.first_model.student, student, **setup.resolution)


def oltr(method: "Method", student: tf.keras.Model, setup: Setup) -> StudentModel:
    """Returns OLTR's model, started from the first stage and its class means."""
    means = classifiers.class_means(*setup.encode(setup.first_model), len(setup.class_counts))
    started = with_meta_embedding(setup.first_model.student, means)
    student.set_weights(started.get_weights())
    return OltrModel(student, **setup.resolution)


def range_loss(method: "Method", student: tf.keras.Model, setup: Setup) -> StudentModel:
    """Returns the student with the range loss on its features, weighted by 0.001."""
    return AuxiliaryModel(student, "range", 1e-3, **setup.resolution)


def lifted_loss(method: "Method", student: tf.keras.Model, setup: Setup) -> StudentModel:
    """Returns the student with the lifted structured loss on its features, weighted by 0.01."""
    return AuxiliaryModel(student, "lifted_structured", 1e-2, **setup.resolution)


def cross_entropy(class_counts: np.ndarray) -> tf.keras.losses.Loss:
    """Returns the plain cross-entropy, whatever the counts."""
    return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def inverse_frequency(class_counts: np.ndarray) -> tf.keras.losses.Loss:
    """Returns the cross-entropy with a weight of 1 / n_c per class."""
    return losses.WeightedCrossEntropy(losses.inverse_frequency_weights(class_counts))


def class_balanced(class_counts: np.ndarray) -> tf.keras.losses.Loss:
    """Returns the cross-entropy weighted by the inverse effective number of images per class."""
    return losses.WeightedCrossEntropy(losses.class_balanced_weights(class_counts))


def focal(class_counts: np.ndarray) -> tf.keras.losses.Loss:
    """Returns the focal loss, whatever the counts."""
    return losses.Focal()


def class_balanced_focal(class_counts: np.ndarray) -> tf.keras.losses.Loss:
    """Returns the focal loss weighted by the inverse effective number of images per class."""
    return losses.Focal(class_weights=losses.class_balanced_weights(class_counts))


def with_cosine_classifier(student: tf.keras.Model) -> tf.keras.Model:
    """Returns the student with a cosine classifier on its features."""
    classifier = classifiers.CosineClassifier(
        student.output_shape[-1], name="logits", dtype="float32"
    )
    features = student.get_layer("features").output
    return tf.keras.Model(student.input, classifier(features), name=student.name)


def with_memory(student: tf.keras.Model) -> tf.keras.Model:
    """Returns the student with OLTR's head, before its memory is filled."""
    width = student.get_layer("features").output_shape[-1]
    return with_meta_embedding(student, np.zeros((student.output_shape[-1], width)))


def with_weight_decay(student: tf.keras.Model, decay: float = 5e-3) -> tf.keras.Model:
    """Returns the student with decay / 2 ||w||^2 on its real-valued kernels.

    A binary kernel has a fixed norm, so weight decay has no use there.
    """

    def change(config: dict):
        for role in bits.KERNELS:
            if f"{role}_regularizer" in config and config.get(f"{role}_quantizer") is None:
                config[f"{role}_regularizer"] = tf.keras.regularizers.L2(decay / 2)

    return reconfigured(student, change)


def deferred_reweighting(epochs: int) -> list[tf.keras.callbacks.Callback]:
    """Returns the callback that re-weights in the last fifth, the paper's epochs 160 to 200."""
    return [losses.DeferredReweighting(4 * epochs // 5)]


@dataclass(frozen=True)
class Method:
    """One way to train the student.

    Attributes:
        paper: The paper that introduced the method.
        loss: Function from class_counts to the loss given to `compile`. See `training_loss`.
        sampler: Sampler of the batches, a name in `candle_tf.data.SAMPLERS`.
        partner_sampler: Sampler of a second stream of batches, for a method that needs one.
        views: Augmented views per image.
        mixup: Alpha of mixup (Zhang et al., ICLR 2018) in this training or in its first stage.
        label_weight: Weight of the label term in a distillation; None derives it from the
            calibration (see `CandleModel`).
        network: Function from the student to the network that the method trains.
        model: Function (method, student, setup) -> the Keras model for `fit`.
        callbacks: Function from the number of epochs to the callbacks of `fit`.
        distills: Whether the method needs a calibrated teacher.
        mixes: Whether the method can train on mixed images.
        label_smoothing: Whether the method reads the factors of label-aware smoothing.
        held_out: Whether the method chooses a parameter on held-out images.
        starts_from: Settings that the run of the first stage changes, for a method of two stages.
        second_stage: Name in `second_stages.SECOND_STAGES` of a classifier to train on the first
            stage's features, in place of training a network.
        batch_norm_shift: Whether class-balanced batches update the statistics of batch norm before
            the second stage.
        calibration: Loss of the teacher's classifier, a name in `calibration.CALIBRATIONS`.
        fixed_lambda: Weight of the KL term; None for the adversarial balancer.
        temperature: Temperature of the KL term.
        prior_adjusted: Whether the KL term contains the log prior of the effective numbers of
            images. It does so whatever the sampler: what counts is how many different images a
            class has.

    Example:
        >>> ct.methods.METHODS["candle_paper"].label_weight
        0.0
    """

    paper: str
    loss: Callable[[np.ndarray], tf.keras.losses.Loss] = cross_entropy
    sampler: str = "instance_balanced"
    partner_sampler: str | None = None
    views: int = 1
    mixup: float = 0.0
    label_weight: float | None = 0.0
    network: Callable[[tf.keras.Model], tf.keras.Model] = lambda student: student
    model: Callable[["Method", tf.keras.Model, Setup], StudentModel] = alone
    callbacks: Callable[[int], list[tf.keras.callbacks.Callback]] = lambda epochs: []
    distills: bool = False
    mixes: bool = True
    label_smoothing: bool = False
    held_out: bool = False
    starts_from: Mapping[str, object] | None = None
    second_stage: str | None = None
    batch_norm_shift: bool = False
    calibration: str = "balanced_softmax"
    fixed_lambda: float | None = None
    temperature: float = 2.0
    prior_adjusted: bool = False


def training_loss(method: Method, setup: Setup) -> tf.keras.losses.Loss | None:
    """Returns the loss that `compile` takes, or None for a distillation without a label term.

    The label term of a distillation uses the class frequencies of the batches, which depend on the
    sampler: in class-balanced batches all classes are equally frequent. Those of progressively
    balanced batches are those of the middle of the training.

    Args:
        method: A row of `METHODS`.
        setup: The run's class counts and label smoothing.

    Example:
        >>> setup = ct.methods.Setup(class_counts=[40, 20, 4], epochs=1, steps_per_epoch=2)
        >>> ct.methods.training_loss(ct.methods.METHODS["focal"], setup).name
        'focal'
        >>> ct.methods.training_loss(ct.methods.METHODS["candle_paper"], setup) is None
        True
    """
    if method.loss is losses.LabelAwareSmoothing:
        head, tail = setup.label_smoothing
        return method.loss(setup.class_counts, head=head, tail=tail)
    if not method.distills:
        return method.loss(setup.class_counts)
    if method.label_weight == 0.0:
        return None
    share = class_probabilities(setup.class_counts, method.sampler, progress=0.5)
    return method.loss(share)


AS_PUBLISHED = {
    "label_weight": 0.0,
    "prior_adjusted": False,
    "sampler": "instance_balanced",
}


def candle_row(**others) -> Method:
    """Returns a row of CANDLE; the defaults are those of our recipe."""
    given = {
        "label_weight": None,
        "prior_adjusted": True,
        "sampler": "effective_number",
        **others,
    }
    return Method(CANDLE, losses.BalancedSoftmax, model=candle, distills=True, **given)


def second_stage(paper: str, name: str, first: str = "cross_entropy", **others) -> Method:
    """Returns the row of a second stage on the features of the method `first`."""
    return Method(paper, starts_from={"method": first}, second_stage=name, **others)


CANDLE = "CANDLE (arXiv 2404.00285)"
DECOUPLING = "Kang et al., Decoupling, ICLR 2020"
MISLAS = "Zhong et al., MiSLAS, CVPR 2021"
LDAM = "Cao et al., LDAM, NeurIPS 2019"
BALANCING = "Alshammari et al., Weight Balancing, CVPR 2022"

METHODS = {
    # The recipe: classes by their effective numbers, the prior inside the KL term, and a label term
    # that corrects the teacher's errors (docs/results.md).
    "candle": candle_row(),
    "candle_uncalibrated": candle_row(calibration="cross_entropy"),
    "candle_kl": candle_row(fixed_lambda=1.0),
    "candle_feature": candle_row(fixed_lambda=0.0),
    "candle_fixed": candle_row(fixed_lambda=0.5),
    # The published objective and its ablations.
    "candle_paper": candle_row(**AS_PUBLISHED),
    "candle_paper_kl": candle_row(**AS_PUBLISHED, fixed_lambda=1.0),
    "candle_paper_feature": candle_row(**AS_PUBLISHED, fixed_lambda=0.0),
    "candle_paper_fixed": candle_row(**AS_PUBLISHED, fixed_lambda=0.5),
    # Losses.
    "cross_entropy": Method(DECOUPLING),
    "inverse_frequency": Method("weights 1 / n_c", inverse_frequency),
    "class_balanced": Method("Cui et al., Class-Balanced Loss, CVPR 2019", class_balanced),
    "focal": Method("Lin et al., Focal Loss, ICCV 2017", focal),
    "cb_focal": Method("Cui et al., Class-Balanced Loss, CVPR 2019", class_balanced_focal),
    "ldam": Method(LDAM, losses.LDAM, network=with_cosine_classifier),
    "ldam_drw": Method(
        LDAM, losses.LDAM, network=with_cosine_classifier, callbacks=deferred_reweighting
    ),
    "balanced_softmax": Method("Ren et al., BALMS, NeurIPS 2020", losses.BalancedSoftmax),
    # With tau = 1 this equals balanced softmax.
    "logit_adjusted_loss": Method("Menon et al., ICLR 2021", losses.LogitAdjustment),
    "label_aware_smoothing": Method(MISLAS, losses.LabelAwareSmoothing, label_smoothing=True),
    # Terms on features; class-balanced batches contain pairs of each class.
    "range_loss": Method(
        "Zhang et al., Range Loss, ICCV 2017",
        sampler="class_balanced",
        model=range_loss,
        mixes=False,
    ),
    "lifted_loss": Method(
        "Oh Song et al., Lifted Structured Feature Embedding, CVPR 2016",
        sampler="class_balanced",
        model=lifted_loss,
        mixes=False,
    ),
    # Samplers; --sampler gives them and others to any method.
    "over_sampling": Method("each class repeated to the largest", sampler="over_sampling"),
    "under_sampling": Method("each class cut to the smallest", sampler="under_sampling"),
    # New classifiers on the features of a trained network.
    "crt": second_stage(DECOUPLING, "crt"),
    "ncm": second_stage(DECOUPLING, "ncm"),
    "tau_norm": second_stage(DECOUPLING, "tau_norm", held_out=True),
    "lws": second_stage(DECOUPLING, "lws"),
    "cosine": second_stage("Gidaris & Komodakis, CVPR 2018", "cosine"),
    "fslwf": second_stage("Gidaris & Komodakis, CVPR 2018", "fslwf"),
    "logit_adjustment": second_stage("Menon et al., ICLR 2021", "logit_adjustment"),
    "smote": second_stage("Chawla et al., SMOTE, JAIR 2002", "smote"),
    "weight_decay": Method(f"{BALANCING}, stage 1", network=with_weight_decay),
    "weight_balancing": second_stage(BALANCING, "weight_balancing", first="weight_decay"),
    "mixup": Method("Zhang et al., mixup, ICLR 2018", mixup=1.0),
    "mislas": second_stage(
        MISLAS, "mislas", mixup=1.0, batch_norm_shift=True, label_smoothing=True
    ),
    # Other networks and schemes.
    "bbn": Method(
        "Zhou et al., BBN, CVPR 2020",
        partner_sampler="reversed",
        network=partial(branch, n=2),
        model=bbn,
        mixes=False,
    ),
    "tade": Method(
        "Zhang et al., TADE/SADE, NeurIPS 2022",
        network=partial(branch, n=3),
        model=tade,
        mixes=False,
    ),
    "oltr": Method(
        "Liu et al., OLTR, CVPR 2019",
        sampler="class_balanced",
        network=with_memory,
        model=oltr,
        mixes=False,
        starts_from={"method": "cross_entropy"},
    ),
    "paco": Method("Cui et al., PaCo, ICCV 2021", views=2, model=paco, mixes=False),
    "dive": Method(
        "He et al., DiVE, ICCV 2021",
        losses.BalancedSoftmax,
        model=dive,
        mixes=False,
        starts_from={
            "method": "balanced_softmax",
            "student_bits": "32",
            "binary_optimizer": "adam",
            "two_step": False,
        },
    ),
}
