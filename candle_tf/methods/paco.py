"""PaCo: parametric contrastive learning (Cui et al., ICCV 2021, arXiv 2107.12028)."""

from collections.abc import Sequence

import tensorflow as tf
from candle_tf.losses import log_prior
from candle_tf.student_model import StudentModel, batch_mean


def paco_loss(
    logits: tf.Tensor,
    queries: tf.Tensor,
    labels: tf.Tensor,
    samples: tf.Tensor,
    sample_labels: tf.Tensor,
    log_prior: tf.Tensor,
    alpha: float = 0.02,
    temperature: float = 0.05,
) -> tf.Tensor:
    """Returns a cross-entropy over class centers C and samples A (eq. 3 to 5), one per example.

        - sum_{z in P(i) and c_y} w(z) log(exp(s_z) / sum_{A and C} exp(s)) / sum w

    P(i) are the samples with the label y of example i. The weight w is alpha on P(i) and 1 on the
    center c_y. The score s is the logit plus the log prior on C, and the dot product divided by
    `temperature` on A. The weights are divided by their sum as in the authors' code, unlike eq. 3:
    otherwise head classes would outweigh the tail by their many positives.

    Args:
        logits: Logits of the class centers, float (batch, classes).
        queries: Unit vectors of the images, float (batch, width).
        labels: Class of each image, int (batch,).
        samples: Unit vectors A, float (n, width): first the queries, then the keys. A query is not
            compared with itself.
        sample_labels: Class of each sample, int (n,); -1 marks an empty place.
        log_prior: Log class frequencies, (classes,).
        alpha: Weight of a positive sample.
        temperature: Divisor of the dot products with samples.

    Returns:
        float32 (batch,).
    """
    logits = tf.cast(logits, tf.float32)
    itself = tf.eye(tf.shape(queries)[0], tf.shape(samples)[0], dtype=tf.bool)
    positive = (labels[:, None] == sample_labels) & ~itself
    similarity = tf.cast(tf.matmul(queries, samples, transpose_b=True), tf.float32) / temperature
    similarity = tf.where(itself | (sample_labels < 0), -1e9, similarity)
    center = tf.one_hot(labels, logits.shape[-1])
    weights = tf.concat([center, alpha * tf.cast(positive, tf.float32)], axis=1)
    weights /= tf.reduce_sum(weights, axis=1, keepdims=True)
    scores = tf.concat([logits + log_prior, similarity], axis=1)
    return tf.nn.softmax_cross_entropy_with_logits(weights, scores)


