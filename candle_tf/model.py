"""The two models that `fit` trains: a student alone, and CANDLE's student beside its teacher."""

import numbers
from collections.abc import Mapping, Sequence
from functools import partial

import larq as lq
import tensorflow as tf
from candle_tf import losses
from candle_tf.balancer import AdversarialBalancer
from candle_tf.data.entrance import Entrance
from candle_tf.export.c_source import export_c
from candle_tf.export.flatbuffer import export_flatbuffer
from candle_tf.export.integer_flatbuffer import export_int8, export_lce_int8
from candle_tf.export.saved_model import export_saved_model
from candle_tf.mixup import check_alpha, draw_pairs
from candle_tf.networks.checks import check_student, check_teacher
from candle_tf.networks.surgery import check_size, split_at_features, synchronizes
from candle_tf.resolution import RandomResolution, resize
from candle_tf.teacher import Teacher
from candle_tf.utils.names import lookup

FORMATS = {
    "saved_model": export_saved_model,
    "lce": partial(export_flatbuffer, binary=True),
    "lce_int8": export_lce_int8,
    "tflite": partial(export_flatbuffer, binary=False),
    "int8": export_int8,
    "c": export_c,
}


@tf.keras.saving.register_keras_serializable("candle_tf")
class StudentModel(tf.keras.Model):
    """A student trained with compile's loss, on batches of a random resolution.

    Args:
        student: Keras model from images in [0, 255] to logits, with a layer named `features`.
        resolutions: input sizes to draw from; the base size alone by default.
        image_size: the base size, used by evaluate, predict and export; the student's own input
            size by default.
        seed: of the drawn resolutions.

    Raises:
        ValueError: if the student has no `features`, or cannot work at every resolution.
    """

    def __init__(
        self,
        student: tf.keras.Model,
        resolutions: Sequence[int] | None = None,
        image_size: int | None = None,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_student(student)
        base = image_size or student.input_shape[1]
        if base is None:
            raise ValueError(
                "The student takes any size: give image_size, its base size in pixels."
            )
        self.student = student
        self.resolution = RandomResolution(resolutions or (base,), base, seed)
        own_size_only = self.resolution.sizes == (student.input_shape[1],)
        encoder, classifier = split_at_features(student, own_size_only)
        check_size(encoder, base, self.resolution.sizes[0], "student")
        # Functions, not models: Keras would track (and save) the shared layers a second time.
        self.encode = lambda images, training: encoder(images, training=training)
        # The losses are in float32, whatever the policy of the layers.
        self.classify = lambda features, training: tf.cast(
            classifier(features, training=training), tf.float32
        )
        self.built = True
        # Logs are results of metrics, the same on all replicas: Keras would add up the workers'.
        self.distribute_reduction_method = "first"

    def compile(self, optimizer="adam", loss=None, metrics=None, **kwargs):
        """As Keras', with cross-entropy of the logits as the default loss."""
        given = {"loss": loss, "metrics": metrics, **kwargs}
        self.compiled_with = lambda: given  # a function: Keras would track what is in a dict
        loss = loss or tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        super().compile(optimizer, loss, metrics, **kwargs)
        create_slots(self.optimizer, self.theta())

    def get_compile_config(self):
        given = {"optimizer": self.optimizer, **self.compiled_with()}
        return {k: tf.keras.saving.serialize_keras_object(v) for k, v in given.items()}

    def compile_from_config(self, config):
        deserialize = tf.keras.saving.deserialize_keras_object
        self.compile(**{key: deserialize(value) for key, value in config.items()})

    def fit(self, x=None, y=None, *args, validation_data=None, **kwargs):
        """As Keras', on images in [0, 255] and class numbers, which are checked."""
        entrance = self.entrance("fit")
        if isinstance(validation_data, (tuple, list)):
            self.entrance("validation_data").checked(*validation_data[:2])
        elif validation_data is not None:
            validation_data = entrance.checked(validation_data)
        x = entrance.checked(x, y)
        with entrance.in_a_sentence():
            return super().fit(x, y, *args, validation_data=validation_data, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As Keras', on images in [0, 255] and class numbers, which are checked."""
        entrance = self.entrance("evaluate")
        if not kwargs.get("_use_cached_eval_dataset"):  # within `fit`, which has checked them
            x = entrance.checked(x, y)
        with entrance.in_a_sentence():
            return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """As Keras', on images in [0, 255], which are checked."""
        entrance = self.entrance("predict")
        x = entrance.checked(x)
        with entrance.in_a_sentence():
            return super().predict(x, *args, **kwargs)

    def entrance(self, where: str) -> Entrance:
        return Entrance(where, self.student.output_shape[-1])

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits (batch, classes) of the student at its base size."""
        return self.student(resize(images, self.resolution.base), training=training)

    def embed(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The student's features (batch, width) at its base size."""
        return self.encode(resize(images, self.resolution.base), training=training)

    def train_step(self, data):
        images, labels, sample_weight = tf.keras.utils.unpack_x_y_sample_weight(data)
        size = self.resolution.draw(iterations(self.optimizer))
        with tf.GradientTape() as tape:
            loss, logits = self.objective(resize(images, size), labels, sample_weight)
        self.optimizer.minimize(loss, self.theta(), tape=tape)
        return self.compute_metrics(images, labels, logits, sample_weight)

    def objective(self, images: tf.Tensor, labels: tf.Tensor, sample_weight: tf.Tensor | None):
        """What a step minimises: (the loss, logits for the metrics)."""
        logits = self.classify(self.encode(images, training=True), training=True)
        return self.compute_loss(images, labels, logits, sample_weight), logits

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        """compile's loss and the student's regularizers, without those of a teacher."""
        return self.compiled_loss(
            y, y_pred, sample_weight, regularization_losses=self.student.losses
        )

    def theta(self) -> list[tf.Variable]:
        """The variables that descend on the loss."""
        return self.student.trainable_variables

    @property
    def trainable_weights(self):
        """theta alone: Keras has the optimizer finish these after `fit`."""
        return self.theta() if self.built else super().trainable_weights

    def trained_parts(self) -> dict:
        """Everything that training changes, by name, as a checkpoint wants it."""
        return {"student": self.student, "optimizer": self.optimizer}

    def export(
        self,
        filepath: str,
        class_names: Sequence[str] | None = None,
        format: str = "saved_model",
        centre_square: float = 1.0,
        **options,
    ):
        """Writes the student alone.

        Args:
            filepath: a directory, or a `.tflite` file.
            class_names: names in class order; the numbers by default.
            format: "saved_model" (see `candle_tf.export.export_saved_model`), or a flatbuffer (see
                `candle_tf.export.export_flatbuffer`): "lce" in 1 bit, "tflite" with real values;
                "lce_int8" and "int8" (see `candle_tf.export.export_lce_int8` and `export_int8`,
                which needs `images`); "c", a directory of C source (see
                `candle_tf.export.export_c`).
            centre_square: side of the central square that is measured of a photograph, as a share
                of its shorter side; the export says so to who predicts with it.
            options: what that function takes beside these.
        """
        write = lookup("format", format, FORMATS)
        names, base = class_names, self.resolution.base
        write(self.student, filepath, base, names, centre_square, **options)

    def get_config(self):
        return {
            "name": self.name,
            "student": tf.keras.saving.serialize_keras_object(self.student),
            "resolutions": self.resolution.sizes,
            "image_size": self.resolution.base,
            "seed": self.resolution.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        deserialize = tf.keras.saving.deserialize_keras_object
        nested = {
            key: deserialize(value, custom_objects)
            for key, value in config.items()
            if isinstance(value, dict)
        }
        return cls(**{**config, **nested})


@tf.keras.saving.register_keras_serializable("candle_tf")
class CandleModel(StudentModel):
    """A binary student distilled from a calibrated, frozen teacher (arXiv 2404.00285).

    For one batch at a random resolution, with lambda in (0, 1) from the balancer:

        L_KL = T^2 KL(softmax(z_T / T) || softmax(z_S / T))
        L_FS = 2 - 2 cos(a(f(x)), g(x))
        L    = lambda L_KL + (1 - lambda) L_FS + w loss(z_S, y)

    theta (student and adapter a) descends on L, phi (balancer) ascends on it, in one step. `loss`
    is the label term: what is given to `compile`, such as `losses.BalancedSoftmax(class_counts)`.
    Without it there is none, as published, and `evaluate` reports the cross-entropy.

    With mixup, x, softmax(z_T / T), g(x) and the label term are mixed alike: each image of a batch
    meets another at a share ~ Beta(mixup, mixup) (Zhang et al., ICLR 2018, arXiv 1710.09412).

    Args:
        teacher: a calibrated `Teacher`; frozen on entry.
        student: as in `StudentModel`. `evaluate`, `predict` and `export` are the student's.
        resolutions: student input sizes to draw from; the teacher's scale in proportion.
        balancer: an `AdversarialBalancer` (by default, one lambda a batch), or a fixed lambda. At
            1.0 only the KL term trains. At 0.0 only the feature term trains the encoder, and the
            classifier, which that term cannot reach, follows L_KL on detached features.
        temperature: T.
        prior_adjusted: add the log prior of the class counts that calibrated the teacher to both
            sides of the KL, so that the student's own logits stay balanced.
        label_weight: w of the loss given to `compile`. None: `Teacher.label_weight`, which its
            calibration measured: nothing where the teacher is always right, as much as the
            teacher's word where it is right every other time.
        mixup: alpha of mixup; 0 mixes nothing.
        image_size, seed: as in `StudentModel`.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: tf.keras.Model,
        resolutions: Sequence[int] | None = None,
        balancer: AdversarialBalancer | float | None = None,
        temperature: float = 2.0,
        prior_adjusted: bool = False,
        label_weight: float | None = None,
        mixup: float = 0.0,
        image_size: int | None = None,
        seed: int = 0,
        **kwargs,
    ):
        check_teacher(teacher)
        super().__init__(student, resolutions, image_size, seed, **kwargs)
        teacher.check_calibrated(num_classes=student.output_shape[-1])
        teacher.trainable = False
        self.teacher = teacher
        smallest = self.teacher_size(self.resolution.sizes[0])
        check_size(teacher.encoder, teacher.image_size, smallest, "teacher")
        self.balancer = AdversarialBalancer(seed=seed) if balancer is None else balancer
        self.fixed_lambda = float(balancer) if isinstance(balancer, numbers.Real) else None
        if self.fixed_lambda is not None and not 0.0 <= self.fixed_lambda <= 1.0:
            raise ValueError(f"A fixed lambda lies in [0, 1], not {balancer}.")
        check_alpha(mixup)
        self.temperature, self.label_weight, self.mixup = temperature, label_weight, mixup
        self.prior_adjusted = prior_adjusted
        self.log_prior = losses.log_prior(teacher.class_counts) if prior_adjusted else None
        self.adapter = tf.keras.Sequential(
            [
                tf.keras.layers.Dense(
                    teacher.width, kernel_initializer=tf.keras.initializers.GlorotUniform(seed)
                ),
                tf.keras.layers.BatchNormalization(
                    momentum=0.9, synchronized=synchronizes(student)
                ),
                tf.keras.layers.LeakyReLU(),
            ],
            name="adapter",
        )
        self.adapter.build((None, student.get_layer("features").output_shape[-1]))
        if self.fixed_lambda is None:
            self.balancer.build(None)
        names = ("objective", "kl", "feature", "lambda", "resolution")
        self.means = {name: tf.keras.metrics.Mean(name=name) for name in names}

    def compile(
        self, optimizer="adam", loss=None, metrics=None, *, balancer_optimizer=None, **kwargs
    ):
        """As Keras', with `balancer_optimizer` for phi (Adam at 1e-3 by default).

        Where Keras has the optimizer scale the loss, as under mixed_float16, both do.
        """
        super().compile(optimizer, loss, metrics, **kwargs)
        self.has_label_term = loss is not None
        if self.has_label_term and self.label_weight is None:
            self.label_weight = self.teacher.label_weight()
        own = tf.keras.optimizers.get(balancer_optimizer or tf.keras.optimizers.Adam(1e-3))
        if scales_loss(self.optimizer) and not scales_loss(own):
            own = tf.keras.mixed_precision.LossScaleOptimizer(own)
        self.balancer_optimizer = own
        create_slots(self.balancer_optimizer, self.phi())

    def get_compile_config(self):
        own = tf.keras.saving.serialize_keras_object(self.balancer_optimizer)
        return {**super().get_compile_config(), "balancer_optimizer": own}

    def train_step(self, data):
        x, labels, sample_weight = tf.keras.utils.unpack_x_y_sample_weight(data)
        images, size, teacher_features, teacher_logits = self.see(x)
        targets = losses.soften(teacher_logits, self.temperature, self.log_prior)
        pairs, weight = None, sample_weight
        if self.mixup:
            step, batch_size = iterations(self.optimizer), tf.shape(images)[0]
            pairs = draw_pairs(step, batch_size, self.mixup, self.resolution.seed, per_image=True)
            images, teacher_features, targets = map(pairs.mix, (images, teacher_features, targets))
            weight = None if sample_weight is None else pairs.mix(sample_weight)
        with tf.GradientTape(persistent=True) as tape:
            features = self.encode(resize(images, size), training=True)
            adapted = self.adapter(features, training=True)
            seen = tf.stop_gradient(features) if self.fixed_lambda == 0.0 else features
            logits = self.classify(seen, training=True)
            kl = losses.kl_from_target(targets, logits, self.temperature, self.log_prior)
            feature = losses.feature_similarity(adapted, teacher_features)
            lambda_ = self.weight_of_kl(kl, feature)
            kl_weight = 1.0 if self.fixed_lambda == 0.0 else lambda_
            loss = batch_mean(kl_weight * kl + (1.0 - lambda_) * feature, weight)
            loss += sum(self.student.losses)  # regularizers
            # Gradients are summed over replicas; Keras divides its own loss already.
            loss /= self.distribute_strategy.num_replicas_in_sync
            if self.has_label_term:
                term = (labels, logits, sample_weight)
                term = pairs.label_terms(*term) if pairs else term
                loss += self.label_weight * self.compiled_loss(*term)
        theta, phi = self.theta(), self.phi()
        descent = gradients(tape, loss, theta, self.optimizer)
        ascent = [-gradient for gradient in gradients(tape, loss, phi, self.balancer_optimizer)]
        if scales_loss(self.optimizer):  # where theta's overflow phi rests too: NaN is skipped
            given = [gradient for gradient in descent if gradient is not None]
            finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in given])
            ascent = [tf.where(finite, gradient, float("nan")) for gradient in ascent]
        self.optimizer.apply_gradients(zip(descent, theta))
        if phi:
            self.balancer_optimizer.apply_gradients(zip(ascent, phi))
        loss *= self.distribute_strategy.num_replicas_in_sync
        self.means["objective"].update_state(loss, tf.shape(images)[0])  # a mean over images
        values = {"kl": kl, "feature": feature, "lambda": lambda_, "resolution": size}
        for name, value in values.items():
            self.means[name].update_state(value)
        logs = self.compute_metrics(images, labels, logits, sample_weight)
        own = {name: mean.result() for name, mean in self.means.items()}
        return {**logs, "loss": own.pop("objective"), **own}

    def see(self, x: tf.Tensor | Mapping[str, tf.Tensor]):
        """A batch as (images, the student's size, the teacher's features, its logits).

        A batch of images has its size drawn and is shown to the teacher; one of a `TeacherStore`
        brings all of it.
        """
        if isinstance(x, Mapping):
            several = len(self.resolution.sizes) > 1
            size = x["size"][0] if several else self.resolution.base
            return x["images"], size, x["features"], x["logits"]
        size = self.resolution.draw(iterations(self.optimizer))
        return x, size, *self.teacher(x, self.teacher_size(size))

    def compute_metrics(self, x, y, y_pred, sample_weight):
        """The student's metrics: the means of a training step have no meaning in `evaluate`."""
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return {name: value for name, value in logs.items() if name not in self.means}

    def theta(self):
        return super().theta() + self.adapter.trainable_variables

    def phi(self) -> list[tf.Variable]:
        """The variables that ascend on the loss."""
        return self.balancer.trainable_variables if self.fixed_lambda is None else []

    def trained_parts(self):
        parts = {**super().trained_parts(), "adapter": self.adapter}
        if self.fixed_lambda is None:
            parts.update(balancer=self.balancer, balancer_optimizer=self.balancer_optimizer)
        return parts

    def weight_of_kl(self, kl: tf.Tensor, feature: tf.Tensor) -> tf.Tensor | float:
        """lambda: () or, per sample, (batch,)."""
        return self.balancer((kl, feature)) if self.fixed_lambda is None else self.fixed_lambda

    def teacher_size(self, size: tf.Tensor | int) -> tf.Tensor | int:
        """The teacher's input size, in proportion to the student's."""
        ratio = self.teacher.image_size / self.resolution.base
        if isinstance(size, int):
            return round(ratio * size)
        return tf.cast(tf.round(ratio * tf.cast(size, tf.float32)), tf.int32)

    def get_config(self):
        fixed = self.fixed_lambda
        return {
            **super().get_config(),
            "teacher": tf.keras.saving.serialize_keras_object(self.teacher),
            "balancer": tf.keras.saving.serialize_keras_object(self.balancer)
            if fixed is None
            else fixed,
            "temperature": self.temperature,
            "prior_adjusted": self.prior_adjusted,
            "label_weight": self.label_weight,
            "mixup": self.mixup,
        }


def create_slots(optimizer, variables: list[tf.Variable]):
    """Makes an optimizer's slots now, so that a saved state finds them; legacy ones need not."""
    if isinstance(optimizer, tf.keras.optimizers.Optimizer):
        optimizer.build(variables)


def iterations(optimizer) -> tf.Variable:
    """The updates made so far, where a wrapped optimizer or one of a CaseOptimizer counts them."""
    if scales_loss(optimizer):
        optimizer = optimizer.inner_optimizer
    while isinstance(optimizer, lq.optimizers.CaseOptimizer):
        optimizer = optimizer.default
    return optimizer.iterations


def scales_loss(optimizer) -> bool:
    return isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer)


def gradients(
    tape: tf.GradientTape, loss: tf.Tensor, variables: list[tf.Variable], optimizer
) -> list[tf.Tensor]:
    """Of the loss; scaled on their way through half precision, where the optimizer does that."""
    if not scales_loss(optimizer):
        return tape.gradient(loss, variables)
    scale = optimizer.get_scaled_loss(tf.ones_like(loss))
    return optimizer.get_unscaled_gradients(tape.gradient(loss, variables, output_gradients=scale))


def batch_mean(values: tf.Tensor, sample_weight: tf.Tensor | None) -> tf.Tensor:
    """The sum of the weighted values over the batch size, as Keras reduces a loss."""
    if sample_weight is not None:
        values *= tf.cast(tf.reshape(sample_weight, [-1]), values.dtype)
    return tf.reduce_mean(values)
