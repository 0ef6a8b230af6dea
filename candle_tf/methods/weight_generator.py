"""Generated classifier weights for classes with few images, from the weights of other classes.

Gidaris & Komodakis, Dynamic Few-Shot Visual Learning without Forgetting, CVPR 2018. The scores are
cosines, so the norms of trained and generated weights do not matter.
"""

import numpy as np
import tensorflow as tf

NOVEL, SHOTS = 5, 5  # novel classes per episode at most, and images per novel class


def unit(vectors: tf.Tensor) -> tf.Tensor:
    """Divides each vector of the last axis by its norm."""
    return tf.math.l2_normalize(vectors, axis=-1)


class WeightGenerator(tf.Module):
    """Generator of the weights w of a novel class from unit features z_i and base weights w_b.

        w = phi_avg * mean_i z_i + phi_att * mean_i sum_b a_ib w_b
        a_i = softmax_b(gamma cos(phi_q z_i, k_b))

    a_i is the attention over the base classes b. Everything except z is learned: the diagonals
    phi_avg and phi_att, the matrix phi_q, one key k_b per base class, gamma, the base weights w_b,
    and the scale of the scores.

    Args:
        base_weights: Initial values of w_b, float32 (base, width).
        seed: Seed of the initial keys.
    """

    def __init__(self, base_weights: np.ndarray, seed: int):
        super().__init__()
        base, width = base_weights.shape
        keys = tf.random.stateless_normal((base, width), [seed, 3], stddev=(2 / width) ** 0.5)
        self.base_weights, self.keys = tf.Variable(base_weights), tf.Variable(keys)
        self.phi_avg, self.phi_att = (tf.Variable(tf.ones(width)) for _ in range(2))
        self.phi_q = tf.Variable(tf.eye(width))
        self.gamma, self.scale = tf.Variable(10.0), tf.Variable(10.0)

    def attention(self, exemplars: tf.Tensor, available: tf.Tensor) -> tf.Tensor:
        """Returns the attention a, (novel, shots, base), which is 0 for unavailable classes.

        Args:
            exemplars: Features of the images of each novel class, float (novel, shots, width).
            available: Whether each base class takes part, bool (base,).
        """
        cosines = tf.matmul(unit(unit(exemplars) @ self.phi_q), unit(self.keys), transpose_b=True)
        return tf.nn.softmax(tf.where(available, self.gamma * cosines, -np.inf))

    def generate(self, exemplars: tf.Tensor, available: tf.Tensor) -> tf.Tensor:
        """Returns the weights w, float (novel, width); the arguments are those of `attention`."""
        attended = self.attention(exemplars, available) @ unit(self.base_weights)
        average, attended = (tf.reduce_mean(x, axis=1) for x in (unit(exemplars), attended))
        return self.phi_avg * average + self.phi_att * attended


def learn_to_generate(
    features: np.ndarray,
    labels: np.ndarray,
    base_weights: np.ndarray,
    updates: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> WeightGenerator:
    """Trains a generator by episodes in which some base classes act as novel classes.

    The weights of these classes are generated from a few of their images. The loss is the
    cross-entropy over all base classes, on other images, with equal numbers per class.

    Args:
        features: Features of the base classes' images, float32 (n, width).
        labels: Base class of each feature, int64 (n,), in [0, base).
        base_weights: Initial weights of at least 2 base classes, float32 (base, width).
        updates: Number of episodes.
        batch_size: Images to classify per episode, rounded down to equal numbers per class.
        learning_rate: Initial learning rate of Adam, annealed by cosine to 0.
        seed: Seed of the keys and episodes.
    """
    base = len(base_weights)
    novel, queries = min(NOVEL, base // 2), max(1, batch_size // base)
    generator = WeightGenerator(base_weights, seed)
    schedule = tf.keras.optimizers.schedules.CosineDecay(learning_rate, updates)
    optimizer = tf.keras.optimizers.Adam(schedule)
    features = tf.constant(features)  # captured once, not copied into the graph
    truth = tf.repeat(tf.range(base), queries)

    @tf.function
    def update(drawn, novel):
        episode = tf.gather(features, drawn)  # (base, shots + queries, width)
        with tf.GradientTape() as tape:
            available = tf.reduce_all(tf.range(base)[:, None] != novel, axis=1)
            generated = generator.generate(tf.gather(episode[:, :SHOTS], novel), available)
            weights = tf.tensor_scatter_nd_update(generator.base_weights, novel[:, None], generated)
            cosines = tf.matmul(unit(episode[:, SHOTS:]), unit(weights), transpose_b=True)
            scores = generator.scale * tf.reshape(cosines, (-1, base))
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(truth, scores))
        variables = generator.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))

    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == b) for b in range(base)]
    for _ in range(updates):
        size = SHOTS + queries
        drawn = [rng.choice(m, size, replace=len(m) < size) for m in members]
        update(tf.constant(drawn), tf.constant(rng.choice(base, novel, replace=False), tf.int32))
    return generator
