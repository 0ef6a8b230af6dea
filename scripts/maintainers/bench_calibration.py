"""Measures calibrations of one encoder's features on several long-tailed sets, as a Markdown table.

    python scripts/maintainers/bench_calibration.py --data_dir=DIR --images=DIR --teacher=FILE

The table has the class mean of the test accuracy in % with its spread over the seeds, the means by
rank, and the processor's seconds. A seed draws the images, their views and the folds. The rows:

- logistic regression (scikit-learn) with equal class weights, on standardised features;
- the earlier calibrations, "Adam": 30 epochs on raw features;
- the library's calibrations.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

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
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of images, views and folds.")

SETS_OF_TFDS = {
    "flowers": {"dataset": "tfds:oxford_flowers102,train+validation,test", "imbalance_ratio": 10},
    "cifar10_10": {"dataset": "tfds:cifar10", "imbalance_ratio": 10},
    "cifar10_100": {"dataset": "tfds:cifar10", "imbalance_ratio": 100},
    "cifar100_100": {"dataset": "tfds:cifar100", "imbalance_ratio": 100},
}
LISTS = {
    "caltech101": {"imbalance_ratio": 10},
    "clothing": {},
    "caltech20": {"imbalance_ratio": 20 / 3, "n_max": 20},  # 180 images of the first 20 classes
}


def load(name: str, seed: int) -> ct.data.LongTailedData:
    """Returns a set of the table."""
    if name in SETS_OF_TFDS:
        return ct.data.load(data_dir=DATA_DIR.value, seed=seed, **SETS_OF_TFDS[name])
    own = Path(IMAGES.value, name.replace("caltech20", "caltech101"))
    with tempfile.TemporaryDirectory() as lists:
        for split in ("train.txt", "test.txt"):
            lines = (own / split).read_text(encoding="utf-8").splitlines()
            if name == "caltech20":
                lines = [line for line in lines if int(line.split()[-1]) < 20]
            Path(lists, split).write_text("\n".join(lines), encoding="utf-8")
        spec = f"list:{lists}/train.txt,{lists}/test.txt"
        return ct.data.load(spec, str(own), seed=seed, **LISTS[name])


def features_of(teacher: ct.Teacher, data, seed: int) -> tuple[np.ndarray, ...]:
    """Returns features and labels of `VIEWS` views of the training images, and of test images."""
    how, size = data.info.augmentation, min(SIZE.value, data.image_size or SIZE.value)
    train = ct.data.training_batches(data.train, size, 128, augmentation=how, seed=seed)
    embed = tf.function(teacher.embed, reduce_retracing=True)
    counts = data.class_counts
    x, y = classifiers.encode_dataset(embed, train, counts, VIEWS.value, verbose=0)
    test = ct.data.evaluation_batches(data.test, size, 128, how)
    parts = [(embed(images).numpy(), labels.numpy()) for images, labels in test]
    return np.array(x), y, *(np.concatenate(part) for part in zip(*parts))


def by_adam(x, y, counts, smoothing, loss: str, seed: int):
    """Returns kernel and bias after 30 epochs of Adam on raw features."""
    if loss == "balanced_softmax":
        network, sampler = classifiers.linear(x.shape[1], len(counts), seed), "instance_balanced"
        objective = losses.BalancedSoftmax(counts)
    else:
        network = classifiers.scaled_linear(x.shape[1], len(counts), seed)
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
        seed=seed,
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


def measure(name: str, teacher: ct.Teacher, seed: int) -> dict[str, list[float]]:
    """Returns accuracies in % (class mean, head, medium, tail) and seconds by calibration."""
    data = load(name, seed)
    counts, smoothing = data.class_counts, data.label_smoothing
    x, y, test_x, test_y = features_of(teacher, data, seed)

    def ours(loss: str):
        kernel, bias, _ = calibration.fit_classifier(
            x, y, counts, loss=loss, label_smoothing=smoothing, seed=seed
        )
        return kernel, bias

    makers = {"logistic regression, class-balanced": partial(by_scikit_learn, x, y)}
    for loss in ("balanced_softmax", "label_aware_smoothing"):
        makers[f"{loss}, Adam"] = partial(by_adam, x, y, counts, smoothing, loss, seed)
        makers[loss] = partial(ours, loss)
    measured = {}
    for label, make in makers.items():
        start = time.process_time()
        kernel, bias = make()
        seconds = time.process_time() - start
        predictions = np.argmax(test_x @ kernel + bias, axis=1)
        report = ct.metrics.accuracy_report(test_y, predictions, counts, data.info.bounds)
        values = [report["class_mean"], *(report["ranks"][g] for g in ("head", "medium", "tail"))]
        measured[label] = [*(100 * value for value in values), seconds]
    return measured


def main(argv):
    teacher = ct.Teacher.from_file(TEACHER.value, SIZE.value)
    print("| set | calibration | class mean | head | medium | tail | CPU s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in SETS.value or [*SETS_OF_TFDS, *LISTS]:
        measured = [measure(name, teacher, int(seed)) for seed in SEEDS.value]
        for label in measured[0]:
            values = np.array([of_seed[label] for of_seed in measured])
            mean, head, medium, tail, seconds = values.mean(axis=0)
            spread = f" ± {values[:, 0].std(ddof=1):.1f}" if len(values) > 1 else ""
            ranks = f"{head:.1f} | {medium:.1f} | {tail:.1f}"
            print(
                f"| {name} | {label} | {mean:.1f}{spread} | {ranks} | {seconds:.0f} |", flush=True
            )


if __name__ == "__main__":
    app.run(main)
