"""Measures calibrations of one encoder's features on several long-tailed sets, as a Markdown table.

    python scripts/maintainers/bench_calibration.py --data_dir=DIR --images=DIR --teacher=FILE

The table has the class-mean accuracy on the test set in %, and the accuracy by rank. Its rows are
logistic regression with equal class weights on standardised features (scikit-learn), the earlier
calibration (30 epochs of Adam on raw features), and the calibrations of the library.
"""

import time
from collections.abc import Iterator

import candle_tf as ct
import numpy as np
import tensorflow as tf
from absl import app, flags
from candle_tf import calibration, classifiers, losses
from sklearn.linear_model import LogisticRegression

DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS directory.", required=True)
IMAGES = flags.DEFINE_string("images", None, "Directory of caltech101 and clothing.", required=True)
TEACHER = flags.DEFINE_string("teacher", None, "Encoder's file.", required=True)
SETS = flags.DEFINE_list("sets", None, "Names of sets, all by default.")
VIEWS = flags.DEFINE_integer("views", 4, "Views of each training image.")
SIZE = flags.DEFINE_integer("size", 128, "Side in pixels of what the encoder sees.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of views and folds.")


def sets() -> dict[str, tuple[str, float | None]]:
    """Returns data set and imbalance ratio of each set, by its name."""
    lists = {n: f"{IMAGES.value}/{n}/train.txt,{IMAGES.value}/{n}/test.txt" for n in OWN}
    return {
        "flowers": ("tfds:oxford_flowers102,train+validation,test", 10),
        "caltech101": (f"list:{lists['caltech101']}", 10),
        "clothing": (f"list:{lists['clothing']}", None),
        "cifar10_10": ("tfds:cifar10", 10),
        "cifar10_100": ("tfds:cifar10", 100),
        "cifar100_100": ("tfds:cifar100", 100),
    }


OWN = ("caltech101", "clothing")


def features_of(teacher: ct.Teacher, data) -> tuple[np.ndarray, ...]:
    """Returns features and labels of `VIEWS` views of the training images, and of test images."""
    how, size = data.info.augmentation, min(SIZE.value, data.image_size or SIZE.value)
    train = ct.data.training_batches(data.train, size, 128, augmentation=how, seed=SEED.value)
    embed = tf.function(teacher.embed, reduce_retracing=True)
    counts = data.class_counts
    x, y = classifiers.encode_dataset(embed, train, counts, VIEWS.value, verbose=0)
    test = ct.data.evaluation_batches(data.test, size, 128, how)
    parts = [(embed(images).numpy(), labels.numpy()) for images, labels in test]
    return np.array(x), y, *(np.concatenate(part) for part in zip(*parts))


def by_adam(x, y, counts, smoothing, loss: str):
    """Returns kernel and bias after 30 epochs of Adam on raw features."""
    if loss == "balanced_softmax":
        network, sampler = (
            classifiers.linear(x.shape[1], len(counts), SEED.value),
            "instance_balanced",
        )
        objective = losses.BalancedSoftmax(counts)
    else:
        network = classifiers.scaled_linear(x.shape[1], len(counts), SEED.value)
        head, tail = smoothing
        objective = losses.LabelAwareSmoothing(counts, head=head, tail=tail)
        sampler = "class_balanced"
    classifiers.fit_on_features(
        *(network, x, y),
        loss=objective,
        sampler=sampler,
        epochs=30,
        batch_size=128,
        learning_rate=3e-3,
        seed=SEED.value,
        verbose=0,
        views=VIEWS.value,
    )
    kernel, bias, *scale = network.get_weights()
    return (kernel * scale[0], bias * scale[0]) if scale else (kernel, bias)


def by_scikit_learn(x, y):
    """Returns kernel and bias of the logistic regression at equal class weights."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    model = LogisticRegression(class_weight="balanced", max_iter=300).fit((x - mean) / std, y)
    kernel = (model.coef_ / std).T
    return kernel, model.intercept_ - mean @ kernel


def rows(name: str, teacher: ct.Teacher) -> Iterator[str]:
    """Yields the lines of one set."""
    spec, ratio = sets()[name]
    data = ct.data.load(spec, DATA_DIR.value if spec.startswith("tfds") else None, ratio)
    counts, smoothing = data.class_counts, data.label_smoothing
    x, y, test_x, test_y = features_of(teacher, data)
    makers = {"logistic regression, class-balanced": lambda: by_scikit_learn(x, y)}
    for loss in ("balanced_softmax", "label_aware_smoothing"):
        makers[f"{loss}, Adam"] = lambda loss=loss: by_adam(x, y, counts, smoothing, loss)
        makers[loss] = lambda loss=loss: calibration.fit_classifier(
            x, y, counts, loss=loss, label_smoothing=smoothing, seed=SEED.value
        )[:2]
    for label, make in makers.items():
        start = time.process_time()
        kernel, bias = make()
        seconds = time.process_time() - start
        predictions = np.argmax(test_x @ kernel + bias, axis=1)
        report = ct.metrics.accuracy_report(test_y, predictions, counts, data.info.bounds)
        values = [report["class_mean"], *(report["ranks"][g] for g in ("head", "medium", "tail"))]
        cells = " | ".join(f"{100 * value:.1f}" for value in values)
        yield f"| {name} | {label} | {cells} | {seconds:.0f} |"


def main(argv):
    teacher = ct.Teacher.from_file(TEACHER.value, SIZE.value)
    print("| set | calibration | class mean | head | medium | tail | CPU s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in SETS.value or sets():
        for row in rows(name, teacher):
            print(row, flush=True)


if __name__ == "__main__":
    app.run(main)
