"""OLTR: large-scale long-tailed recognition in an open world (Liu et al., CVPR 2019, 1904.05160).

This file has the dynamic meta-embedding with a cosine classifier, and the large-margin loss. Both
use the formulas and constants of the authors' code. The authors' modulated attention is left out.
At 256 channels, its full-precision convolutions need seven times the memory of a whole binary
student. Its spatial part works at only one image size.
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
    """Pulls features to the centroid of their class, away from the others (Liu et al., 2019).

        mean_i ||f_i - c_y||^2 / 2 + 0.01 max(0, margin - sum_{i, j != y} ||f_i - c_j||^2 / (B C))

    for B examples and C classes.

    Args:
        features: Features of the images, float (batch, width).
        labels: Class of each image, int (batch,).
        centroids: Centroid of each class, float (classes, width).
        margin: Margin in squared distance.

    Returns:
        float32 (), the mean over the batch.
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
    reachability r. Only `large_margin_loss` trains the memory.

    Args:
        num_classes: Number of classes, the rows of the memory.
        **kwargs: Arguments of every Keras layer, such as `name` and `dtype`.
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
        # The only image of a class has distance 0 to its centroid.
        reachability = 10.0 * tf.math.rsqrt(tf.maximum(nearest, 1e-6))
        return reachability * (features + self.selector(features) * recalled)

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes}


@tf.keras.saving.register_keras_serializable("candle_tf")
class SquashedCosine(CosineClassifier):
    """Classifier with logits scale ||v|| / (1 + ||v||) cos(v, w_c) (Liu et al., 2019).

    The norm of v says how familiar the image is. Embeddings are float (batch, width), logits
    (batch, num_classes). The arguments are those of `CosineClassifier`.
    """

    def call(self, embeddings):
        squares = tf.reduce_sum(embeddings**2, axis=-1, keepdims=True)
        norm = tf.sqrt(tf.maximum(squares, 1e-12))  # the slope of the root is infinite at 0
        return norm / (1.0 + norm) * super().call(embeddings)


def with_meta_embedding(student: tf.keras.Model, centroids: np.ndarray) -> tf.keras.Model:
    """Returns the student of stage 2: the encoder of a trained student with a new head.

    The head has full precision, (width + 3 classes) width weights and two biases.

    Args:
        student: A student trained with cross-entropy. Its last layer is a `Dense` on `features`,
            which initialises the hallucinator. The new student shares the encoder's layers.
        centroids: Mean feature of the training images of each class, float (classes, width).

    Returns:
        A student: images -> `features` (the direct feature) -> `meta_embedding` -> `logits`.

    Raises:
        ValueError: If the student does not end in such a layer, or the centroids have another
            shape.

    Example:
        >>> student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
        >>> with_memory = ct.methods.with_meta_embedding(student, centroids=np.zeros((3, 8)))
        >>> [layer.name for layer in with_memory.layers[-3:]]
        ['features', 'meta_embedding', 'logits']
    """
    encoder, head = split_at_features(student, own_size_only=True)
    classifier, features = head.layers[-1], encoder.output
    if not isinstance(classifier, tf.keras.layers.Dense) or len(head.layers) > 2:
        raise ValueError(
            f"The student {student.name!r} does not end in a Dense layer on its features: give "
            "the student of stage 1, trained with cross-entropy."
        )
    if np.shape(centroids) != (classifier.units, features.shape[-1]):
        raise ValueError(
            f"centroids are {np.shape(centroids)} but the student has {classifier.units} classes "
            f"of {features.shape[-1]} features: give the mean feature of each class."
        )
    precise = {"dtype": "float32"}  # the distance of close features is a small difference
    meta_embedding = MetaEmbedding(classifier.units, name="meta_embedding", **precise)
    head = SquashedCosine(classifier.units, scale=16.0, name="logits", **precise)
    logits = head(meta_embedding(features))
    meta_embedding.centroids.assign(centroids)
    meta_embedding.hallucinator.set_weights(classifier.get_weights())
    return tf.keras.Model(encoder.input, logits, name=student.name)


@tf.keras.saving.register_keras_serializable("candle_tf")
class OltrModel(StudentModel):
    """OLTR's stage 2 (Liu et al., CVPR 2019): compile's loss plus `large_margin_loss`.

    The paper uses class-balanced batches and cross-entropy. The margin loss trains both the
    features and the memory. Sample weights do not affect it.

    Args:
        student: A student made by `with_meta_embedding`.
        weight: Factor on the large-margin loss.
        **kwargs: `resolutions`, `image_size` and `seed`, as in `StudentModel`.

    Raises:
        ValueError: As `StudentModel`, or if the student has no meta-embedding.

    Example:
        >>> student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
        >>> with_memory = ct.methods.with_meta_embedding(student, centroids=np.zeros((3, 8)))
        >>> model = ct.methods.OltrModel(with_memory)
        >>> model.compile("adam", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> model(np.zeros((2, 16, 16, 3), np.float32)).shape  # then model.fit(...)
        TensorShape([2, 3])
    """

    def __init__(self, student: tf.keras.Model, weight: float = 0.01, **kwargs):
        super().__init__(student, **kwargs)
        embeddings = [layer for layer in student.layers if isinstance(layer, MetaEmbedding)]
        if not embeddings:
            raise ValueError(
                f"The student {student.name!r} has no meta-embedding: give "
                "with_meta_embedding(student, centroids)."
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
