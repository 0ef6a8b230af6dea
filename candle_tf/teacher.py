"""The teacher: a frozen, full-precision encoder and a classifier calibrated on long-tailed data."""

import importlib
import json
import numbers
import os
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from candle_tf import classifiers
from candle_tf.calibration import CALIBRATIONS, CrossValidation, fit_classifier
from candle_tf.data.checks import check_views
from candle_tf.losses import positive_counts
from candle_tf.networks.checks import (
    check_file,
    check_from_images,
    last_of,
    makes_probabilities,
    own_scaling,
    without_classifier,
)
from candle_tf.networks.keras_internals import constants_of, flat_layers
from candle_tf.networks.lite import LiteEncoder
from candle_tf.networks.pretrained import build_encoder, networks_of, zoo_networks
from candle_tf.networks.safe_load import load_model
from candle_tf.networks.surgery import any_size, check_size, fold_batch_norm
from candle_tf.resolution import resize
from candle_tf.students.bits import at_bits
from candle_tf.utils.distribution import ALONE, only_cpus
from candle_tf.utils.files import fingerprint
from candle_tf.utils.names import lookup

MOST_LABEL_WEIGHT = 99.0
MANY_PIXELS = 2**25  # for which a conversion to TensorFlow Lite pays
MOST_PIXELS = 2**18  # that an encoder sees at once on CPUs (docs/performance.md)
PREPROCESSING = ("tf", "torch", "caffe", "none")


@tf.keras.saving.register_keras_serializable("candle_tf")
class Preprocessing(tf.keras.layers.Layer):
    """Keras' `imagenet_utils.preprocess_input` for images in [0, 255], as a layer.

    Args:
        mode: "tf" ([-1, 1]), "torch", "caffe", or "none", which changes nothing.

    Example:
        >>> float(Preprocessing("tf")(tf.constant(255.0)))
        1.0
    """

    def __init__(self, mode: str, **kwargs):
        super().__init__(**kwargs)
        self.mode = lookup("preprocessing", mode, {mode: mode for mode in PREPROCESSING})

    def call(self, images):
        """Returns the images (batch, height, width, 3) as the mode scales them."""
        if self.mode == "none":
            return images
        return tf.keras.applications.imagenet_utils.preprocess_input(images, mode=self.mode)

    def get_config(self):
        """Returns the arguments of the constructor as Keras saves them."""
        return {**super().get_config(), "mode": self.mode}


