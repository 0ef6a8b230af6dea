"""CANDLE's training step: the equations of arXiv 2404.00285, in the order of the README.

L_KL = T^2 KL(softmax(z_T / T) || softmax(z_S / T))
L_FS = 2 - 2 cos(a(f(x)), g(x))
min over student, max over balancer   E[lambda L_KL + (1 - lambda) L_FS + w L_label]

`CandleModel.train_step` computes these terms in this order.
"""

import math
import numbers
from collections.abc import Mapping, Sequence

import tensorflow as tf
from candle_tf import losses
from candle_tf.balancer import AdversarialBalancer
from candle_tf.data.entrance import Entrance
from candle_tf.mixup import Pairs, Unmixed, check_alpha, draw_pairs
from candle_tf.networks.checks import check_teacher
from candle_tf.networks.keras_internals import (
    create_slots,
    gradients,
    iterations,
    scales_loss,
    skipped_with,
)
from candle_tf.networks.surgery import check_size, synchronizes
from candle_tf.resolution import in_proportion, resize
from candle_tf.student_model import StudentModel, batch_mean
from candle_tf.teacher import Teacher

PRIOR_BETA = 0.999  # beta of the effective numbers in the KL term; they are below 1 / (1 - beta)


@tf.keras.saving.register_keras_serializable("candle_tf")
class CandleModel(StudentModel):
    """A binary student distilled from a calibrated, frozen teacher (arXiv 2404.00285).

    For one batch at a random resolution, with lambda in (0, 1) from the balancer:

        L_KL = T^2 KL(softmax(z_T / T) || softmax(z_S / T))
        L_FS = 2 - 2 cos(a(f(x)), g(x))
        L    = lambda L_KL + (1 - lambda) L_FS + w loss(z_S, y)

    The teacher gives features g(x) and logits z_T, the student f(x) and z_S, and the balancer gives
    lambda. In one step the student and its adapter a descend on L, and the balancer ascends on L.
    `loss` is L_label: the loss given to `compile`, such as `losses.BalancedSoftmax(class_counts)`,
    or plain cross-entropy if the batches are class-balanced.
    Without a loss there is no label term, as published, and `evaluate` reports the cross-entropy.

    With mixup, x, softmax(z_T / T), g(x) and the label term are mixed alike. Each image of a batch
    is mixed with another one, and its own weight is drawn from Beta(mixup, mixup) (Zhang et al.,
    ICLR 2018, arXiv 1710.09412).

    Args:
        teacher: Calibrated `Teacher`; the model freezes it.
        student: Keras model as in `StudentModel`; `evaluate`, `predict` and `export` use it alone.
        resolutions: Student input sizes to draw from; the teacher's sizes change in proportion.
        balancer: `AdversarialBalancer` (one lambda per batch by default), or a fixed lambda. At
            1.0 only the KL term trains. At 0.0 only the feature term trains the encoder. The
            classifier, which that term cannot reach, then follows L_KL on detached features.
        temperature: Temperature T of both softmaxes.
        prior_adjusted: Whether log pi is added to both logits of the KL divergence, so that the
            student's own logits stay balanced. The prior pi_c is proportional to the effective
            number (1 - beta^n_c) / (1 - beta) of the teacher's class counts n_c, with beta = 0.999
            (Cui et al., CVPR 2019): no class counts as more than 1,000 images.
        label_weight: Weight w of the loss given to `compile`. None takes `Teacher.label_weight`,
            which follows from the calibration's cross-validation.
        mixup: Parameter alpha of mixup; 0 mixes nothing.
        linear_adapter: Whether the adapter ends in its batch norm, without the paper's leaky ReLU:
            for features that are often negative, such as standardised ones.
        image_size: Base size in pixels, as in `StudentModel`.
        seed: Seed of the drawn resolutions, the mixup and the initial weights.

    Raises:
        ValueError: If the teacher is not calibrated for the student's classes, a network cannot
            work at every resolution, or a number is out of its range.

    Example:
        >>> images = np.random.uniform(0, 255, (10, 32, 32, 3)).astype("float32")
        >>> batches = tf.data.Dataset.from_tensor_slices((images, np.arange(10) % 2)).batch(5)
        >>> encoder = tf.keras.Sequential([tf.keras.layers.Conv2D(4, 3, 2)])
        >>> encoder.build((None, 32, 32, 3))
        >>> teacher = ct.Teacher(encoder, 32)
        >>> checked = teacher.calibrate(batches, [5, 5], verbose=0)
        >>> features = tf.keras.layers.GlobalAveragePooling2D(name="features")
        >>> layers = [tf.keras.Input((32, 32, 3)), features, tf.keras.layers.Dense(2)]
        >>> model = ct.CandleModel(teacher, tf.keras.Sequential(layers), mixup=1.0)
        >>> model.compile("adam", loss=ct.losses.BalancedSoftmax([5, 5]))
        >>> sorted(model.fit(batches, verbose=0).history)
        ['feature', 'kl', 'lambda', 'loss', 'resolution']
    """

    def __init__(
        self,
        teacher: Teacher,
        student: tf.keras.Model,
        *,
        resolutions: Sequence[int] | None = None,
        balancer: AdversarialBalancer | float | None = None,
        temperature: float = 2.0,
        prior_adjusted: bool = False,
        label_weight: float | None = None,
        mixup: float = 0.0,
        linear_adapter: bool = False,
        image_size: int | None = None,
        seed: int = 0,
        **kwargs,
    ):
        check_teacher(teacher)
        super().__init__(
            student, resolutions=resolutions, image_size=image_size, seed=seed, **kwargs
        )
        teacher.check_calibrated(num_classes=student.output_shape[-1])
        teacher.trainable = False
        self.teacher = teacher
        smallest = self.teacher_size(self.resolution.sizes[0])
        check_size(teacher.encoder, teacher.image_size, smallest, "teacher")
        self.balancer = AdversarialBalancer(seed=seed) if balancer is None else balancer
        self.fixed_lambda = float(balancer) if isinstance(balancer, numbers.Real) else None
        if self.fixed_lambda is None and not isinstance(self.balancer, AdversarialBalancer):
            raise ValueError(
                f"The balancer is {balancer!r}: give an AdversarialBalancer() or a fixed lambda, a "
                "number in [0, 1]."
            )
        if self.fixed_lambda is not None and not 0.0 <= self.fixed_lambda <= 1.0:
            raise ValueError(f"A fixed lambda must be in [0, 1], not {balancer}.")
        if not 0.0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature} but must be above 0, such as 2.0.")
        if label_weight is not None and not 0.0 <= label_weight < math.inf:
            raise ValueError(f"label_weight is {label_weight} but must be at least 0, or None.")
        check_alpha(mixup)
        self.temperature, self.label_weight, self.mixup = temperature, label_weight, mixup
        self.prior_adjusted, self.log_prior = prior_adjusted, None  # the prior is compile's
        self.linear_adapter = linear_adapter
        self.adapter = build_adapter(student, teacher.width, seed, linear_adapter)
        if self.fixed_lambda is None:
            self.balancer.build(None)
        names = ("objective", "kl", "feature", "lambda", "resolution")
        self.means = {name: tf.keras.metrics.Mean(name=name) for name in names}

    def compile(
        self, optimizer="adam", loss=None, metrics=None, *, balancer_optimizer=None, **kwargs
    ):
        """Compiles as Keras does, with an optimizer for the balancer (Adam at 1e-3 by default).

        If the student's optimizer scales the loss, as under mixed_float16, the balancer's optimizer
        scales it too.
        """
        if loss is None and self.label_weight:
            raise ValueError(
                f"label_weight is {self.label_weight:g} but compile has no loss: give the loss of "
                "the label term, such as SparseCategoricalCrossentropy(from_logits=True)."
            )
        super().compile(optimizer, loss, metrics, **kwargs)
        self.log_prior = None
        if self.prior_adjusted:
            counts = losses.positive_counts(self.teacher.class_counts)
            self.log_prior = losses.log_prior(losses.effective_number(counts, PRIOR_BETA))
        self.has_label_term = loss is not None
        self.weight_of_labels = self.label_weight
        if self.has_label_term and self.label_weight is None:
            self.weight_of_labels = self.teacher.label_weight()
        own = tf.keras.optimizers.get(balancer_optimizer or tf.keras.optimizers.Adam(1e-3))
        if scales_loss(self.optimizer) and not scales_loss(own):
            own = tf.keras.mixed_precision.LossScaleOptimizer(own)
        self.balancer_optimizer = own
        create_slots(self.balancer_optimizer, self.ascending_variables())

    def get_compile_config(self):
        """Returns the arguments of `compile` as Keras saves them."""
        own = tf.keras.saving.serialize_keras_object(self.balancer_optimizer)
        return {**super().get_compile_config(), "balancer_optimizer": own}

    def compile_from_config(self, config):
        """Compiles with the arguments that `get_compile_config` returned."""
        if config.get("loss") is None:
            self.label_weight = None  # files of earlier versions hold a weight that nothing used
        super().compile_from_config(config)

    def entrance(self, where):
        return Entrance(where, self.student.output_shape[-1], takes_stores=where == "fit")

    def train_step(self, data):
        """Makes one update: the student descends on L, the balancer ascends on L.

        The comments name the symbols of the equations in the docstring of the class.
        """
        x, y, sample_weight = tf.keras.utils.unpack_x_y_sample_weight(data)
        images, size, g, z_teacher = self.teacher_outputs(x)  # x, its drawn size, g(x), z_T
        target = losses.soften(z_teacher, self.temperature, self.log_prior)  # softmax(z_T / T)
        pairs = self.draw_pairs(images)
        images, g, target, weight = map(pairs.mix, (images, g, target, sample_weight))
        with tf.GradientTape(persistent=True) as tape:
            f = self.halves.embed(resize(images, size), training=True)  # f(x)
            z = self.halves.classify(self.seen_by_classifier(f), training=True)  # z_S
            # L_KL, L_FS and lambda, with the (mixed) teacher's softmax(z_T / T) and g(x)
            kl = losses.kl_from_target(target, z, self.temperature, self.log_prior)
            feature = losses.feature_similarity(self.adapter(f, training=True), g)
            lambda_ = self.lambda_of(kl, feature)
            # L = lambda L_KL + (1 - lambda) L_FS + w loss(z_S, y), averaged over the batch
            distillation = self.weight_of_kl(lambda_) * kl + (1.0 - lambda_) * feature
            loss = self.part_of_replica(distillation, weight)
            loss += self.label_term(pairs, y, z, sample_weight)
        descent = gradients(tape, loss, self.descending_variables(), self.optimizer)
        ascent = gradients(tape, loss, self.ascending_variables(), self.balancer_optimizer)
        self.descend(descent)  # min over student
        self.ascend(ascent, descent)  # max over balancer
        self.note(loss, tf.shape(images)[0], kl, feature, lambda_, size)
        return self.logs(self.compute_metrics(images, y, z, sample_weight))

    def teacher_outputs(self, x: tf.Tensor | Mapping[str, tf.Tensor]):
        """Returns a batch as (images, the student's size, the teacher's features, its logits).

        For a batch of images, this method draws the size and calls the teacher. A batch of a
        `TeacherStore` already holds all four.
        """
        if isinstance(x, Mapping):
            several = len(self.resolution.sizes) > 1
            size = x["size"][0] if several else self.resolution.base
            return x["images"], size, x["features"], x["logits"]
        size = self.resolution.draw(iterations(self.optimizer))
        return x, size, *self.teacher(x, self.teacher_size(size))

    def draw_pairs(self, images: tf.Tensor) -> Pairs | Unmixed:
        """Returns the pairs of images that mixup mixes in this step."""
        if not self.mixup:
            return Unmixed()
        step, batch_size = iterations(self.optimizer), tf.shape(images)[0]
        return draw_pairs(step, batch_size, self.mixup, self.resolution.seed, per_image=True)

    def seen_by_classifier(self, features: tf.Tensor) -> tf.Tensor:
        """Returns the features; detached if lambda is fixed at 0: only L_FS trains the encoder."""
        return tf.stop_gradient(features) if self.fixed_lambda == 0.0 else features

    def lambda_of(self, kl: tf.Tensor, feature: tf.Tensor) -> tf.Tensor | float:
        """Returns lambda: one value, or (batch,) from a balancer per sample."""
        return self.balancer((kl, feature)) if self.fixed_lambda is None else self.fixed_lambda

    def weight_of_kl(self, lambda_: tf.Tensor | float) -> tf.Tensor | float:
        """Returns lambda; 1 if lambda is fixed at 0, so that the classifier still learns."""
        return 1.0 if self.fixed_lambda == 0.0 else lambda_

    def part_of_replica(self, values: tf.Tensor, weight: tf.Tensor | None) -> tf.Tensor:
        """Returns this replica's part of the mean over the batch, with the student's regularizers.

        The gradients of all replicas are summed, so each loss is divided by their number. Keras has
        already divided compile's loss.
        """
        loss = batch_mean(values, weight) + sum(self.student.losses)
        return loss / self.distribute_strategy.num_replicas_in_sync

    def label_term(
        self, pairs: Pairs | Unmixed, labels: tf.Tensor, logits: tf.Tensor, sample_weight
    ) -> tf.Tensor | float:
        """Returns w loss(z_S, y), mixed as the images are; 0 without a loss."""
        if not self.has_label_term:
            return 0.0
        return self.weight_of_labels * self.compiled_loss(
            *pairs.label_terms(labels, logits, sample_weight)
        )

    def descend(self, descent: list[tf.Tensor]):
        """Updates the student and its adapter by the gradients of the loss."""
        self.optimizer.apply_gradients(zip(descent, self.descending_variables()))

    def ascend(self, ascent: list[tf.Tensor], descent: list[tf.Tensor]):
        """Updates the balancer in the direction of the gradients, so that the loss rises.

        If the scaled gradients of the student overflow, its optimizer skips the update. Then the
        balancer skips the update too.
        """
        if self.fixed_lambda is None:
            reversed_ = skipped_with([-gradient for gradient in ascent], descent, self.optimizer)
            self.balancer_optimizer.apply_gradients(zip(reversed_, self.ascending_variables()))

    def note(self, loss: tf.Tensor, batch_size: tf.Tensor, kl, feature, lambda_, size):
        """Updates the means that the logs show: lambda and size over steps, others over images."""
        loss *= self.distribute_strategy.num_replicas_in_sync
        self.means["objective"].update_state(loss, batch_size)
        values = {"kl": kl, "feature": feature, "lambda": lambda_, "resolution": size}
        for name, value in values.items():
            self.means[name].update_state(value)

    def logs(self, metrics: dict) -> dict:
        """Returns the metrics together with the means of this epoch's steps."""
        own = {name: mean.result() for name, mean in self.means.items()}
        return {**metrics, "loss": own.pop("objective"), **own}

    @property
    def metrics_names(self) -> list[str]:
        """The names of the logs, the loss first, which Keras gives to the values of a batch."""
        names = super().metrics_names
        return ["loss", *(name for name in names if name not in ("loss", "objective"))]

    def compute_metrics(self, x, y, y_pred, sample_weight):
        """Returns the student's metrics, without the means of training steps.

        The means are empty in `evaluate`.
        """
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return {name: value for name, value in logs.items() if name not in self.means}

    def descending_variables(self):
        """Returns the variables of the student and of its adapter."""
        return super().descending_variables() + self.adapter.trainable_variables

    def ascending_variables(self) -> list[tf.Variable]:
        """Returns the balancer's variables, which ascend on the loss; [] for a fixed lambda."""
        return self.balancer.trainable_variables if self.fixed_lambda is None else []

    def trained_parts(self):
        """Returns everything that training changes, by name, for a checkpoint."""
        parts = {**super().trained_parts(), "adapter": self.adapter}
        if self.fixed_lambda is None:
            parts.update(balancer=self.balancer, balancer_optimizer=self.balancer_optimizer)
        return parts

    def teacher_size(self, size: tf.Tensor | int) -> tf.Tensor | int:
        """Returns the teacher's input size, in proportion to the student's."""
        return in_proportion(size, self.resolution.base, self.teacher.image_size)

    def get_config(self):
        """Returns the arguments of the constructor as Keras saves them."""
        serialize, fixed = tf.keras.saving.serialize_keras_object, self.fixed_lambda
        return {
            **super().get_config(),
            "teacher": serialize(self.teacher),
            "balancer": serialize(self.balancer) if fixed is None else fixed,
            "temperature": self.temperature,
            "prior_adjusted": self.prior_adjusted,
            "label_weight": self.label_weight,
            "mixup": self.mixup,
            "linear_adapter": self.linear_adapter,
        }


def build_adapter(
    student: tf.keras.Model, width: int, seed: int, linear: bool = False
) -> tf.keras.Sequential:
    """Builds the adapter a, from f(x) to the teacher's width: LeakyReLU(norm(W f(x) + b)).

    Args:
        student: Student with a layer named `features`.
        width: Number of the teacher's features.
        seed: Seed of the initial weights.
        linear: Whether to leave out the LeakyReLU.

    Example:
        >>> student = ct.students.resnet_e(num_classes=10, image_size=32, blocks=(1,))
        >>> build_adapter(student, 16, seed=0).output_shape
        (None, 16)
    """
    adapter = tf.keras.Sequential(
        [
            tf.keras.layers.Dense(
                width, kernel_initializer=tf.keras.initializers.GlorotUniform(seed)
            ),
            tf.keras.layers.BatchNormalization(momentum=0.9, synchronized=synchronizes(student)),
            *([] if linear else [tf.keras.layers.LeakyReLU()]),
        ],
        name="adapter",
    )
    adapter.build((None, student.get_layer("features").output_shape[-1]))
    return adapter
