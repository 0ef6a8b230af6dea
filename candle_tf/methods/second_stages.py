"""Second stages: a new linear classifier on the features of a trained network's frozen encoder.

Each row of `SECOND_STAGES` takes a `FirstStage`. It returns the kernel, float32 (width, classes),
and bias, float32 (classes,), of the network's last layer. So the network keeps its architecture.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf
from candle_tf import classifiers, losses, metrics
from candle_tf.methods.weight_generator import learn_to_generate

Classifier = tuple[np.ndarray, np.ndarray]  # kernel and bias

CROSS_ENTROPY = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TAUS = np.linspace(0.0, 2.0, 21)
NEIGHBORS = 5  # nearest neighbours in SMOTE
# Weight balancing: the radius is the published one. The published decay was tuned to other features
# and would ruin the classifier of a small student.
MAX_NORM, WEIGHT_DECAY = 0.1, 1e-3


@dataclass(frozen=True)
class FirstStage:
    """Features and classifier of a trained network, and the training budget of a second stage.

    Attributes:
        features: Features of the training images or of their augmented views, float32 (n, width).
        labels: Class of each feature, int64 (n,).
        class_counts: Training images per class, (classes,).
        kernel: Kernel of the trained classifier, float32 (width, classes).
        bias: Bias of the trained classifier, float32 (classes,).
        validation: Features and labels of held-out images, or None.
        label_smoothing: Factors of label-aware smoothing, (head, tail).
        epochs: Number of passes over the features.
        batch_size: Features per batch.
        learning_rate: Initial learning rate of Adam, annealed by cosine to 0.
        seed: Seed of all random draws.

    Raises:
        ValueError: For a class without features, or features with NaN or Inf.

    Example:
        >>> first = ct.methods.FirstStage(
        ...     features=np.eye(3, dtype=np.float32),
        ...     labels=np.array([0, 1, 2]),
        ...     class_counts=np.array([40, 20, 4]),
        ...     kernel=np.eye(3, dtype=np.float32),
        ...     bias=np.zeros(3, np.float32),
        ... )
        >>> kernel, bias = ct.methods.SECOND_STAGES["ncm"](first)
        >>> kernel.shape, bias.shape
        ((3, 3), (3,))
    """

    features: np.ndarray
    labels: np.ndarray
    class_counts: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    validation: tuple[np.ndarray, np.ndarray] | None = None
    label_smoothing: tuple[float, float] = (0.05, 0.1)
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 3e-3
    seed: int = 0

    def __post_init__(self):
        empty = np.setdiff1d(range(self.num_classes), self.labels)
        if len(empty):
            raise ValueError(
                f"No features of class {empty[:5].tolist()}: a second stage needs an image of "
                "every class, so leave the class out or lower the imbalance ratio."
            )
        if not np.isfinite(self.features).all():
            raise ValueError(
                "The features hold NaN or Inf: the first stage diverged; lower its learning rate."
            )

    @property
    def width(self) -> int:
        """Number of features per image."""
        return self.kernel.shape[0]

    @property
    def num_classes(self) -> int:
        """Number of classes of the trained classifier."""
        return self.kernel.shape[1]


def crt(first: FirstStage) -> Classifier:
    """Trains a new classifier on class-balanced batches (Kang et al., ICLR 2020)."""
    return train(first, classifiers.linear(first.width, first.num_classes, first.seed))


def lws(first: FirstStage) -> Classifier:
    """Learns a scale f_c per class, in f_c (w_c x + b_c), on class-balanced batches.

    Only f is trained: learnable weight scaling (Kang et al., ICLR 2020).
    """
    classifier = scaled(first)
    classifier.layers[0].trainable = False
    return folded(*train(first, classifier))


def tau_norm(first: FirstStage) -> Classifier:
    """Normalises the weights, w_c / ||w_c||^tau without bias (Kang et al., ICLR 2020).

    The validation features choose tau from 0, 0.1, ..., 2 by the mean of the per-class accuracies.

    Raises:
        ValueError: Without validation features.
    """
    if first.validation is None:
        raise ValueError(
            "tau_norm chooses tau by accuracy on held-out images: give a `validation_split`, "
            "such as `validation_split=0.1`."
        )
    features, labels = first.validation
    kernels = [tau_normalized(first.kernel, tau) for tau in TAUS]
    predictions = [np.argmax(features @ kernel, axis=-1) for kernel in kernels]
    accuracy = [metrics.per_class_accuracy(labels, p, first.num_classes) for p in predictions]
    return without_bias(kernels[np.argmax(np.nanmean(accuracy, axis=-1))])


def ncm(first: FirstStage) -> Classifier:
    """Classifies by the nearest class mean, with weights m_c / ||m_c|| (Kang et al., ICLR 2020).

    The norm of x scales all cosines alike. So x . m_c / ||m_c|| ranks the classes in the same order
    as the cosines, and as the Euclidean distances to the normalised means.
    """
    means = classifiers.class_means(first.features, first.labels, first.num_classes)
    return without_bias(tau_normalized(means.T, 1.0))


def cosine(first: FirstStage) -> Classifier:
    """Trains a cosine classifier on class-balanced batches (Gidaris & Komodakis, CVPR 2018).

    The norm of x scales all scores alike, so the normalised kernel ranks the classes in the same
    order.
    """
    layer = classifiers.CosineClassifier(first.num_classes)
    classifier = tf.keras.Sequential([tf.keras.Input((first.width,)), layer])
    fresh = classifiers.linear(first.width, first.num_classes, first.seed)
    classifier.set_weights(fresh.get_weights()[:1])
    (kernel,) = train(first, classifier)
    return without_bias(tau_normalized(kernel, 1.0))


def logit_adjustment(first: FirstStage) -> Classifier:
    """Subtracts the log prior from the logits, with tau = 1 (Menon et al., ICLR 2021, eq. 9)."""
    return first.kernel, first.bias - losses.log_prior(first.class_counts)


def smote(first: FirstStage) -> Classifier:
    """Adds synthetic features until all classes are equal (SMOTE, Chawla et al., JAIR 2002).

    Cross-entropy trains a new classifier on the balanced set, with as many updates as `epochs`
    passes over the original features have.
    """
    features, labels = oversampled(first.features, first.labels, first.seed)
    epochs = max(1, round(first.epochs * len(first.labels) / len(labels)))
    balanced = replace(first, features=features, labels=labels, epochs=epochs)
    classifier = classifiers.linear(first.width, first.num_classes, first.seed)
    return train(balanced, classifier, sampler="instance_balanced")


def weight_balancing(first: FirstStage) -> Classifier:
    """Trains with weight decay, MaxNorm and class-balanced loss (Alshammari et al., CVPR 2022).

    This is stage 2 of the paper, and starts from the first stage's classifier. No ||w_c|| may
    exceed a radius: the smallest norm of that classifier plus a tenth of the norms' range.
    """
    norms = np.linalg.norm(first.kernel, axis=0)
    radius = norms.min() + MAX_NORM * (norms.max() - norms.min())
    layer = tf.keras.layers.Dense(
        first.num_classes,
        kernel_regularizer=tf.keras.regularizers.L2(WEIGHT_DECAY),
        kernel_constraint=tf.keras.constraints.MaxNorm(radius, axis=0),
    )
    classifier = tf.keras.Sequential([tf.keras.Input((first.width,)), layer])
    classifier.set_weights([first.kernel, first.bias])
    loss = losses.WeightedCrossEntropy(losses.class_balanced_weights(first.class_counts))
    return train(first, classifier, loss, "instance_balanced")


def mislas(first: FirstStage) -> Classifier:
    """Trains f_c (w_c x + b_c) with label-aware smoothing (Zhong et al., CVPR 2021, stage 2).

    Batches are class-balanced. f, w and b are all trained, w and b from the first stage's values.
    Before it computes the features, the caller updates the moving averages of batch norm on
    class-balanced batches.
    """
    head, tail = first.label_smoothing
    loss = losses.LabelAwareSmoothing(first.class_counts, head=head, tail=tail)
    return folded(*train(first, scaled(first), loss))


def fslwf(first: FirstStage) -> Classifier:
    """Generates the tail's weights from those of the other classes (few-shot, without forgetting).

    The classifier uses cosines and attention (Gidaris & Komodakis, CVPR 2018), see
    `weight_generator`. The tail is the third of the classes with the fewest images. All others are
    base classes.

    Raises:
        ValueError: For fewer than 3 classes, which leave fewer than two base classes.
    """
    if first.num_classes < 3:
        raise ValueError(
            "fslwf generates the tail's weights from those of at least two other classes: it needs "
            f"3 classes, not {first.num_classes}."
        )
    tail = metrics.rank_groups(first.class_counts)["tail"]
    base = np.setdiff1d(range(first.num_classes), tail)
    of_base = np.isin(first.labels, base)
    weights = first.kernel.T.copy()
    generator = learn_to_generate(
        first.features[of_base],
        np.searchsorted(base, first.labels[of_base]),
        weights[base],
        first.epochs * -(-len(first.labels) // first.batch_size),
        first.batch_size,
        first.learning_rate,
        first.seed,
    )
    weights[base] = generator.base_weights
    for c in tail:
        exemplars = tf.constant(first.features[None, first.labels == c])
        weights[c] = generator.generate(exemplars, tf.ones(len(base), bool))[0]
    return without_bias(tau_normalized(weights.T, 1.0))


def train(
    first: FirstStage,
    classifier: tf.keras.Model,
    loss: tf.keras.losses.Loss = CROSS_ENTROPY,
    sampler: str = "class_balanced",
) -> list[np.ndarray]:
    """Trains a classifier on the first stage's features and budget, and returns its weights."""
    classifiers.fit_on_features(
        classifier,
        first.features,
        first.labels,
        loss=loss,
        sampler=sampler,
        epochs=first.epochs,
        batch_size=first.batch_size,
        learning_rate=first.learning_rate,
        seed=first.seed,
        verbose=0,
    )
    return classifier.get_weights()


