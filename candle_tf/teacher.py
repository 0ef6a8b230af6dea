"""The teacher: a frozen, full-precision encoder and a classifier calibrated on long-tailed data."""

import importlib
import json
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from candle_tf import classifiers, losses
from candle_tf.networks.pretrained import build_encoder, networks_of, zoo_networks
from candle_tf.networks.safe_load import load_model
from candle_tf.networks.surgery import any_size, check_size, fold_batch_norm
from candle_tf.resolution import resize
from candle_tf.students.bits import at_bits
from candle_tf.utils.distribution import ALONE, from_first, leads
from candle_tf.utils.files import fingerprint
from candle_tf.utils.names import lookup

PREPROCESSING = ("tf", "torch", "caffe", "none")
CALIBRATIONS = ("balanced_softmax", "label_aware_smoothing", "cross_entropy")


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
            (see `tf.keras.applications.imagenet_utils.preprocess_input`).
    """

    def __init__(
        self, encoder: tf.keras.Model, image_size: int, preprocessing: str = "tf", **kwargs
    ):
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
        """A whole saved Keras model (`.keras`, `.h5` or SavedModel) whose output is the encoding.

        Args:
            path: the file; read without executing anything from it.
            image_size: side in pixels of the images that the encoder sees.
            preprocessing: "tf" where None.
            allow_custom_code: also load Lambda layers and classes that Keras and Larq do not know.

        Raises:
            ValueError, FileNotFoundError: as `candle_tf.networks.safe_load.load_model`.
        """
        encoder = load_model(path, allow_custom_code)
        if len(encoder.outputs or []) != 1 or encoder.output.shape.rank not in (2, 4):
            raise ValueError(
                f"{path} does not end in one feature map or embedding: cut the network after its "
                "last feature layer with tf.keras.Model(model.input, layer.output) and save that."
            )
        return cls(encoder, image_size, preprocessing or "tf")

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
        epochs: int = 30,
        loss: str = "balanced_softmax",
        label_smoothing: tuple[float, float] = (0.05, 0.1),
        views: int = 4,
        batch_size: int = 128,
        learning_rate: float = 3e-3,
        seed: int = 0,
        verbose="auto",
        directory: str | os.PathLike | None = None,
        strategy: tf.distribute.Strategy = ALONE,
    ) -> tf.keras.callbacks.History | None:
        """Trains a new classifier on the frozen encoder's features, computed once.

        Args:
            train: batches of (images, labels), each training image once (or the same number of
                times, as augmented views). Read `views` times. For a strategy with several
                replicas, what `candle_tf.utils.distribution.distributed` gives.
            class_counts: training images per class, (classes,).
            epochs: passes over the images, each in one of its views.
            loss: "balanced_softmax" (BALMS) on instance-balanced batches, or
                "label_aware_smoothing" on class-balanced ones with learnable weight
                scaling (MiSLAS, stage 2), or "cross_entropy" for an ablation: not calibrated.
            label_smoothing: (head, tail) factors of label-aware smoothing.
            views: how often `train` is read; worth more than 1 where it augments.
            batch_size, learning_rate: of the classifier's Adam, annealed by cosine to 0.
            seed: of the classifier's initial weights and the order of the features.
            directory: where the features stay, to be taken up by the same call, as in
                `candle_tf.classifiers.encode_dataset`; a temporary one where None.
            strategy: whose replicas each encode their part; the first worker then trains the
                classifier for all.

        Returns:
            The classifier's training history, on the first worker.

        Raises:
            ValueError: for an empty class, counts that do not match the labels, a label out of
                range or an image with NaN or Inf (named by its index).
        """
        smoothed = loss == "label_aware_smoothing"
        objective = lookup(
            "calibration",
            loss,
            {
                "balanced_softmax": losses.BalancedSoftmax(class_counts),
                "label_aware_smoothing": losses.LabelAwareSmoothing(class_counts, *label_smoothing),
                "cross_entropy": tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            },
        )
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
        new_classifier = classifiers.scaled_linear if smoothed else classifiers.linear
        classifier = new_classifier(self.width, len(class_counts), seed)
        history = None
        if leads(strategy):
            history = classifiers.fit_on_features(
                classifier,
                features,
                labels,
                objective,
                "class_balanced" if smoothed else "instance_balanced",
                epochs,
                batch_size,
                learning_rate,
                seed,
                verbose,
                views,
            )
        # A fresh one without optimizer and metrics, which would be saved with the teacher.
        self.classifier = new_classifier(self.width, len(class_counts))
        self.classifier.set_weights([from_first(strategy, w) for w in classifier.get_weights()])
        self.classifier.trainable = False
        self.class_counts = [int(n) for n in class_counts]
        return history

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
        serialize = tf.keras.saving.serialize_keras_object
        return {
            "encoder": serialize(self.encoder),
            "image_size": self.image_size,
            "preprocessing": self.preprocessing.mode,
            "classifier": self.classifier and serialize(self.classifier),
            "class_counts": self.class_counts,
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
