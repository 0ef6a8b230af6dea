"""The teacher: a frozen, full-precision encoder and a classifier calibrated on long-tailed data."""

import importlib
import json
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from candle_tf import classifiers
from candle_tf.calibration import CALIBRATIONS, CrossValidation, fit_classifier
from candle_tf.losses import positive_counts
from candle_tf.networks.checks import (
    last_of,
    makes_probabilities,
    own_scaling,
    without_classifier,
)
from candle_tf.networks.pretrained import build_encoder, networks_of, zoo_networks
from candle_tf.networks.safe_load import load_model
from candle_tf.networks.surgery import any_size, check_size, fold_batch_norm
from candle_tf.resolution import resize
from candle_tf.students.bits import at_bits
from candle_tf.utils.distribution import ALONE, from_first, leads
from candle_tf.utils.files import fingerprint
from candle_tf.utils.names import lookup

MOST_LABEL_WEIGHT = 99.0
PREPROCESSING = ("tf", "torch", "caffe", "none")


@tf.keras.saving.register_keras_serializable("candle_tf")
class Preprocessing(tf.keras.layers.Layer):
    """Keras' `imagenet_utils.preprocess_input` for images in [0, 255]; "none" changes nothing."""

    def __init__(self, mode: str, **kwargs):
        super().__init__(**kwargs)
        self.mode = lookup("preprocessing", mode, {mode: mode for mode in PREPROCESSING})

    def call(self, images):
        if self.mode == "none":
            return images
        return tf.keras.applications.imagenet_utils.preprocess_input(images, mode=self.mode)

    def get_config(self):
        return {**super().get_config(), "mode": self.mode}


