"""Second stages: a new linear classifier on the features of a trained network's frozen encoder.

Each row of `SECOND_STAGES` takes a `FirstStage` and returns the kernel, float32 (width, classes),
and bias, float32 (classes,), of the network's last layer, so that what is exported stays the same.
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
NEIGHBORS = 5  # of SMOTE
# Of weight balancing: the published place of the radius. The published decay, tuned to other
# features, would undo the classifier of a small student.
MAX_NORM, WEIGHT_DECAY = 0.1, 1e-3


@dataclass(frozen=True)
class FirstStage:
    """A trained network's features and classifier, and the budget of what is trained on them.

    Attributes:
        features: of the training images or augmented views of them, float32 (n, width).
        labels: int64 (n,).
        class_counts: training images per class, (classes,).
        kernel, bias: of the trained classifier, float32 (width, classes) and (classes,).
        validation: features and labels of held-out images; None where nothing is held out.
        label_smoothing: (head, tail) factors of label-aware smoothing.
        epochs: passes over the features.
        batch_size, learning_rate: of Adam, annealed by cosine to 0.
        seed: of everything random.

    Raises:
        ValueError: for a class without features, or features with NaN or Inf.
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
        return self.kernel.shape[0]

    @property
    def num_classes(self) -> int:
        return self.kernel.shape[1]


def crt(first: FirstStage) -> Classifier:
    """Classifier re-training: a fresh one, on class-balanced batches (Kang et al., ICLR 2020)."""
    return train(first, classifiers.linear(first.width, first.num_classes, first.seed))


def lws(first: FirstStage) -> Classifier:
    """Learnable weight scaling: f_c (w_c x + b_c), f alone trained, on class-balanced batches.

    Kang et al., ICLR 2020.
    """
    classifier = scaled(first)
    classifier.layers[0].trainable = False
    return folded(*train(first, classifier))


def tau_norm(first: FirstStage) -> Classifier:
    """tau-normalisation: w_c / ||w_c||^tau without bias (Kang et al., ICLR 2020).

    tau, of 0 to 2 by tenths, is the one of the best class-mean accuracy on the validation features.

    Raises:
        ValueError: without validation features.
    """
    if first.validation is None:
        raise ValueError(
            "tau_norm chooses tau by accuracy on held-out images: give --validation_split, such "
            "as --validation_split=0.1."
        )
    features, labels = first.validation
    kernels = [tau_normalized(first.kernel, tau) for tau in TAUS]
    predictions = [np.argmax(features @ kernel, axis=-1) for kernel in kernels]
    accuracy = [metrics.per_class_accuracy(labels, p, first.num_classes) for p in predictions]
    return without_bias(kernels[np.argmax(np.nanmean(accuracy, axis=-1))])


def ncm(first: FirstStage) -> Classifier:
    """Nearest class mean m_c by cosine, m_c / ||m_c|| (Kang et al., ICLR 2020).

    The norm of x scales all cosines alike, so x . m_c / ||m_c|| ranks the classes as they do, and
    as the Euclidean distance to the normalised means does.
    """
    means = classifiers.class_means(first.features, first.labels, first.num_classes)
    return without_bias(tau_normalized(means.T, 1.0))


def cosine(first: FirstStage) -> Classifier:
    """Cosine classifier (Gidaris & Komodakis, CVPR 2018), trained on class-balanced batches.

    The norm of x scales all scores alike, so the normalised kernel ranks the classes as they do.
    """
    layer = classifiers.CosineClassifier(first.num_classes)
    classifier = tf.keras.Sequential([tf.keras.Input((first.width,)), layer])
    fresh = classifiers.linear(first.width, first.num_classes, first.seed)
    classifier.set_weights(fresh.get_weights()[:1])
    (kernel,) = train(first, classifier)
    return without_bias(tau_normalized(kernel, 1.0))


def logit_adjustment(first: FirstStage) -> Classifier:
    """Post-hoc: the log prior subtracted, tau = 1 (Menon et al., ICLR 2021, eq. 9)."""
    return first.kernel, first.bias - losses.log_prior(first.class_counts)


def smote(first: FirstStage) -> Classifier:
    """Classes filled to the largest by features between neighbours (Chawla et al., JAIR 2002).

    A fresh classifier is trained on the balanced set by cross-entropy, with the updates of `epochs`
    passes over the features that it was made from.
    """
    features, labels = oversampled(first.features, first.labels, first.seed)
    epochs = max(1, round(first.epochs * len(first.labels) / len(labels)))
    balanced = replace(first, features=features, labels=labels, epochs=epochs)
    classifier = classifiers.linear(first.width, first.num_classes, first.seed)
    return train(balanced, classifier, sampler="instance_balanced")


def weight_balancing(first: FirstStage) -> Classifier:
    """Weight decay and MaxNorm, on class-balanced loss (Alshammari et al., CVPR 2022, stage 2).

    Goes on from the first stage's classifier, with no ||w_c|| above the radius a tenth of the way
    from its smallest to its largest.
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
    """Label-aware smoothing of f_c (w_c x + b_c), from w and b (Zhong et al., CVPR 2021, stage 2).

    On class-balanced batches; f, w and b are all trained. The caller shifts the batch norm's moving
    averages to class-balanced batches before it takes the features.
    """
    head, tail = first.label_smoothing
    loss = losses.LabelAwareSmoothing(first.class_counts, head=head, tail=tail)
    return folded(*train(first, scaled(first), loss))


def fslwf(first: FirstStage) -> Classifier:
    """Few-shot learning without forgetting: the tail's weights generated from the others'.

    Cosine classifier and attention (Gidaris & Komodakis, CVPR 2018), see `weight_generator`. The
    tail is the third of the classes with the fewest images; the others are the base classes.

    Raises:
        ValueError: for fewer than 3 classes, which leave no two base classes to learn from.
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
    """The classifier's weights after the first stage's budget."""
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
    """The first stage's classifier with a factor a class, 1 each."""
    classifier = classifiers.scaled_linear(first.width, first.num_classes)
    classifier.set_weights([first.kernel, first.bias, np.ones(first.num_classes)])
    return classifier


def folded(kernel: np.ndarray, bias: np.ndarray, scale: np.ndarray) -> Classifier:
    return kernel * scale, bias * scale


def without_bias(kernel: np.ndarray) -> Classifier:
    return kernel, np.zeros(kernel.shape[1], np.float32)


def tau_normalized(kernel: np.ndarray, tau: float) -> np.ndarray:
    """w_c / ||w_c||^tau, float32 (width, classes); a w_c of 0 stays 0."""
    norms = np.maximum(np.linalg.norm(kernel, axis=0), 1e-12)
    return (kernel / norms**tau).astype(np.float32)


def oversampled(
    features: np.ndarray, labels: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels with every class filled to the largest by SMOTE.

    Each synthetic feature lies between one of a class and one of its 5 nearest neighbours, or of
    as many as the class has; a class of one feature is repeated.

    Raises:
        ImportError: if imbalanced-learn is not installed.
    """
    try:
        from imblearn.over_sampling import SMOTE
    except ImportError as error:
        raise ImportError(
            "SMOTE needs imbalanced-learn: pip install -e '.[benchmark]' in the clone."
        ) from error
    lonely = np.bincount(labels)[labels] == 1  # its own copy is its neighbour
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
