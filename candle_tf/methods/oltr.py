"""OLTR: large-scale long-tailed recognition in an open world (Liu et al., CVPR 2019, 1904.05160).

Dynamic meta-embedding with a cosine classifier, and the large-margin loss, with the formulas and
constants of the authors' code. Their modulated attention is left out: at 256 channels its
full-precision convolutions alone take seven times the memory of a whole binary student, and its
spatial part works at one image size only.
"""

import numpy as np
import tensorflow as tf
from candle_tf.classifiers import CosineClassifier
from candle_tf.losses import class_indices, squared_distances
from candle_tf.networks.keras_internals import Untracked
from candle_tf.networks.surgery import split_at_features
from candle_tf.student_model import StudentModel


def large_margin_loss(
    features: tf.Tensor, labels: tf.Tensor, centroids: tf.Tensor, margin: float = 10.0
) -> tf.Tensor:
    """Features attracted to the centroid of their class, repelled by the others (Liu et al., 2019).

        mean_i ||f_i - c_y||^2 / 2 + 0.01 max(0, margin - sum_{i, j != y} ||f_i - c_j||^2 / (B C))

    for B examples and C classes.

    Args:
        features: float (batch, width).
        labels: int (batch,).
        centroids: float (classes, width).
        margin: in squared distance.

    Returns:
        float32 ().
    """
    distances = squared_distances(tf.cast(features, tf.float32), tf.cast(centroids, tf.float32))
    own = tf.one_hot(class_indices(labels), distances.shape[-1])
    attract = tf.reduce_mean(tf.reduce_sum(own * distances, axis=1)) / 2.0
    repel = tf.maximum(0.0, margin - tf.reduce_mean((1.0 - own) * distances))
    return attract + 0.01 * repel


@tf.keras.saving.register_keras_serializable("candle_tf")
class MetaEmbedding(tf.keras.layers.Layer):
    """Dynamic meta-embedding (Liu et al., CVPR 2019) of features (batch, width).

        v_meta = r (v + e * v_memory),    v_memory = softmax(hallucinator(v)) M,
        e = tanh(selector(v)),            r = 10 / min_j ||v - M_j||

    for the direct feature v, the memory M of class centroids, the concept selector e and the
    reachability r. The memory is learned by `large_margin_loss` alone.

    Args:
        num_classes: rows of the memory.
    """

    def __init__(self, num_classes: int, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.hallucinator = tf.keras.layers.Dense(
            num_classes, name="hallucinator", dtype=self.dtype_policy
        )

    def build(self, input_shape):
        width = input_shape[-1]
        self.centroids = self.add_weight("centroids", (self.num_classes, width))
        self.selector = tf.keras.layers.Dense(
            width, "tanh", name="selector", dtype=self.dtype_policy
        )
        self.hallucinator.build(input_shape)
        self.selector.build(input_shape)
        super().build(input_shape)

    def call(self, features):
        memory = tf.cast(tf.stop_gradient(self.centroids), features.dtype)
        recalled = tf.matmul(tf.nn.softmax(self.hallucinator(features)), memory)
        nearest = tf.reduce_min(squared_distances(features, memory), axis=1, keepdims=True)
        # An image that is its class's only one lies on its centroid.
        reachability = 10.0 * tf.math.rsqrt(tf.maximum(nearest, 1e-6))
        return reachability * (features + self.selector(features) * recalled)

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes}


@tf.keras.saving.register_keras_serializable("candle_tf")
class SquashedCosine(CosineClassifier):
    """scale ||v|| / (1 + ||v||) cos(v, w_c): the norm tells how familiar v is (Liu et al., 2019).

    Embeddings float (batch, width) -> logits (batch, num_classes); arguments as its parent's.
    """

    def call(self, embeddings):
        squares = tf.reduce_sum(embeddings**2, axis=-1, keepdims=True)
        norm = tf.sqrt(tf.maximum(squares, 1e-12))  # the slope of the root is infinite at 0
        return norm / (1.0 + norm) * super().call(embeddings)


def with_meta_embedding(student: tf.keras.Model, centroids: np.ndarray) -> tf.keras.Model:
    """The student of stage 2: a trained student's encoder under a new head.

    The head is full-precision: (width + 3 classes) width weights and two biases.

    Args:
        student: trained with cross-entropy, its layer `logits` a `Dense` on `features`; from this
            the hallucinator starts. The encoder's layers are shared, not copied.
        centroids: the mean feature of each class's training images, float (classes, width).

    Returns:
        A student: images -> `features` (the direct feature) -> `meta_embedding` -> `logits`.

    Raises:
        ValueError: if the student does not end in such a layer, or the centroids do not fit it.
    """
    encoder, head = split_at_features(student, own_size_only=True)
    classifier, features = head.layers[-1], encoder.output
    if not isinstance(classifier, tf.keras.layers.Dense) or len(head.layers) > 2:
        raise ValueError(
            f"The student {student.name!r} does not end in a Dense layer on its features: give "
            "that of stage 1, trained with cross-entropy."
        )
    if np.shape(centroids) != (classifier.units, features.shape[-1]):
        raise ValueError(
            f"centroids are {np.shape(centroids)} but the student has {classifier.units} classes "
            f"of {features.shape[-1]} features: give the mean feature of each class."
        )
    precise = {"dtype": "float32"}  # distances of near features cancel
    meta_embedding = MetaEmbedding(classifier.units, name="meta_embedding", **precise)
    head = SquashedCosine(classifier.units, scale=16.0, name="logits", **precise)
    logits = head(meta_embedding(features))
    meta_embedding.centroids.assign(centroids)
    meta_embedding.hallucinator.set_weights(classifier.get_weights())
    return tf.keras.Model(encoder.input, logits, name=student.name)


@tf.keras.saving.register_keras_serializable("candle_tf")
class OltrModel(StudentModel):
    """OLTR's stage 2 (Liu et al., CVPR 2019): compile's loss plus `large_margin_loss`.

    Meant for class-balanced batches and cross-entropy. The margin loss draws the features and the
    memory to each other; sample weights do not enter it.

    Args:
        student: from `with_meta_embedding`.
        weight: of the large-margin loss.
        **kwargs: resolutions, image_size and seed, as in `StudentModel`.

    Raises:
        ValueError: as `StudentModel`, or if the student has no meta-embedding.
    """

    def __init__(self, student: tf.keras.Model, weight: float = 0.01, **kwargs):
        super().__init__(student, **kwargs)
        embeddings = [layer for layer in student.layers if isinstance(layer, MetaEmbedding)]
        if not embeddings:
            raise ValueError(
                f"The student {student.name!r} has no meta-embedding: give what "
                "with_meta_embedding makes of it."
            )
        self.weight = weight
        self.embedding = Untracked(embeddings[0])

    def memory(self) -> tf.Variable:
        """Returns the class centroids M, float32 (classes, width)."""
        return self.embedding.value.centroids

    def objective(self, images, labels, sample_weight):
        features = self.halves.embed(images, training=True)
        logits = self.halves.classify(features, training=True)
        margin = large_margin_loss(features, labels, self.memory())
        terms = [*self.student.losses, self.weight * margin]
        return self.compiled_loss(labels, logits, sample_weight, terms), logits

    def get_config(self):
        return {**super().get_config(), "weight": self.weight}