@tf.keras.saving.register_keras_serializable("candle_tf")
class Teacher(tf.keras.Model):
    """g and h_T: images (batch, height, width, 3) in [0, 255] -> (features, logits).

    Features are float (batch, width), pooled over the feature map; logits (batch, classes) come
    from the classifier that `calibrate` trains. The encoder is frozen, its batch norm in inference
    mode whatever `training` says.

    Args:
        encoder: Keras model from preprocessed images to a feature map or an embedding. Kept as a
            copy with its batch norm inside its convolutions, which is the same function, faster.
        image_size: side in pixels that images are resized to by default.
        preprocessing: what the encoder wants of images: "tf" ([-1, 1]), "torch", "caffe" or "none"
            (see `tf.keras.applications.imagenet_utils.preprocess_input`). "none" where None and the
            encoder scales images itself, else "tf".

    Raises:
        ValueError: for an encoder that ends in a softmax, or would scale what was scaled before.
    """

    def __init__(
        self, encoder: tf.keras.Model, image_size: int, preprocessing: str | None = None, **kwargs
    ):
        preprocessing = check_encoder(encoder, preprocessing)
        # Images keep their pixels' precision whatever the policy: the encoder has its own.
        super().__init__(**{"dtype": "float32", **kwargs})
        self.preprocessing = Preprocessing(preprocessing, dtype="float32")
        encoder = fold_batch_norm(encoder)
        self.encoder = encoder if encoder.input_shape[1] is None else any_size(encoder)
        self.encoder.trainable = False
        check_size(self.encoder, image_size, image_size, "teacher")
        self.image_size = image_size
        self.classifier = None
        self.class_counts = None
        self.cross_validation = None

    @classmethod
    def from_keras(
        cls,
        name: str,
        image_size: int,
        weights: str | None = "imagenet",
        preprocessing: str | None = None,
        **kwargs,
    ) -> "Teacher":
        """A network of `tf.keras.applications`, such as `from_keras("MobileNet", 96, alpha=0.25)`.

        Args:
            name: as in `tf.keras.applications`.
            image_size: side in pixels of the images that the encoder sees.
            weights: "imagenet" (downloaded by Keras), a file of the network's weights with or
                without its top, or None for random ones.
            preprocessing: the network's own where None.
            **kwargs: for the network, such as alpha.

        Raises:
            ValueError: for an unknown name, or weights that do not fit the network.
            FileNotFoundError: if `weights` names a file that is not there.
        """
        network = lookup("Keras application", name, networks_of(tf.keras.applications))
        encoder = build_encoder(network, weights, (None, None, 3), kwargs)
        own = preprocessing_of(importlib.import_module(network.__module__).preprocess_input)
        return cls(encoder, image_size, preprocessing or own)

    @classmethod
    def from_larq_zoo(
        cls,
        name: str,
        image_size: int,
        weights: str | None = "imagenet",
        preprocessing: str | None = None,
        bits: str = "1",
    ) -> "Teacher":
        """A network of larq-zoo, for instance `from_larq_zoo("QuickNet", 224)`; as `from_keras`.

        Args:
            bits: the width of its weights and activations, a name of `candle_tf.students.BITS`;
                "32" for weights that were trained so.
        """
        network = lookup("larq-zoo network", name, zoo_networks())
        encoder = build_encoder(network, weights, (224, 224, 3), {})
        return cls(at_bits(encoder, bits), image_size, preprocessing or "torch")

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike,
        image_size: int,
        preprocessing: str | None = None,
        allow_custom_code: bool = False,
    ) -> "Teacher":
        """A whole saved Keras model (`.keras`, `.h5` or SavedModel), without its classifier.

        Args:
            path: the file; read without executing anything from it.
            image_size: side in pixels of the images that the encoder sees.
            preprocessing: as in `Teacher`.
            allow_custom_code: also load Lambda layers and classes that Keras and Larq do not know.

        Raises:
            ValueError, FileNotFoundError: as `candle_tf.networks.safe_load.load_model`.
        """
        encoder, cut = without_classifier(load_model(path, allow_custom_code))
        if cut:
            print(f"{path} ends in a classifier: it is cut after the layer {cut!r}, its features.")
        if preprocessing is None and (scaling := own_scaling(encoder)):
            print(f"{path} scales images itself (layer {scaling!r}): they are not scaled before.")
        if len(encoder.outputs or []) != 1 or encoder.output.shape.rank not in (2, 4):
            raise ValueError(
                f"{path} does not end in one feature map or embedding: cut the network after its "
                "last feature layer with tf.keras.Model(model.input, layer.output) and save that."
            )
        return cls(encoder, image_size, preprocessing)

    @property
    def width(self) -> int:
        """The number of features."""
        return self.encoder.output_shape[-1]

    def call(self, images: tf.Tensor, image_size: tf.Tensor | int | None = None):
        """Images at their own size -> (features, logits), seen at `image_size` pixels."""
        if self.classifier is None:
            raise ValueError("The teacher is not calibrated: call teacher.calibrate(...) first.")
        features = self.embed(images, image_size)
        return features, self.classifier(features)

    def embed(self, images: tf.Tensor, image_size: tf.Tensor | int | None = None) -> tf.Tensor:
        """Pooled features float (batch, width)."""
        images = resize(images, self.image_size if image_size is None else image_size)
        encoded = self.encoder(self.preprocessing(images), training=False)
        encoded = tf.cast(encoded, tf.float32)
        return tf.reduce_mean(encoded, axis=(1, 2)) if encoded.shape.rank == 4 else encoded

    def calibrate(
        self,
        train: tf.data.Dataset,
        class_counts: Sequence[int],
        *,
        loss: str = "balanced_softmax",
        label_smoothing: tuple[float, float] = (0.05, 0.1),
        views: int = 4,
        seed: int = 0,
        verbose="auto",
        directory: str | os.PathLike | None = None,
        strategy: tf.distribute.Strategy = ALONE,
    ) -> CrossValidation:
        """Trains a new classifier on the frozen encoder's features, computed once.

        The classifier is linear in standardised features. How small its weights are kept is chosen
        by cross-validation on the training images (see `candle_tf.calibration`).

        Args:
            train: Batches of (images, labels), each training image once (or the same number of
                times, as augmented views). Read `views` times. For a strategy with several
                replicas, what `candle_tf.distribution.distributed` gives.
            class_counts: Training images per class, (classes,).
            loss: "balanced_softmax" (BALMS): cross-entropy with the log prior inside;
                "label_aware_smoothing" (MiSLAS, stage 2) with classes at equal weight; or
                "cross_entropy" for an ablation: not calibrated.
            label_smoothing: Factors of head and tail, for "label_aware_smoothing".
            views: How often `train` is read; worth more than 1 where it augments.
            seed: Seed of the folds of the cross-validation.
            verbose: 0 for silence.
            directory: Where the features stay, to be taken up by the same call, as in
                `candle_tf.classifiers.encode_dataset`; a temporary one where None.
            strategy: Strategy whose replicas each encode their part; the first worker then trains
                the classifier for all.

        Returns:
            The cross-validated accuracy, also kept as `teacher.cross_validation`. The student's
            label term follows from it (`CandleModel`).

        Raises:
            ValueError: For an empty class, counts that do not match the labels, a label out of
                range or an image with NaN or Inf (named by its index).

        Example:
            >>> teacher.calibrate(batches, class_counts)  # doctest: +SKIP
        """
        lookup("calibration", loss, dict.fromkeys(CALIBRATIONS))
        positive_counts(class_counts)
        features, labels = classifiers.encode_dataset(
            self.embed,
            train,
            class_counts,
            views,
            verbose,
            directory,
            self.identity(),
            strategy,
        )
        num_classes = len(class_counts)
        weights = np.zeros((self.width, num_classes)), np.zeros(num_classes)
        measured = np.zeros(num_classes + 1)
        if leads(strategy):
            *weights, checked = fit_classifier(
                features,
                labels,
                class_counts,
                loss=loss,
                label_smoothing=label_smoothing,
                seed=seed,
            )
            measured = np.array([checked.strength, *checked.per_class])
            if verbose:
                print(checked.summary())
        self.classifier = classifiers.linear(self.width, num_classes)
        self.classifier.set_weights([from_first(strategy, w) for w in weights])
        self.classifier.trainable = False
        self.class_counts = [int(n) for n in class_counts]
        strength, *accuracy = np.asarray(from_first(strategy, measured)).tolist()
        self.cross_validation = CrossValidation(strength, accuracy, self.class_counts)
        return self.cross_validation

    def label_weight(self) -> float:
        """Returns (1 - a) / (a - 1 / C), the weight of a label beside the teacher's word.

        With a the cross-validated class-mean accuracy of the calibration and 1 / C that of chance,
        it is 0 for a teacher that is always right, about 1 for one that is right every other time,
        and `MOST_LABEL_WEIGHT` for one that guesses.

        Raises:
            ValueError: If the teacher was calibrated without a cross-validation.
        """
        checked = self.cross_validation
        if checked is None or np.isnan(checked.class_mean):
            raise ValueError(
                "Nothing says how far to trust the teacher, for its calibration was not "
                "cross-validated: pass label_weight, such as 1.0, or calibrate it again."
            )
        wrong, chance = 1.0 - checked.class_mean, 1.0 / len(self.class_counts)
        return min(wrong / max(checked.class_mean - chance, 1e-6), MOST_LABEL_WEIGHT)

    def identity(self) -> dict:
        """What its features follow from, by name; values that JSON keeps."""
        layers = [(type(layer).__name__, nameless(layer)) for layer in self.encoder.layers]
        text = json.dumps(layers, default=lambda value: type(value).__name__)
        return {
            "teacher": fingerprint([np.array(text.encode()), *self.encoder.get_weights()]),
            "teacher image size": self.image_size,
            "teacher preprocessing": self.preprocessing.mode,
        }

    def check_calibrated(self, num_classes: int):
        """Refuses a teacher that has no classifier, or one for other classes than the student's."""
        if self.classifier is None:
            raise ValueError("The teacher is not calibrated: call teacher.calibrate(...) first.")
        if len(self.class_counts) != num_classes:
            raise ValueError(
                f"The teacher is calibrated for {len(self.class_counts)} classes but the student "
                f"has {num_classes}: build the student with the same num_classes."
            )

    def get_config(self):
        serialize, checked = tf.keras.saving.serialize_keras_object, self.cross_validation
        return {
            "encoder": serialize(self.encoder),
            "image_size": self.image_size,
            "preprocessing": self.preprocessing.mode,
            "classifier": self.classifier and serialize(self.classifier),
            "class_counts": self.class_counts,
            "cross_validation": checked and checked.get_config(),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        deserialize = tf.keras.saving.deserialize_keras_object
        teacher = cls(
            deserialize(config["encoder"], custom_objects),
            config["image_size"],
            config["preprocessing"],
        )
        if config["classifier"] is not None:
            teacher.classifier = deserialize(config["classifier"], custom_objects)
            teacher.classifier.trainable = False
            teacher.class_counts = config["class_counts"]
        if config.get("cross_validation"):
            teacher.cross_validation = CrossValidation(**config["cross_validation"])
        return teacher


def nameless(layer: tf.keras.layers.Layer):
    """A layer's config without the names that Keras counts up within a process, and what has them.

    So that how layers are wired is not in it, neither here nor in a network within the network.
    """
    named = ("name", "inbound_nodes", "input_layers", "output_layers")

    def stripped(value):
        if isinstance(value, dict) and value.get("class_name") == "Policy":
            return value["config"]["name"]  # which is all that there is of it
        if isinstance(value, dict):
            return {key: stripped(v) for key, v in value.items() if key not in named}
        return [stripped(v) for v in value] if isinstance(value, (list, tuple)) else value

    return stripped(layer.get_config())


def check_encoder(encoder: tf.keras.Model, preprocessing: str | None) -> str:
    """What an encoder wants of images; refuses one that cannot be a teacher's."""
    if isinstance(encoder, type) or not isinstance(encoder, tf.keras.Model):
        raise ValueError(f"The encoder is {encoder!r}: pass a functional Keras model.")
    if getattr(encoder, "outputs", None) and (cut := without_classifier(encoder, False)[1]):
        raise ValueError(
            f"The encoder {encoder.name!r} ends in a classifier: cut it after its features, by "
            f"tf.keras.Model(encoder.input, encoder.get_layer({cut!r}).output)."
        )
    if getattr(encoder, "outputs", None) and makes_probabilities(last_of(encoder)):
        raise ValueError(
            f"The encoder {encoder.name!r} ends in a softmax: cut it after its features, by "
            "tf.keras.Model(encoder.input, encoder.get_layer(NAME).output)."
        )
    scaling = own_scaling(encoder)
    if scaling and preprocessing not in (None, "none"):
        raise ValueError(
            f"The network {encoder.name!r} scales images itself (layer {scaling!r}), and "
            f"preprocessing={preprocessing!r} would scale them before: leave it out."
        )
    return preprocessing or ("none" if scaling else "tf")


def preprocessing_of(preprocess_input) -> str:
    """Which mode of Keras' preprocessing a network's own `preprocess_input` is, by trying it."""
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 2, 2, 3)).astype(np.float32)
    own = np.asarray(preprocess_input(pixels.copy()))
    for mode in PREPROCESSING:
        if np.allclose(own, Preprocessing(mode)(tf.constant(pixels)), atol=1e-3):
            return mode
    raise ValueError("The network has a preprocessing of its own: pass preprocessing explicitly.")


def named_teachers() -> list[str]:
    """Every teacher that has a name, as `--teacher` takes it."""
    keras = networks_of(tf.keras.applications)
    return [
        "letters",
        *(f"keras:{name}" for name in keras),
        *(f"larq_zoo:{name}" for name in zoo_networks()),
    ]