class KeyQueue(tf.keras.layers.Layer):
    """The last `size` keys with their labels, newest first; -1 is the label of an empty place."""

    def __init__(self, size: int, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def build(self, input_shape):
        def state(name, shape, dtype, initializer):
            # All replicas push the same gathered keys.
            first = tf.VariableAggregation.ONLY_FIRST_REPLICA
            return self.add_weight(
                name, shape, dtype, initializer, trainable=False, aggregation=first
            )

        self.keys = state("keys", (self.size, input_shape[-1]), tf.float32, "zeros")
        self.labels = state("labels", (self.size,), tf.int64, tf.keras.initializers.Constant(-1))
        super().build(input_shape)

    def push(self, keys: tf.Tensor, labels: tf.Tensor):
        """Puts keys (batch, width) and labels (batch,) in front; as many old ones drop out."""
        for variable, new in ((self.keys, keys), (self.labels, labels)):
            new = tf.cast(tf.distribute.get_replica_context().all_gather(new, 0), variable.dtype)
            variable.assign(tf.concat([new, variable], axis=0)[: self.size])


@tf.keras.saving.register_keras_serializable("candle_tf")
class PacoModel(StudentModel):
    """A student trained by parametric contrastive learning (Cui et al., ICCV 2021).

    The class centers are the student's classifier. The query encoder is the student's encoder with
    a projection MLP. The key encoder is the moving average of the query encoder, and its last keys
    wait in a queue (MoCo, He et al., CVPR 2020).

    `fit` takes ((view_1, view_2), labels): two augmentations of each image, the first for the
    queries, the second for the keys. `evaluate`, `predict` and `export` use the student on single
    images. The loss given to `compile` is only for `evaluate`. Under a distribution strategy each
    replica compares its own part of the batch with the queue of all replicas.

    Args:
        student: The student, as in `StudentModel`.
        class_counts: Training images per class, (classes,), for the log prior on the centers.
        alpha: Weight of a positive sample; the class center has weight 1.
        temperature: Divisor of the dot products between samples.
        momentum: Factor m of the key encoder's average, k = m k + (1 - m) q.
        queue_size: Number of keys in the queue. All defaults are those of the authors' commands
            for CIFAR-100-LT; for ImageNet they use a queue of 8192.
        projection_width: Width of queries and keys.
        **kwargs: `resolutions`, `image_size` and `seed`, as in `StudentModel`. Both views of a
            batch have the same size. The seed also initialises the projection.

    Raises:
        ValueError: As `StudentModel`, or if class_counts and the student differ in classes.

    Example:
        >>> student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
        >>> model = ct.methods.PacoModel(student, class_counts=[40, 20, 4], queue_size=16)
        >>> model.compile("adam", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> model(np.zeros((2, 16, 16, 3), np.float32)).shape  # then model.fit(...)
        TensorShape([2, 3])
    """

    def __init__(
        self,
        student: tf.keras.Model,
        class_counts: Sequence[int],
        alpha: float = 0.02,
        temperature: float = 0.05,
        momentum: float = 0.999,
        queue_size: int = 1024,
        projection_width: int = 64,
        **kwargs,
    ):
        super().__init__(student, **kwargs)
        if len(class_counts) != student.output_shape[-1]:
            raise ValueError(
                f"class_counts has {len(class_counts)} classes but the student has "
                f"{student.output_shape[-1]}: count the labels of the data that trains it."
            )
        self.class_counts = [int(n) for n in class_counts]
        self.log_prior = log_prior(class_counts)
        self.alpha, self.temperature, self.momentum = alpha, temperature, momentum
        self.queue_size, self.projection_width = queue_size, projection_width
        # The key encoder is a second student, so that it works at the same sizes.
        copy = tf.keras.models.clone_model(student)
        copy.set_weights(student.get_weights())
        sizes, base = self.resolution.sizes, self.resolution.base
        self.key_model = StudentModel(copy, resolutions=sizes, image_size=base, name="key_model")
        width = student.get_layer("features").output_shape[-1]
        self.projection, self.key_projection = (
            projection(name, width, projection_width, self.resolution.seed)
            for name in ("projection", "key_projection")
        )
        self.queue = KeyQueue(queue_size, name="queue")
        self.queue.build((None, projection_width))

    def train_step(self, data):
        views, labels, sample_weight = tf.keras.utils.unpack_x_y_sample_weight(data)
        # Both views side by side in the channels get the same drawn size in one resize.
        return super().train_step((tf.concat(views, axis=-1), labels, sample_weight))

    def objective(self, images, labels, sample_weight):
        query_view, key_view = tf.split(images, 2, axis=-1)
        flat_labels = tf.cast(tf.reshape(labels, [-1]), tf.int64)
        features = self.halves.embed(query_view, training=True)
        logits = self.halves.classify(features, training=True)
        queries = self.projection(features)
        self.follow()
        keys = self.key_projection(self.key_model.halves.embed(key_view, training=True))
        keys = tf.stop_gradient(keys)
        samples = tf.concat([queries, keys, tf.cast(self.queue.keys, keys.dtype)], axis=0)
        sample_labels = tf.concat([flat_labels, flat_labels, self.queue.labels], axis=0)
        loss = paco_loss(
            logits,
            queries,
            flat_labels,
            samples,
            sample_labels,
            self.log_prior,
            self.alpha,
            self.temperature,
        )
        self.queue.push(keys, flat_labels)
        # As an added term, the loss is logged by Keras and averaged over replicas. The loss given
        # to compile has weight 0.
        terms = [*self.student.losses, batch_mean(loss, sample_weight)]
        nothing = tf.zeros_like(flat_labels, tf.float32)
        return self.compiled_loss(labels, logits, nothing, regularization_losses=terms), logits

    def follow(self):
        """Updates the key encoder's moving average by one step."""

        def average(key, query):
            key.assign(self.momentum * key + (1.0 - self.momentum) * query)

        def update(strategy):
            for key, query in zip(self.key_variables(), self.descending_variables()):
                strategy.extended.update(key, average, args=(query,))

        tf.distribute.get_replica_context().merge_call(update)

    def descending_variables(self):
        return super().descending_variables() + self.projection.trainable_variables

    def key_variables(self) -> list[tf.Variable]:
        """Returns the variables of the key encoder, in the order of the query encoder's."""
        return self.key_model.descending_variables() + self.key_projection.trainable_variables

    def trained_parts(self):
        return {
            **super().trained_parts(),
            "projection": self.projection,
            "key_student": self.key_model.student,
            "key_projection": self.key_projection,
            "queue": self.queue,
        }

    def get_config(self):
        return {
            **super().get_config(),
            "class_counts": self.class_counts,
            "alpha": self.alpha,
            "temperature": self.temperature,
            "momentum": self.momentum,
            "queue_size": self.queue_size,
            "projection_width": self.projection_width,
        }


def projection(name: str, width: int, projection_width: int, seed: int) -> tf.keras.Sequential:
    """Builds an MLP from features (batch, width) to unit vectors (batch, projection_width)."""
    initializers = [tf.keras.initializers.GlorotUniform(seed + i) for i in range(2)]
    return tf.keras.Sequential(
        [
            tf.keras.Input((width,)),
            tf.keras.layers.Dense(width, "relu", kernel_initializer=initializers[0]),
            tf.keras.layers.Dense(projection_width, kernel_initializer=initializers[1]),
            tf.keras.layers.UnitNormalization(),
        ],
        name=name,
    )
