"""Distillation terms, long-tailed cross-entropies and terms on features.

All take logits, never probabilities.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def kl_divergence(
    teacher_logits: tf.Tensor,
    student_logits: tf.Tensor,
    temperature: float = 2.0,
    log_prior: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns L_KL = T^2 KL(softmax(z_T / T) || softmax(z_S / T)) (Hinton et al., 2015).

    With a log prior, z + log_prior takes the place of each z.

    Args:
        teacher_logits: Teacher's logits z_T, float (batch, classes).
        student_logits: Student's logits z_S, float (batch, classes).
        temperature: Temperature T.
        log_prior: Log class frequencies (classes,); none by default. As in `BalancedSoftmax`, a
            student that fits the sums stays balanced itself.

    Returns:
        One value per example, float32 (batch,).

    Example:
        >>> ct.losses.kl_divergence([[4.0, 0.0]], [[0.0, 0.0]]).numpy().round(2)
        array([1.31], dtype=float32)
    """
    target = soften(teacher_logits, temperature, log_prior)
    return kl_from_target(target, student_logits, temperature, log_prior)


def kl_from_target(
    target: tf.Tensor,
    student_logits: tf.Tensor,
    temperature: float = 2.0,
    log_prior: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns T^2 KL(target || softmax(z_S / T)), float32 (batch,).

    Args:
        target: Probabilities (batch, classes) from `soften`, or mixtures of these.
        student_logits: Student's logits z_S, float (batch, classes).
        temperature: Temperature T.
        log_prior: Log class frequencies (classes,), as in `kl_divergence`.

    Example:
        >>> target = ct.losses.soften([[4.0, 0.0]])
        >>> ct.losses.kl_from_target(target, [[0.0, 0.0]]).numpy().round(2)
        array([1.31], dtype=float32)
    """
    log_q = tf.nn.log_softmax(scaled(student_logits, temperature, log_prior))
    return temperature**2 * tf.reduce_sum(tf.math.xlogy(target, target) - target * log_q, axis=-1)


def soften(
    logits: tf.Tensor, temperature: float = 2.0, log_prior: tf.Tensor | None = None
) -> tf.Tensor:
    """Returns softmax((z + log_prior) / T), float32 (batch, classes); see `kl_divergence`.

    Args:
        logits: Logits z, float (batch, classes).
        temperature: Temperature T.
        log_prior: Log class frequencies (classes,), or None.

    Example:
        >>> ct.losses.soften([[4.0, 0.0]]).numpy().round(2)
        array([[0.88, 0.12]], dtype=float32)
    """
    return tf.nn.softmax(scaled(logits, temperature, log_prior))


def scaled(logits: tf.Tensor, temperature: float, log_prior: tf.Tensor | None) -> tf.Tensor:
    """Returns (z + log_prior) / T, float32; arguments as in `soften`.

    Example:
        >>> scaled([[4.0, 0.0]], 2.0, None).numpy()
        array([[2., 0.]], dtype=float32)
    """
    return (tf.cast(logits, tf.float32) + (0.0 if log_prior is None else log_prior)) / temperature


def feature_similarity(student_features: tf.Tensor, teacher_features: tf.Tensor) -> tf.Tensor:
    """Returns L_FS = 2 - 2 cos(a(f(x)), g(x)), the squared distance of L2-normalised features.

    Args:
        student_features: Adapted student features a(f(x)), float (batch, width).
        teacher_features: Teacher's features g(x), float (batch, width).

    Returns:
        One value in [0, 4] per example, float32 (batch,).

    Example:
        >>> ct.losses.feature_similarity([[1.0, 0.0]], [[0.0, 3.0]]).numpy()
        array([2.], dtype=float32)
    """
    # Batch norm of a single image gives zeros, where the smaller default has a slope of 1e6.
    a = tf.math.l2_normalize(tf.cast(student_features, tf.float32), axis=-1, epsilon=1e-6)
    g = tf.math.l2_normalize(tf.cast(teacher_features, tf.float32), axis=-1)
    return 2.0 - 2.0 * tf.reduce_sum(a * g, axis=-1)


def positive_counts(class_counts: Sequence[int]) -> np.ndarray:
    """Returns class_counts as float64 (classes,).

    Raises:
        ValueError: If a class has no training image, or if these are not one count per class.

    Example:
        >>> positive_counts([9, 1])
        array([9., 1.])
    """
    counts = class_values(class_counts, "class_counts", "the number of its training images")
    if (counts <= 0).any():
        empty = np.flatnonzero(counts <= 0).tolist()
        raise ValueError(
            f"class_counts is 0 for class {empty[:5]}: every class needs a training image; "
            "leave the class out or lower the imbalance ratio."
        )
    return counts


def class_values(values: Sequence[float], name: str, what: str) -> np.ndarray:
    """Returns one number per class as float64 (classes,).

    Args:
        values: The numbers.
        name: Their name, for messages.
        what: What the number of a class is, for messages.

    Raises:
        ValueError: If they are not a list of numbers that are finite and at least 0.

    Example:
        >>> class_values([1, 2], "class_weights", "its weight")
        array([1., 2.])
    """
    try:
        numbers = np.asarray(values, np.float64)
        fits = numbers.ndim == 1 and numbers.size and (numbers >= 0).all()
    except (TypeError, ValueError):  # no numbers, or lists of different lengths
        fits = False
    if not fits or not np.isfinite(numbers).all():
        raise ValueError(
            f"{name} is {str(values)[:60]}: give a list with one number per class, {what}."
        )
    return numbers


def log_prior(class_counts: Sequence[int]) -> np.ndarray:
    """Returns log(n_c / sum n), float32 (classes,).

    Raises:
        ValueError: If a class has no training image.

    Example:
        >>> np.exp(ct.losses.log_prior([9, 1])).round(2)
        array([0.9, 0.1], dtype=float32)
    """
    counts = positive_counts(class_counts)
    return np.log(counts / counts.sum()).astype(np.float32)


def inverse_frequency_weights(class_counts: Sequence[int]) -> np.ndarray:
    """Returns class weights ~ 1 / n_c that sum to the number of classes, float32 (classes,).

    Raises:
        ValueError: If a class has no training image.

    Example:
        >>> ct.losses.inverse_frequency_weights([9, 3])
        array([0.5, 1.5], dtype=float32)
    """
    return sum_to_classes(1.0 / positive_counts(class_counts))


def class_balanced_weights(class_counts: Sequence[int], beta: float = 0.9999) -> np.ndarray:
    """Returns class weights ~ (1 - beta) / (1 - beta^n_c), the inverse effective number of images.

    At beta = 0 all are 1; toward beta = 1 they tend to 1 / n_c (Cui et al., CVPR 2019).

    Args:
        class_counts: Training images per class n_c, (classes,).
        beta: Parameter in [0, 1).

    Returns:
        Weights float32 (classes,), which sum to the number of classes.

    Raises:
        ValueError: If a class has no training image, or beta is not in [0, 1).

    Example:
        >>> ct.losses.class_balanced_weights([90, 10], beta=0.0)
        array([1., 1.], dtype=float32)
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta} but must be at least 0 and below 1, such as 0.9999.")
    return sum_to_classes(1.0 / effective_number(positive_counts(class_counts), beta))