def scaled(first: FirstStage) -> tf.keras.Sequential:
    """Returns the first stage's classifier with one more factor per class, 1 at first."""
    classifier = classifiers.scaled_linear(first.width, first.num_classes)
    classifier.set_weights([first.kernel, first.bias, np.ones(first.num_classes)])
    return classifier


def folded(kernel: np.ndarray, bias: np.ndarray, scale: np.ndarray) -> Classifier:
    """Multiplies the factor per class into kernel and bias."""
    return kernel * scale, bias * scale


def without_bias(kernel: np.ndarray) -> Classifier:
    """Returns the kernel with a bias of zeros."""
    return kernel, np.zeros(kernel.shape[1], np.float32)


def tau_normalized(kernel: np.ndarray, tau: float) -> np.ndarray:
    """Returns w_c / ||w_c||^tau, float32 (width, classes); a w_c of 0 stays 0."""
    norms = np.maximum(np.linalg.norm(kernel, axis=0), 1e-12)
    return (kernel / norms**tau).astype(np.float32)


def oversampled(
    features: np.ndarray, labels: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fills each class to the size of the largest by SMOTE, and returns all features and labels.

    A synthetic feature is between a feature and one of its 5 nearest neighbours in the class. A
    smaller class uses all its neighbours, and a class with one feature repeats it.

    Raises:
        ImportError: If imbalanced-learn is not installed.
    """
    try:
        from imblearn.over_sampling import SMOTE
    except ImportError as error:
        raise ImportError("SMOTE needs imbalanced-learn: pip install imbalanced-learn.") from error
    lonely = np.bincount(labels)[labels] == 1  # gets a copy of itself as neighbour
    features = np.concatenate([features, features[lonely]])
    labels = np.concatenate([labels, labels[lonely]])
    counts = np.bincount(labels)
    neighbors = np.minimum(counts - 1, NEIGHBORS)
    for k in np.unique(neighbors):
        sizes = {c: counts.max() for c in np.flatnonzero(neighbors == k)}
        sampler = SMOTE(sampling_strategy=sizes, k_neighbors=int(k), random_state=seed)
        features, labels = sampler.fit_resample(features, labels)
    return features, labels


SECOND_STAGES: dict[str, Callable[[FirstStage], Classifier]] = {
    "crt": crt,
    "lws": lws,
    "tau_norm": tau_norm,
    "ncm": ncm,
    "cosine": cosine,
    "logit_adjustment": logit_adjustment,
    "smote": smote,
    "weight_balancing": weight_balancing,
    "mislas": mislas,
    "fslwf": fslwf,
}