@tf.keras.saving.register_keras_serializable("candle_tf")
class Teacher(tf.keras.Model):
    """A frozen encoder g with a calibrated classifier h_T: features g(x), logits h_T(g(x)).

    A teacher maps images (batch, height, width, 3) in [0, 255] to features and logits. The
    features, float (batch, width), are pooled over the feature map. The logits (batch, classes)
    come from the classifier that `calibrate` trains. The encoder's batch norm is always in
    inference mode.

    Args:
        encoder: Keras model from preprocessed images to a feature map or an embedding. The teacher
            keeps a faster copy that computes the same: batch norm is folded into convolutions. An
            encoder without batch norm is kept itself, and frozen.
        image_size: Side in pixels to which images are resized by default.
        preprocessing: Scaling that the encoder expects: "tf" ([-1, 1]), "torch", "caffe" or "none"
            (see `tf.keras.applications.imagenet_utils.preprocess_input`). None takes "none" for an
            encoder that scales images itself, else "tf".

    Raises:
        ValueError: For an encoder that ends in a softmax, or would scale images a second time.

    Example:
        >>> encoder = tf.keras.Sequential([tf.keras.layers.Conv2D(4, 3, 2)], name="tiny")
        >>> encoder.build((None, 32, 32, 3))
        >>> teacher = ct.Teacher(encoder, image_size=32)
        >>> teacher.embed(tf.zeros((10, 32, 32, 3))).shape
        TensorShape([10, 4])
        >>> teacher
        Teacher(tiny, 4 features at 32 pixels, not calibrated)
    """

    def __init__(
        self,
        encoder: tf.keras.Model,
        image_size: int,
        *,
        preprocessing: str | None = None,
        **kwargs,
    ):
        if not isinstance(image_size, numbers.Integral):
            raise ValueError(
                f"image_size is {image_size!r}: pass the encoder first, then its image size in "
                "pixels."
            )
        preprocessing = check_encoder(encoder, preprocessing)
        # Images keep their pixels' precision under every policy: the encoder has its own.
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
        *,
        weights: str | None = "imagenet",
        preprocessing: str | None = None,
        **kwargs,
    ) -> "Teacher":
        """Builds a teacher from a network of `tf.keras.applications`.

        Args:
            name: Name of the network in `tf.keras.applications`.
            image_size: Side in pixels of the images that the encoder sees.
            weights: "imagenet" (downloaded by Keras), a file of the network's weights with or
                without its top, or None for random ones.
            preprocessing: Scaling of the images as in `Teacher`; None takes the network's own.
            **kwargs: Arguments of the network, such as alpha.

        Raises:
            ValueError: For an unknown name, or weights that do not fit the network.
            FileNotFoundError: If `weights` names a file that does not exist.

        Example:
            >>> ct.Teacher.from_keras("MobileNet", 96, alpha=0.25)  # doctest: +SKIP
            Teacher(mobilenet_0.25_224, 256 features at 96 pixels, not calibrated)
        """
        network = lookup("Keras application", name, networks_of(tf.keras.applications))
        encoder = build_encoder(network, weights, (None, None, 3), kwargs)
        own = preprocessing_of(importlib.import_module(network.__module__).preprocess_input)
        return cls(encoder, image_size, preprocessing=preprocessing or own)

    @classmethod
    def from_larq_zoo(
        cls,
        name: str,
        image_size: int,
        *,
        weights: str | None = "imagenet",
        preprocessing: str | None = None,
        bits: str = "1",
    ) -> "Teacher":
        """Builds a teacher from a network of larq-zoo.

        Args:
            name: Name of the network in `larq_zoo`.
            image_size: Side in pixels of the images that the encoder sees.
            weights: Weights as in `from_keras`.
            preprocessing: Scaling of the images as in `Teacher`; None takes "torch".
            bits: Width of its weights and activations, a name of `candle_tf.students.BITS`; "32"
                for weights that were trained at 32 bits.

        Raises:
            ValueError: For an unknown name, or weights that do not fit the network.

        Example:
            >>> ct.Teacher.from_larq_zoo("QuickNet", 224)  # doctest: +SKIP
        """
        network = lookup("larq-zoo network", name, zoo_networks())
        encoder = build_encoder(network, weights, (224, 224, 3), {})
        return cls(at_bits(encoder, bits), image_size, preprocessing=preprocessing or "torch")

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike,
        image_size: int,
        *,
        preprocessing: str | None = None,
        allow_custom_code: bool = False,
    ) -> "Teacher":
        """Builds a teacher from a saved Keras model (`.keras`, `.h5` or SavedModel).

        A classifier at the end of the model is cut off.

        Args:
            path: File to read. Code in the file is refused, not executed.
            image_size: Side in pixels of the images that the encoder sees.
            preprocessing: Scaling of the images as in `Teacher`.
            allow_custom_code: Whether Lambda layers, and classes that Keras and Larq do not know,
                are loaded too.

        Raises:
            ValueError: If the file is damaged, holds code, or does not end in features.
            FileNotFoundError: If the file does not exist.

        Example:
            >>> ct.Teacher.from_file("encoder.keras", 96)  # doctest: +SKIP
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
        return cls(encoder, image_size, preprocessing=preprocessing)

    @property
    def width(self) -> int:
        """The number of features."""
        return self.encoder.output_shape[-1]

    def __repr__(self) -> str:
        classes = f"{len(self.class_counts)} classes" if self.class_counts else "not calibrated"
        seen = f"{self.width} features at {self.image_size} pixels"
        return f"Teacher({self.encoder.name}, {seen}, {classes})"

    def call(self, images: tf.Tensor, image_size: tf.Tensor | int | None = None):
        """Returns (features, logits) of images at any size.

        Args:
            images: Images (batch, height, width, 3) in [0, 255].
            image_size: Side in pixels to which they are resized; the teacher's own by default.
        """
        if self.classifier is None:
            raise ValueError("The teacher is not calibrated: call teacher.calibrate(...) first.")
        features = self.embed(images, image_size)
        return features, self.classifier(features)

    def embed(self, images: tf.Tensor, image_size: tf.Tensor | int | None = None) -> tf.Tensor:
        """Returns the pooled features g(x), float32 (batch, width); arguments as in `call`.

        On CPUs, the encoder sees a few images at once, so that its feature maps stay in the cache.
        """
        size = self.image_size if image_size is None else image_size

        def encode(images):
            return self.encode(resize(images, size))

        if not only_cpus():
            return encode(images)
        images = tf.convert_to_tensor(images)
        part = tf.maximum(1, tf.cast(MOST_PIXELS // size**2, tf.int32))
        return tf.ensure_shape(in_parts(encode, images, part), (images.shape[0], self.width))

    def encode(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the pooled features of images (batch, height, width, 3), at their own size."""
        encoded = self.encoder(self.preprocessing(images), training=False)
        encoded = tf.cast(encoded, tf.float32)
        return tf.reduce_mean(encoded, axis=(1, 2)) if encoded.shape.rank == 4 else encoded

    def embedder(
        self,
        count: int,
        sizes: Sequence[int] = (),
        strategy: tf.distribute.Strategy = ALONE,
    ) -> Callable[[tf.Tensor, int | None], tf.Tensor]:
        """Returns the quickest way to embed many images: a function that computes `embed`.

        On CPUs, TensorFlow Lite computes the features of many images in float32, if it can run the
        encoder. They differ from those of `embed` by rounding alone. TensorFlow computes them for
        several replicas, and for layers of Larq, because rounding may turn a sign.

        Args:
            count: Number of images to come. For a few, the conversion would take too long.
            sizes: Sides in pixels that the encoder will see; the teacher's own by default.
            strategy: Strategy that will call the function.

        Example:
            >>> encoder = tf.keras.Sequential([tf.keras.layers.Conv2D(4, 3, 2)])
            >>> encoder.build((None, 32, 32, 3))
            >>> embed = ct.Teacher(encoder, 32).embedder(count=100_000)
            >>> embed(tf.zeros((10, 40, 40, 3))).shape
            TensorShape([10, 4])
        """
        sizes, layers = {*sizes} or {self.image_size}, flat_layers(self.encoder)
        if (
            not only_cpus()
            or strategy.num_replicas_in_sync > 1
            or any(layer.compute_dtype != "float32" for layer in layers)
            or any(type(layer).__module__.startswith("larq") for layer in layers)
            or count * max(sizes) ** 2 < MANY_PIXELS
        ):
            return self.embed
        try:
            encoders = {size: LiteEncoder(self.encode, size) for size in sizes}
        except ValueError:
            print(
                f"TensorFlow Lite cannot run the encoder {self.encoder.name!r}: TensorFlow does, "
                "which takes longer."
            )
            return self.embed

        def embed(images, image_size=None):
            size = self.image_size if image_size is None else image_size
            if not isinstance(size, int) or size not in encoders:
                return self.embed(images, size)
            resized = tf.cast(resize(images, size), tf.float32)
            encoder = weakref.ref(encoders[size])  # TensorFlow keeps the function for ever
            features = tf.numpy_function(lambda x: encoder()(x), [resized], tf.float32, False)
            return tf.ensure_shape(features, (images.shape[0], self.width))

        return embed

    def calibrate(
        self,
        train: tf.data.Dataset | tuple[np.ndarray, np.ndarray],
        class_counts: Sequence[int],
        *,
        loss: str = "balanced_softmax",
        label_smoothing: tuple[float, float] = (0.05, 0.1),
        views: int = 4,
        seed: int = 0,
        verbose="auto",
    ) -> CrossValidation:
        """Trains a new classifier on the frozen encoder's features, computed once.

        The classifier is linear in standardised features. Cross-validation on the training images
        chooses the penalty on the weights (see `candle_tf.calibration`).

        Args:
            train: Batches of (images, labels), each training image once (or the same number of
                times, as augmented views). Or (features, labels) from
                `candle_tf.classifiers.encode_dataset`.
            class_counts: Training images per class, (classes,).
            loss: "balanced_softmax" (BALMS): cross-entropy with the log prior inside;
                "label_aware_smoothing" (MiSLAS, stage 2) with classes at equal weight; or
                "cross_entropy" for an ablation: not calibrated.
            label_smoothing: Factors of head and tail, for "label_aware_smoothing".
            views: Number of readings of the batches; more than 1 helps with augmented batches.
            seed: Seed of the folds of the cross-validation.
            verbose: 0 for silence.

        Returns:
            The cross-validated accuracy, also kept as `teacher.cross_validation`. The student's
            label term follows from it (`label_weight`).

        Raises:
            ValueError: For an empty class, or counts that do not match the labels. For a label out
                of range, or an image with NaN or Inf (named by its index).

        Example:
            >>> images = np.random.uniform(0, 255, (10, 32, 32, 3)).astype("float32")
            >>> batches = tf.data.Dataset.from_tensor_slices((images, np.arange(10) % 2)).batch(5)
            >>> encoder = tf.keras.Sequential([tf.keras.layers.Conv2D(4, 3, 2)])
            >>> encoder.build((None, 32, 32, 3))
            >>> teacher = ct.Teacher(encoder, 32)
            >>> checked = teacher.calibrate(batches, class_counts=[5, 5], verbose=0)
            >>> teacher(images)[1].shape, len(checked.per_class)
            (TensorShape([10, 2]), 2)
        """
        lookup("calibration", loss, dict.fromkeys(CALIBRATIONS))
        if isinstance(class_counts, tf.data.Dataset):
            raise ValueError("class_counts is a dataset: pass the batches first, then the counts.")
        positive_counts(class_counts)
        check_views(views)
        if np.shape(label_smoothing) != (2,):
            raise ValueError(
                f"label_smoothing is {label_smoothing}: give the factors of head and tail, such as "
                "(0.05, 0.1)."
            )
        if not isinstance(train, (tuple, list)):
            embed = self.embedder(views * sum(class_counts))
            train = classifiers.encode_dataset(
                embed, train, class_counts, views=views, verbose=verbose
            )
        features, labels = train
        if np.ndim(features) != 2 or np.shape(features)[1] != self.width:
            raise ValueError(
                f"train holds features of shape {np.shape(features)} but the teacher has "
                f"{self.width}: give (features, labels) of this teacher, or a dataset of images."
            )
        kernel, bias, checked = fit_classifier(
            features, labels, class_counts, loss=loss, label_smoothing=label_smoothing, seed=seed
        )
        if verbose:
            print(checked.summary())
        self.set_classifier(kernel, bias, checked)
        return checked

    def set_classifier(self, kernel: np.ndarray, bias: np.ndarray, checked: CrossValidation):
        """Gives the teacher a linear classifier, frozen, as `calibrate` does.

        Args:
            kernel: Weights, float32 (width, classes).
            bias: Bias, float32 (classes,).
            checked: Cross-validated accuracy and class counts of that classifier.

        Example:
            >>> encoder = tf.keras.Sequential([tf.keras.layers.Conv2D(4, 3, 2)])
            >>> encoder.build((None, 32, 32, 3))
            >>> teacher = ct.Teacher(encoder, 32)
            >>> checked = ct.calibration.CrossValidation(0.3, [0.9, 0.7], [5, 5])
            >>> teacher.set_classifier(np.zeros((4, 2)), np.zeros(2), checked)
            >>> round(teacher.label_weight(), 3)
            0.667
        """
        self.classifier = classifiers.linear(*np.shape(kernel))
        self.classifier.set_weights([kernel, bias])
        self.classifier.trainable = False
        self.class_counts = [int(n) for n in checked.class_counts]
        self.cross_validation = checked

    def label_weight(self) -> float:
        """Returns w = (1 - acc) / (acc - 1 / C), the weight of the label term.

        The mean of the cross-validated accuracies of the C classes is acc, and guessing has the
        accuracy 1 / C. So w is 0 for a teacher that is always right. With many classes, w is about
        1 for a teacher that is right half of the time. For a teacher that guesses, w is
        `MOST_LABEL_WEIGHT`.

        Raises:
            ValueError: If the teacher was calibrated without a cross-validation.

        Example:
            >>> teacher.label_weight()  # doctest: +SKIP
            0.53
        """
        checked = self.cross_validation
        if checked is None or np.isnan(checked.class_mean):
            raise ValueError(
                "Nothing says how far to trust the teacher, for its calibration was not "
                "cross-validated: pass label_weight, such as 1.0, or calibrate it again."
            )
        wrong, chance = 1.0 - checked.class_mean, 1.0 / len(self.class_counts)
        return min(wrong / max(checked.class_mean - chance, 1e-6), MOST_LABEL_WEIGHT)

    def made_of(self) -> dict:
        """Returns everything that determines the features, by name, for JSON."""
        layers = [(type(layer).__name__, nameless(layer)) for layer in self.encoder.layers]
        layers += constants_of(self.encoder)
        text = json.dumps(layers, default=lambda value: type(value).__name__)
        return {
            "teacher": fingerprint([np.array(text.encode()), *self.encoder.get_weights()]),
            "teacher image size": self.image_size,
            "teacher preprocessing": self.preprocessing.mode,
        }

    def check_calibrated(self, num_classes: int):
        """Refuses a teacher without a classifier, or with a classifier for more or fewer classes.

        Args:
            num_classes: Number of the student's classes.

        Raises:
            ValueError: If the teacher does not fit.
        """
        if self.classifier is None:
            raise ValueError("The teacher is not calibrated: call teacher.calibrate(...) first.")
        if len(self.class_counts) != num_classes:
            raise ValueError(
                f"The teacher is calibrated for {len(self.class_counts)} classes but the student "
                f"has {num_classes}: build the student with the same num_classes."
            )

    def save(self, filepath, *args, **kwargs):
        """Saves as Keras does, to a file that ends in .keras.

        Raises:
            ValueError: For a directory, as for `StudentModel`.
        """
        check_file(filepath)
        super().save(filepath, *args, **kwargs)

    def get_config(self):
        """Returns the teacher with its classifier as Keras saves it, without weights."""
        serialize, checked = tf.keras.saving.serialize_keras_object, self.cross_validation
        return {
            "name": self.name,
            "encoder": serialize(self.encoder),
            "image_size": self.image_size,
            "preprocessing": self.preprocessing.mode,
            "classifier": self.classifier and serialize(self.classifier),
            "class_counts": self.class_counts,
            "cross_validation": checked and checked.get_config(),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds the teacher from what `get_config` returned."""
        deserialize = tf.keras.saving.deserialize_keras_object
        teacher = cls(
            deserialize(config["encoder"], custom_objects),
            config["image_size"],
            preprocessing=config["preprocessing"],
            name=config.get("name"),
        )
        if config["classifier"] is not None:
            teacher.classifier = deserialize(config["classifier"], custom_objects)
            teacher.classifier.trainable = False
            teacher.class_counts = config["class_counts"]
        if config.get("cross_validation"):
            teacher.cross_validation = CrossValidation(**config["cross_validation"])
        return teacher


def in_parts(
    function: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor, size: tf.Tensor | int
) -> tf.Tensor:
    """Returns a function's results for images, computed for one part of the images after the other.

    All parts are equally large, as XLA demands; the last one is filled up with black images.

    Args:
        function: Function from images (n, ...) to float32 (n, width).
        images: Images (batch, ...).
        size: Most images per part.

    Example:
        >>> in_parts(lambda part: part + tf.reduce_max(part), tf.constant([[1.0], [2.0], [5.0]]), 2)
        <tf.Tensor: shape=(3, 1), dtype=float32, numpy=
        array([[ 3.],
               [ 4.],
               [10.]], dtype=float32)>
    """
    batch, *sides = tf.unstack(tf.shape(images))
    count = tf.maximum(1, -(-batch // size))
    part = tf.maximum(1, -(-batch // count))  # oneDNN's convolution gives no images a wrong shape
    filled = tf.pad(images, [(0, count * part - batch), *[(0, 0)] * len(sides)])
    parts = tf.ensure_shape(
        tf.reshape(filled, (count, part, *sides)), (None, None, *images.shape[1:])
    )
    signature = tf.TensorSpec(None, tf.float32)
    results = tf.map_fn(function, parts, parallel_iterations=1, fn_output_signature=signature)
    return tf.reshape(results, (count * part, -1))[:batch]


def nameless(layer: tf.keras.layers.Layer):
    """Returns a layer's config without the names that Keras counts up within a process.

    The connections between layers are left out too, because the config writes them by these names.

    Example:
        >>> "name" in nameless(tf.keras.layers.Dense(2))
        False
    """
    named = ("name", "inbound_nodes", "input_layers", "output_layers")

    def stripped(value):
        if isinstance(value, dict) and value.get("class_name") == "Policy":
            return value["config"]["name"]  # a policy has nothing else
        if isinstance(value, dict):
            return {key: stripped(v) for key, v in value.items() if key not in named}
        return [stripped(v) for v in value] if isinstance(value, (list, tuple)) else value

    return stripped(layer.get_config())


def check_encoder(encoder: tf.keras.Model, preprocessing: str | None) -> str:
    """Returns the preprocessing that an encoder expects.

    Args:
        encoder: Network to check.
        preprocessing: Mode that was asked for, or None.

    Raises:
        ValueError: If the network cannot be a teacher's encoder.

    Example:
        >>> encoder = tf.keras.Sequential([tf.keras.layers.Conv2D(4, 3)])
        >>> encoder.build((None, 32, 32, 3))
        >>> check_encoder(encoder, None)
        'tf'
    """
    if isinstance(encoder, type) or not isinstance(encoder, tf.keras.Model):
        raise ValueError(f"The encoder is {encoder!r}: pass a functional Keras model.")
    check_from_images(encoder, "encoder")
    if cut := without_classifier(encoder, False)[1]:
        raise ValueError(
            f"The encoder {encoder.name!r} ends in a classifier: cut it after its features, by "
            f"tf.keras.Model(encoder.input, encoder.get_layer({cut!r}).output)."
        )
    if makes_probabilities(last_of(encoder)):
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
    """Returns the mode of Keras' preprocessing that equals a network's own, found by trial.

    Args:
        preprocess_input: Function from images in [0, 255] to the network's inputs.

    Raises:
        ValueError: If no mode equals it.

    Example:
        >>> preprocessing_of(tf.keras.applications.mobilenet.preprocess_input)
        'tf'
    """
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 2, 2, 3)).astype(np.float32)
    own = np.asarray(preprocess_input(pixels.copy()))
    for mode in PREPROCESSING:
        if np.allclose(own, Preprocessing(mode)(tf.constant(pixels)), atol=1e-3):
            return mode
    raise ValueError("The network has a preprocessing of its own: pass preprocessing explicitly.")


def named_teachers() -> list[str]:
    """Returns the names of all teachers, as a run's `teacher` takes them.

    Example:
        >>> "keras:MobileNet" in named_teachers()
        True
    """
    keras = networks_of(tf.keras.applications)
    return [
        "letters",
        *(f"keras:{name}" for name in keras),
        *(f"larq_zoo:{name}" for name in zoo_networks()),
    ]