def effective_number(counts: np.ndarray, beta: float) -> np.ndarray:
    """Returns (1 - beta^n) / (1 - beta) for counts n, below 1 / (1 - beta) (Cui et al., CVPR 2019).

    Example:
        >>> effective_number(np.array([1.0, 10.0, 1000.0]), beta=0.95).round(1)
        array([ 1.,  8., 20.])
    """
    return (1.0 - beta**counts) / (1.0 - beta)


def sum_to_classes(weights: np.ndarray) -> np.ndarray:
    """Returns weights scaled to a mean of 1, float32 (classes,).

    Example:
        >>> sum_to_classes(np.array([1.0, 3.0]))
        array([0.5, 1.5], dtype=float32)
    """
    return (weights * len(weights) / weights.sum()).astype(np.float32)


def class_indices(y_true: tf.Tensor) -> tf.Tensor:
    """Returns labels (batch,) or (batch, 1) of any type as int32 (batch,).

    Example:
        >>> class_indices(tf.constant([[2.0], [0.0]])).numpy()
        array([2, 0], dtype=int32)
    """
    return tf.cast(tf.reshape(y_true, [-1]), tf.int32)


def cross_entropy(y_true: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns -log p_y, one value per example, (batch,).

    Args:
        y_true: Class numbers y (batch,).
        logits: Logits (batch, classes).

    Example:
        >>> cross_entropy([0], [[0.0, 0.0]]).numpy().round(2)
        array([0.69], dtype=float32)
    """
    return tf.keras.losses.sparse_categorical_crossentropy(y_true, logits, from_logits=True)


def of_labels(class_values: tf.Tensor, y_true: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Returns the value of each example's class (batch,), in the dtype of `like`.

    Args:
        class_values: One value per class, (classes,).
        y_true: Class numbers (batch,).
        like: Tensor of the wanted dtype.

    Example:
        >>> of_labels([5.0, 7.0], [1, 0], like=tf.zeros(1)).numpy()
        array([7., 5.], dtype=float32)
    """
    return tf.cast(tf.gather(class_values, class_indices(y_true)), like.dtype)


@tf.keras.saving.register_keras_serializable("candle_tf")
class BalancedSoftmax(tf.keras.losses.Loss):
    """Cross-entropy of z + log n_c (Ren et al., BALMS, NeurIPS 2020, eq. 4).

    Args:
        class_counts: Training images per class n_c, (classes,).

    Raises:
        ValueError: If a class has no training image.

    Example:
        >>> round(float(ct.losses.BalancedSoftmax([9, 1])([1], tf.zeros((1, 2)))), 2)
        2.3
    """

    def __init__(self, class_counts: Sequence[int], name="balanced_softmax", **kwargs):
        super().__init__(name=name, **kwargs)
        self.class_counts = positive_counts(class_counts).tolist()
        self.log_prior = log_prior(self.class_counts)

    def call(self, y_true, y_pred):
        """Returns one loss per example, (batch,)."""
        return cross_entropy(y_true, y_pred + tf.cast(self.log_prior, y_pred.dtype))

    def get_config(self):
        """Returns the arguments of the constructor as Keras saves them."""
        return {**super().get_config(), "class_counts": self.class_counts}


@tf.keras.saving.register_keras_serializable("candle_tf")
class LogitAdjustment(BalancedSoftmax):
    """Cross-entropy of z + tau log pi_c, with pi_c = n_c / sum n (Menon et al., ICLR 2021, eq. 10).

    At tau = 1 it is the balanced softmax.

    Args:
        class_counts: Training images per class n_c, (classes,).
        tau: Factor on the log prior.

    Raises:
        ValueError: If a class has no training image, or tau is negative.

    Example:
        >>> round(float(ct.losses.LogitAdjustment([9, 1], tau=1.0)([1], tf.zeros((1, 2)))), 2)
        2.3
    """

    def __init__(
        self, class_counts: Sequence[int], *, tau: float = 1.0, name="logit_adjustment", **kwargs
    ):
        super().__init__(class_counts, name=name, **kwargs)
        if not 0 <= tau < np.inf:
            raise ValueError(f"tau is {tau} but must be finite and at least 0, such as 1.0.")
        self.tau = tau
        self.log_prior = tau * self.log_prior

    def get_config(self):
        """Returns the arguments of the constructor as Keras saves them."""
        return {**super().get_config(), "tau": self.tau}


@tf.keras.saving.register_keras_serializable("candle_tf")
class LabelAwareSmoothing(tf.keras.losses.Loss):
    """(1 - e_y) (-log p_y) + e_y mean_c(-log p_c) (Zhong et al., MiSLAS, CVPR 2021, concave form).

    e_c = tail + (head - tail) sin(pi/2 (n_c - n_C) / (n_1 - n_C)), with the largest count n_1 and
    the smallest count n_C; `head` where all counts are equal.

    Args:
        class_counts: Training images per class n_c, (classes,).
        head: Smoothing e of the largest class.
        tail: Smoothing e of the smallest class.

    Raises:
        ValueError: If a class has no training image, or a factor is not in [0, 1).

    Example:
        >>> ct.losses.LabelAwareSmoothing([9, 1], head=0.05, tail=0.1).smoothing
        array([0.05, 0.1 ], dtype=float32)
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        *,
        head: float,
        tail: float,
        name="label_aware_smoothing",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        counts = positive_counts(class_counts)
        if not (0 <= head < 1 and 0 <= tail < 1):
            raise ValueError(
                f"head is {head} and tail is {tail}, but both must be at least 0 and below 1."
            )
        self.class_counts, self.head, self.tail = counts.tolist(), head, tail
        span = counts.max() - counts.min()
        rank = (counts - counts.min()) / span if span else np.ones_like(counts)
        self.smoothing = (tail + (head - tail) * np.sin(np.pi / 2 * rank)).astype(np.float32)

    def call(self, y_true, y_pred):
        """Returns one loss per example, (batch,)."""
        negative_log_p = -tf.nn.log_softmax(y_pred)
        e = of_labels(self.smoothing, y_true, like=y_pred)
        of_label = tf.gather(negative_log_p, class_indices(y_true), batch_dims=1)
        return (1.0 - e) * of_label + e * tf.reduce_mean(negative_log_p, axis=-1)

    def get_config(self):
        """Returns the arguments of the constructor as Keras saves them."""
        own = {"class_counts": self.class_counts, "head": self.head, "tail": self.tail}
        return {**super().get_config(), **own}


def weights_of(class_weights: Sequence[float]) -> list[float]:
    """Returns class weights as a list of numbers, for a loss and its config.

    Example:
        >>> weights_of(np.ones(2))
        [1.0, 1.0]
    """
    return class_values(class_weights, "class_weights", "its weight").tolist()


@tf.keras.saving.register_keras_serializable("candle_tf")
class WeightedCrossEntropy(tf.keras.losses.Loss):
    """-w_y log p_y: re-weighting.

    Args:
        class_weights: Weights w_c, (classes,), such as `class_balanced_weights(class_counts)`.

    Raises:
        ValueError: If a weight is not a number of at least 0.

    Example:
        >>> round(float(ct.losses.WeightedCrossEntropy([1.0, 2.0])([1], tf.zeros((1, 2)))), 2)
        1.39
    """

    def __init__(self, class_weights: Sequence[float], name="weighted_cross_entropy", **kwargs):
        super().__init__(name=name, **kwargs)
        self.class_weights = weights_of(class_weights)

    def call(self, y_true, y_pred):
        """Returns one loss per example, (batch,)."""
        weights = of_labels(self.class_weights, y_true, like=y_pred)
        return weights * cross_entropy(y_true, y_pred)

    def get_config(self):
        """Returns the arguments of the constructor as Keras saves them."""
        return {**super().get_config(), "class_weights": self.class_weights}


@tf.keras.saving.register_keras_serializable("candle_tf")
class Focal(tf.keras.losses.Loss):
    """-w_y (1 - p_y)^gamma log p_y, with p the softmax (Lin et al., ICCV 2017, eq. 5).

    Args:
        gamma: Exponent; the larger, the less do well-classified examples count.
        class_weights: Weights w_c, (classes,), 1 by default. `class_balanced_weights(class_counts)`
            make it CB-focal (Cui et al., CVPR 2019).

    Raises:
        ValueError: If gamma is negative, or a weight is not a number of at least 0.

    Example:
        >>> round(float(ct.losses.Focal(gamma=2.0)([1], [[0.0, 0.0]])), 2)
        0.17
    """

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        class_weights: Sequence[float] | None = None,
        name="focal",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        if not 0 <= gamma < np.inf:
            raise ValueError(f"gamma is {gamma} but must be finite and at least 0, such as 2.0.")
        self.gamma = gamma
        self.class_weights = None if class_weights is None else weights_of(class_weights)

    def call(self, y_true, y_pred):
        """Returns one loss per example, (batch,)."""
        negative_log_p = cross_entropy(y_true, y_pred)
        rest = -tf.math.expm1(-negative_log_p)  # 1 - p_y
        rest = tf.maximum(rest, tf.keras.backend.epsilon())  # 0^gamma may have an infinite slope
        loss = rest**self.gamma * negative_log_p
        if self.class_weights is None:
            return loss
        return of_labels(self.class_weights, y_true, like=y_pred) * loss

    def get_config(self):
        """Returns the arguments of the constructor as Keras saves them."""
        own = {"gamma": self.gamma, "class_weights": self.class_weights}
        return {**super().get_config(), **own}


@tf.keras.saving.register_keras_serializable("candle_tf")
class LDAM(tf.keras.losses.Loss):
    """Cross-entropy with a label-distribution-aware margin (Cao et al., NeurIPS 2019).

    The logits are s cos(x, w_c), those of a `CosineClassifier` of the same scale s. The logit of
    the label becomes s (cos(x, w_y) - m_y), where m_c ~ 1 / n_c^(1/4) and the largest margin is
    `max_margin`. `class_weights` are 1 until `DeferredReweighting` changes them (LDAM-DRW).

    Args:
        class_counts: Training images per class n_c, (classes,).
        max_margin: Margin of the smallest class, as a cosine.
        scale: Scale s of the logits.

    Raises:
        ValueError: If a class has no training image, or margin or scale are out of range.

    Example:
        >>> ct.losses.LDAM([16, 1], max_margin=0.5).margins
        array([0.25, 0.5 ], dtype=float32)
    """

    def __init__(
        self,
        class_counts: Sequence[int],
        *,
        max_margin: float = 0.5,
        scale: float = 30.0,
        name="ldam",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        counts = positive_counts(class_counts)
        if not (0 <= max_margin < np.inf and 0 < scale < np.inf):
            raise ValueError(
                f"max_margin is {max_margin} and scale is {scale}, but both must be finite, the "
                "margin at least 0 and the scale above 0."
            )
        self.class_counts = counts.tolist()
        self.max_margin, self.scale = max_margin, scale
        self.margins = (max_margin * (counts.min() / counts) ** 0.25).astype(np.float32)
        self.class_weights = tf.Variable(np.ones_like(self.margins), trainable=False)

    def call(self, y_true, y_pred):
        """Returns one loss per example, (batch,)."""
        margin = self.scale * of_labels(self.margins, y_true, like=y_pred)[:, None]
        label = tf.one_hot(class_indices(y_true), len(self.margins), dtype=y_pred.dtype)
        weights = of_labels(self.class_weights, y_true, like=y_pred)
        return weights * cross_entropy(y_true, y_pred - margin * label)

    def get_config(self):
        """Returns the arguments of the constructor as Keras saves them."""
        own = {
            "class_counts": self.class_counts,
            "max_margin": self.max_margin,
            "scale": self.scale,
        }
        return {**super().get_config(), **own}


class DeferredReweighting(tf.keras.callbacks.Callback):
    """Class-balanced weights in an `LDAM` loss from an epoch on, 1 before (Cao et al., 2019, DRW).

    The epoch's number alone decides, so that a resumed `fit` (`initial_epoch`) needs no state.

    Args:
        start_epoch: First epoch, counted from 0, with weights.
        beta: Parameter of `class_balanced_weights`.

    Raises:
        ValueError: From `fit`, if the model was compiled with another loss.

    Example:
        >>> callback = ct.losses.DeferredReweighting(start_epoch=160)
    """

    def __init__(self, start_epoch: int, beta: float = 0.9999):
        super().__init__()
        self.start_epoch, self.beta = start_epoch, beta

    def on_epoch_begin(self, epoch, logs=None):
        """Assigns the weights of the epoch."""
        loss = self.model.loss
        if not isinstance(loss, LDAM):
            raise ValueError(
                "DeferredReweighting changes the weights of LDAM, but the loss is "
                f"{getattr(loss, 'name', loss)}: compile the model with LDAM(class_counts)."
            )
        beta = self.beta if epoch >= self.start_epoch else 0.0
        loss.class_weights.assign(class_balanced_weights(loss.class_counts, beta))


def squared_distances(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Returns ||x_i - y_j||^2, (n, m), for x float (n, width) and y float (m, width).

    Example:
        >>> squared_distances(tf.constant([[0.0, 0.0]]), tf.constant([[3.0, 4.0]])).numpy()
        array([[25.]], dtype=float32)
    """
    x_squares, y_squares = (tf.reduce_sum(vectors**2, axis=-1) for vectors in (x, y))
    products = tf.matmul(x, y, transpose_b=True)
    return tf.maximum(x_squares[:, None] + y_squares[None] - 2.0 * products, 0.0)


def range_loss(
    features: tf.Tensor, labels: tf.Tensor, margin: float = 1.0, k: int = 2
) -> tf.Tensor:
    """Returns the range loss of a batch, both parts with weight 1 (Zhang et al., ICCV 2017).

    Within: the harmonic mean of a class's k largest squared distances, summed over classes.
    Between: max(margin - d, 0), where d is the least squared distance of two class centres.

    Args:
        features: Features, float (batch, width).
        labels: Class numbers (batch,).
        margin: Squared distance to which the centres are pushed apart.
        k: Number of distances per class that count, or fewer where the class has fewer.

    Returns:
        Loss, float32 (); a part without a pair of images, or of classes, is 0.

    Example:
        >>> x = tf.constant([[0.0], [1.0], [9.0]])
        >>> round(float(ct.losses.range_loss(x, [0, 0, 1])), 3)
        1.0
    """
    x = tf.cast(features, tf.float32)
    classes, index = tf.unique(class_indices(labels))
    member = tf.one_hot(index, tf.size(classes), axis=0)
    pair = member[:, :, None] * member[:, None, :]
    pair -= tf.linalg.band_part(pair, -1, 0)  # i < j
    # The same image twice is at distance 0: its inverse, squared in the gradient, stays finite.
    spread = tf.reshape(pair * (squared_distances(x, x) + 1e-6), (tf.size(classes), -1))
    ranges, _ = tf.math.top_k(spread, tf.minimum(k, tf.shape(spread)[1]))
    found = tf.math.count_nonzero(ranges, axis=1, dtype=tf.float32)
    inverse = tf.math.reciprocal_no_nan(ranges)
    within = tf.math.divide_no_nan(found, tf.reduce_sum(inverse, axis=1))
    centres = tf.matmul(member, x) / tf.reduce_sum(member, axis=1, keepdims=True)
    apart = tf.linalg.set_diag(
        squared_distances(centres, centres), tf.fill([tf.size(classes)], float(margin))
    )
    return tf.reduce_sum(within) + tf.nn.relu(margin - tf.reduce_min(apart))


def lifted_structured_loss(
    features: tf.Tensor, labels: tf.Tensor, margin: float = 1.0
) -> tf.Tensor:
    """Returns the lifted structured loss of a batch (Oh Song et al., CVPR 2016, eq. 4).

    With D the Euclidean distance, the mean over pairs (i, j) of one class of max(0, J_ij)^2 / 2:

        J_ij = log(sum_k exp(margin - D_ik) + sum_l exp(margin - D_jl)) + D_ij

    where k and l run over the images of other classes than that of i and j.

    Args:
        features: Features, float (batch, width).
        labels: Class numbers (batch,).
        margin: Distance beyond D_ij to which other classes are pushed.

    Returns:
        Loss, float32 (); 0 for a batch without two images of a class, or with a single class.

    Example:
        >>> x = tf.constant([[0.0], [1.0], [9.0]])
        >>> float(ct.losses.lifted_structured_loss(x, [0, 0, 1]))
        0.0
    """
    y = class_indices(labels)
    x = tf.cast(features, tf.float32)
    # The slope of the root is infinite at 0, the distance of the same image twice.
    distance = tf.sqrt(tf.maximum(squared_distances(x, x), 1e-12))
    same = tf.equal(y[:, None], y[None])
    positive = tf.linalg.set_diag(tf.cast(same, tf.float32), tf.zeros(tf.shape(y)))
    negative = tf.reduce_logsumexp(tf.where(same, -np.inf, margin - distance), axis=1)
    hardest = tf.reduce_logsumexp(tf.stack(tf.meshgrid(negative, negative)), axis=0)
    penalty = tf.nn.relu(hardest + distance) ** 2
    return tf.math.divide_no_nan(tf.reduce_sum(positive * penalty), 2.0 * tf.reduce_sum(positive))
