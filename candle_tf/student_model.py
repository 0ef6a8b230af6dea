"""A student trained with the loss given to `compile`: the base class of every method's model."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import tensorflow as tf
from candle_tf.data.entrance import Entrance
from candle_tf.export.c_source import export_c
from candle_tf.export.flatbuffer import export_flatbuffer
from candle_tf.export.integer_flatbuffer import export_int8, export_lce_int8
from candle_tf.export.saved_model import export_saved_model
from candle_tf.networks.checks import check_file, check_student
from candle_tf.networks.keras_internals import (
    Untracked,
    called_within_fit,
    create_metrics,
    create_slots,
    iterations,
    log_of_first_replica,
    start_built,
)
from candle_tf.networks.quick_gradients import quicken
from candle_tf.networks.surgery import check_size, split_at_features
from candle_tf.resolution import RandomResolution, resize
from candle_tf.utils.names import lookup

FORMATS = {
    "saved_model": export_saved_model,
    "lce": partial(export_flatbuffer, binary=True),
    "lce_int8": export_lce_int8,
    "tflite": partial(export_flatbuffer, binary=False),
    "int8": export_int8,
    "c": export_c,
}


@dataclass(frozen=True)
class Halves:
    """A student in two halves f and h, cut at its layer `features`: logits z = h(f(x)).

    The halves share the student's layers. Keras does not look into a dataclass, so it neither
    tracks nor saves these layers a second time.

    Attributes:
        encoder: Network f from images (batch, height, width, 3) to features (batch, width).
        classifier: Network h from features to logits (batch, classes).

    Example:
        >>> student = ct.students.resnet_e(num_classes=10, image_size=32, blocks=(1,))
        >>> halves = ct.StudentModel(student).halves
        >>> features = halves.embed(tf.zeros((1, 32, 32, 3)))
        >>> halves.classify(features).shape
        TensorShape([1, 10])
    """

    encoder: tf.keras.Model
    classifier: tf.keras.Model

    def embed(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns f(x), the features (batch, width) of images at the size that they have."""
        return self.encoder(images, training=training)

    def classify(self, features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns h(features), the logits (batch, classes); always in float32.

        The losses are computed in float32 too, even if the layers use mixed precision.
        """
        return tf.cast(self.classifier(features, training=training), tf.float32)


@tf.keras.saving.register_keras_serializable("candle_tf")
class StudentModel(tf.keras.Model):
    """A student trained with compile's loss, on batches of a random resolution.

    Args:
        student: Keras model from images in [0, 255] to logits, with a layer named `features`.
        resolutions: Input sizes to draw from, one per batch; the base size alone by default.
        image_size: Base size in pixels, for `evaluate`, `predict` and `export`; the student's own
            input size by default.
        seed: Seed of the drawn resolutions.

    Raises:
        ValueError: If the student has no `features`, has another size than `image_size`, or cannot
            work at every resolution.

    Example:
        >>> features = tf.keras.layers.GlobalAveragePooling2D(name="features")
        >>> layers = [tf.keras.Input((32, 32, 3)), features, tf.keras.layers.Dense(3)]
        >>> model = ct.StudentModel(tf.keras.Sequential(layers))
        >>> model.compile("adam", loss=ct.losses.BalancedSoftmax([6, 3, 1]))
        >>> images = np.random.uniform(0, 255, (10, 32, 32, 3)).astype("float32")
        >>> list(model.fit(images, np.arange(10) % 3, verbose=0).history)
        ['loss']
    """

    def __init__(
        self,
        student: tf.keras.Model,
        *,
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
        if student.input_shape[1] not in (None, base):
            raise ValueError(
                f"image_size is {base}, but the student takes images of {student.input_shape[1]} "
                "pixels: leave image_size out, or build the student for that size."
            )
        self.student = student
        self.resolution = RandomResolution(resolutions or (base,), base, seed)
        own_size_only = self.resolution.sizes == (student.input_shape[1],)
        self.halves = Halves(*split_at_features(student, own_size_only))
        check_size(self.halves.encoder, base, self.resolution.sizes[0], "student")
        quicken(student)
        start_built(self)
        log_of_first_replica(self)

    def compile(self, optimizer="adam", loss=None, metrics=None, **kwargs):
        """Compiles as Keras does, with cross-entropy of the logits as the default loss.

        Raises:
            ValueError: If the loss expects probabilities: students return logits.
        """
        if any(map(expects_probabilities, tf.nest.flatten(loss))):
            raise ValueError(
                "The loss expects probabilities, and the student returns logits: give "
                "tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
            )
        self.compiled_with = Untracked({"loss": loss, "metrics": metrics, **kwargs})
        loss = loss or tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        super().compile(optimizer, loss, metrics, **kwargs)
        create_slots(self.optimizer, self.descending_variables())
        create_metrics(self, self.student.output_shape[-1])

    def get_compile_config(self):
        """Returns the arguments of `compile` as Keras saves them."""
        given = {"optimizer": self.optimizer, **self.compiled_with.value}
        return {k: tf.keras.saving.serialize_keras_object(v) for k, v in given.items()}

    def compile_from_config(self, config):
        """Compiles with the arguments that `get_compile_config` returned."""
        deserialize = tf.keras.saving.deserialize_keras_object
        self.compile(**{key: deserialize(value) for key, value in config.items()})

    def fit(self, x=None, y=None, *args, validation_data=None, **kwargs):
        """Trains as Keras does, after checks: images are in [0, 255], labels are class numbers."""
        entrance, validation = self.entrance("fit"), self.entrance("validation_data")
        if isinstance(validation_data, (tuple, list)):
            validation.checked(*validation_data[:2])
        elif validation_data is not None:
            validation_data = validation.checked(validation_data)
        x = entrance.checked(x, y)
        for callback in tf.nest.flatten(kwargs.get("callbacks")):
            checkpoints = isinstance(callback, tf.keras.callbacks.ModelCheckpoint)
            if checkpoints and not callback.save_weights_only:
                check_file(callback.filepath)
        with entrance.in_a_sentence(), validation.in_a_sentence():
            return super().fit(x, y, *args, validation_data=validation_data, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """Evaluates as Keras does, after the checks of `fit`."""
        entrance = self.entrance("evaluate")
        if not called_within_fit(kwargs):  # `fit` has checked the data
            x = entrance.checked(x, y)
        with entrance.in_a_sentence():
            return super().evaluate(x, y, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """Predicts as Keras does, after a check: images are in [0, 255]."""
        entrance = self.entrance("predict")
        x = entrance.checked(x)
        with entrance.in_a_sentence():
            return super().predict(x, *args, **kwargs)

    def entrance(self, where: str) -> Entrance:
        """Returns the checks of the data that a call takes.

        Args:
            where: Name of the call, for messages.
        """
        return Entrance(where, self.student.output_shape[-1])

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns the student's logits (batch, classes), float32, at its base size."""
        logits = self.student(resize(images, self.resolution.base), training=training)
        return tf.cast(logits, tf.float32)

    def embed(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns the student's features (batch, width) at its base size."""
        return self.halves.embed(resize(images, self.resolution.base), training=training)

    def train_step(self, data):
        """Makes one update: `descending_variables` descend on the loss of `objective`."""
        images, labels, sample_weight = tf.keras.utils.unpack_x_y_sample_weight(data)
        size = self.resolution.draw(iterations(self.optimizer))
        with tf.GradientTape() as tape:
            loss, logits = self.objective(resize(images, size), labels, sample_weight)
        self.optimizer.minimize(loss, self.descending_variables(), tape=tape)
        return self.compute_metrics(images, labels, logits, sample_weight)

    def objective(self, images: tf.Tensor, labels: tf.Tensor, sample_weight: tf.Tensor | None):
        """Returns the loss that a step minimises, and the logits for the metrics.

        Args:
            images: Images (batch, size, size, 3) at the drawn size.
            labels: Class numbers (batch,).
            sample_weight: Weights of the images (batch,), or None.
        """
        logits = self.halves.classify(self.halves.embed(images, training=True), training=True)
        return self.compute_loss(images, labels, logits, sample_weight), logits

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        """Returns compile's loss plus the student's regularizers, without those of a teacher."""
        return self.compiled_loss(
            y, y_pred, sample_weight, regularization_losses=self.student.losses
        )

    def descending_variables(self) -> list[tf.Variable]:
        """Returns the variables that descend on the loss."""
        return self.student.trainable_variables

    @property
    def trainable_weights(self):
        """The descending variables: Keras passes them to the optimizer once more after `fit`."""
        return self.descending_variables() if self.built else super().trainable_weights

    def trained_parts(self) -> dict:
        """Returns everything that training changes, by name, for a checkpoint."""
        return {"student": self.student, "optimizer": self.optimizer}

    def export(
        self,
        path: str,
        *,
        class_names: Sequence[str] | None = None,
        format: str = "saved_model",
        centre_square: float = 1.0,
        **options,
    ):
        """Writes the student alone.

        Args:
            path: Directory, or `.tflite` file, to write.
            class_names: Names in class order; the class numbers by default.
            format: "saved_model", a TensorFlow SavedModel. "lce", a flatbuffer with 1-bit weights;
                "lce_int8", the same with the other layers in 8 bits. "tflite", a flatbuffer with
                real values; "int8", the same in 8 bits. "c", a directory of C source. Each format
                has a function `candle_tf.export.export_...`.
            centre_square: Side of the central square that is cut out of a photograph, as a fraction
                of its shorter side. The export tells this to the program that predicts.
            options: Further arguments of the format's function, such as `images` for "int8".

        Raises:
            ValueError: For an unknown format, or more or fewer names than classes.
            OSError: If the export cannot be written.
        """
        write = lookup("format", format, FORMATS)
        if os.fspath(path).endswith(".tflite") and format in ("saved_model", "c"):
            raise ValueError(
                f"{path} is the name of a flatbuffer, and format={format!r} writes a directory: "
                "give another format, such as 'lce', or a path without .tflite."
            )
        write(self.student, path, self.resolution.base, class_names, centre_square, **options)

    def save(self, filepath, *args, **kwargs):
        """Saves as Keras does, to a file that ends in .keras.

        Raises:
            ValueError: For a directory. A SavedModel of Keras cannot hold the step of this class.
        """
        check_file(filepath)
        super().save(filepath, *args, **kwargs)

    def get_config(self):
        """Returns the arguments of the constructor as Keras saves them."""
        return {
            "name": self.name,
            "student": tf.keras.saving.serialize_keras_object(self.student),
            "resolutions": self.resolution.sizes,
            "image_size": self.resolution.base,
            "seed": self.resolution.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds the model from what `get_config` returned."""
        deserialize = tf.keras.saving.deserialize_keras_object
        nested = {
            key: deserialize(value, custom_objects)
            for key, value in config.items()
            if isinstance(value, dict)
        }
        return cls(**{**config, **nested})


def batch_mean(values: tf.Tensor, sample_weight: tf.Tensor | None) -> tf.Tensor:
    """Returns sum_i w_i v_i / batch, as Keras reduces a loss; 0 for a replica without an image.

    Args:
        values: Values v, float (batch,).
        sample_weight: Weights w (batch,), or None for 1 each.

    Example:
        >>> float(batch_mean(tf.constant([1.0, 3.0]), tf.constant([1.0, 0.0])))
        0.5
    """
    if sample_weight is not None:
        values *= tf.cast(tf.reshape(sample_weight, [-1]), values.dtype)
    count = tf.cast(tf.size(values), values.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(values), count)


def expects_probabilities(loss) -> bool:
    """Returns whether a loss of Keras, a function or a name is a cross-entropy of probabilities.

    Example:
        >>> expects_probabilities("sparse_categorical_crossentropy")
        True
    """
    if (getattr(loss, "__module__", None) or "").startswith(tf.keras.losses.Loss.__module__):
        loss = getattr(loss, "__name__", loss)  # of a function
    if isinstance(loss, str):
        return "crossentropy" in loss.lower()
    config = loss.get_config() if isinstance(loss, tf.keras.losses.Loss) else {}
    return config.get("from_logits") is False
