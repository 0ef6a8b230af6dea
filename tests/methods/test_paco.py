"""PaCo's loss and step against NumPy and against what the paper states."""

import json

import numpy as np
import pytest
import tensorflow as tf
from candle_tf.losses import BalancedSoftmax, log_prior
from candle_tf.methods.paco import KeyQueue, PacoModel, paco_loss
from candle_tf.students import resnet_e

layers = tf.keras.layers
SIZE, CLASSES, COUNTS = 16, 4, [40, 20, 10, 5]
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 255, (8, 1, 1, 3)) * RNG.uniform(0, 1, (8, SIZE, SIZE, 3))
VIEWS = IMAGES.astype("f"), IMAGES[:, :, ::-1].astype("f")
LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 0])


def smooth_student():
    """No quantizers and no batch norm: what it computes can be followed."""
    tf.keras.utils.set_random_seed(1)
    return tf.keras.Sequential(
        [
            tf.keras.Input((SIZE, SIZE, 3)),
            layers.Rescaling(1 / 127.5, -1.0),
            layers.Conv2D(6, 3, 4, activation="tanh"),
            layers.GlobalAveragePooling2D(name="features"),
            layers.Dense(CLASSES, name="logits"),
        ]
    )


def binary_student():
    tf.keras.utils.set_random_seed(1)
    return resnet_e(CLASSES, SIZE, width=0.25, blocks=(1, 1))


def make_model(student=smooth_student, lr=0.1, run_eagerly=True, **kwargs) -> PacoModel:
    model = PacoModel(student(), COUNTS, **{"queue_size": 20, "projection_width": 5, **kwargs})
    model.compile(tf.keras.optimizers.SGD(lr), metrics=["accuracy"], run_eagerly=run_eagerly)
    return model


def batches(count: int = 4) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors((VIEWS, LABELS)).repeat(count)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference(logits, queries, labels, samples, sample_labels, alpha, temperature):
    """Equations 3 to 5, an example and a sample at a time."""
    prior = np.log(np.array(COUNTS) / sum(COUNTS))
    losses = []
    for i, label in enumerate(labels):
        scores = {("center", c): logits[i][c] + prior[c] for c in range(CLASSES)}
        weights = {("center", label): 1.0}
        for j, sample in enumerate(samples):
            if j != i and sample_labels[j] >= 0:
                scores["sample", j] = queries[i] @ sample / temperature
                if sample_labels[j] == label:
                    weights["sample", j] = alpha
        log_sum = np.log(sum(np.exp(s) for s in scores.values()))
        log_p = sum(w * (scores[z] - log_sum) for z, w in weights.items())
        losses.append(-log_p / sum(weights.values()))
    return np.array(losses)


def random_case(samples: int = 12):
    queries = unit(RNG.normal(size=(8, 5)))
    others = unit(RNG.normal(size=(samples, 5)))
    sample_labels = np.concatenate([LABELS, RNG.integers(-1, CLASSES, samples)])
    logits = RNG.normal(size=(8, CLASSES))
    return logits, queries, LABELS, np.concatenate([queries, others]), sample_labels


@pytest.mark.parametrize("alpha, temperature", [(0.02, 0.2), (1.0, 0.05), (0.0, 1.0)])
def test_the_loss_follows_the_equations(alpha, temperature):
    case = random_case()
    loss = paco_loss(*map(tf.constant, case), log_prior(COUNTS), alpha, temperature)
    np.testing.assert_allclose(loss, reference(*case, alpha, temperature), rtol=1e-4)


def test_without_samples_and_alpha_it_is_balanced_softmax():
    logits, queries, labels, samples, sample_labels = random_case()
    nobody = np.full_like(sample_labels, -1)
    loss = paco_loss(logits, queries, labels, samples, nobody, log_prior(COUNTS), alpha=0.0)
    balanced = BalancedSoftmax(COUNTS, reduction="none")(labels, tf.constant(logits, tf.float32))
    np.testing.assert_allclose(loss, balanced, rtol=1e-5)


def test_at_the_optimum_a_center_has_probability_1_over_1_plus_alpha_k():
    """As the paper remarks, and alpha / (1 + alpha K) each of its K positive samples."""
    alpha, k, temperature = 0.05, 6, 0.5
    query, keys = np.float32([[1, 0]]), np.float32([[1, 0]] * k)
    center = tf.Variable([[1 / temperature - np.log(alpha)]], dtype=tf.float32)  # exp(s) like w
    with tf.GradientTape() as tape:
        samples, sample_labels = np.concatenate([query, keys]), np.zeros(1 + k, np.int64)
        arguments = (query, np.zeros(1, np.int64), samples, sample_labels, np.zeros(1, np.float32))
        loss = paco_loss(center, *arguments, alpha, temperature)
    np.testing.assert_allclose(tape.gradient(loss, center), 0.0, atol=1e-6)
    p = np.array([1.0] + [alpha] * k) / (1 + alpha * k)
    np.testing.assert_allclose(loss, [-np.sum(p * np.log(p))], rtol=1e-5)


def test_the_queue_is_first_in_first_out():
    queue = KeyQueue(5)
    queue.build((None, 2))
    assert queue.labels.numpy().tolist() == [-1] * 5, "an empty place would count as a class"
    for first in (0, 3, 6):
        labels = np.arange(first, first + 3)
        queue.push(np.float32([labels, labels]).T, labels)
    assert queue.labels.numpy().tolist() == [6, 7, 8, 3, 4]
    np.testing.assert_array_equal(queue.keys, np.float32([[6, 7, 8, 3, 4]] * 2).T)
    queue.push(np.zeros((7, 2), np.float32), np.arange(7))
    assert queue.labels.numpy().tolist() == [0, 1, 2, 3, 4]


def project(model, images, key: bool):
    """Unit vectors of the smooth student, written out from its weights."""
    student = model.key_model.student if key else model.student
    mlp = model.key_projection if key else model.projection
    *encoder, classifier = student.layers
    x = images
    for layer in encoder:
        x = layer(x)
    w, b, v, c = mlp.get_weights()
    return unit(np.maximum(x.numpy() @ w + b, 0) @ v + c), classifier(x).numpy()


def test_a_step_compares_queries_keys_and_queue():
    model = make_model(lr=0.0, alpha=0.1, temperature=0.2)
    # Another network than the student's, or keys and queries could be confused.
    model.key_model.student.layers[1].kernel.assign_add(tf.random.normal((3, 3, 3, 6)))
    model.momentum = 1.0
    queries, logits = project(model, VIEWS[0], key=False)
    keys, _ = project(model, VIEWS[1], key=True)
    samples, sample_labels = np.concatenate([queries, keys]), np.tile(LABELS, 2)
    for _ in range(2):  # with an empty queue, then with the keys of the first step in it
        expected = reference(logits, queries, LABELS, samples, sample_labels, 0.1, 0.2).mean()
        model.reset_metrics()
        logs = model.train_on_batch(VIEWS, LABELS, return_dict=True)
        np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4)
        samples, sample_labels = np.concatenate([samples, keys]), np.tile(LABELS, 3)
    np.testing.assert_array_equal(model.queue.labels, np.concatenate([LABELS, LABELS, [-1] * 4]))
    np.testing.assert_allclose(model.queue.keys[8:16], keys, atol=1e-5)


def test_the_key_encoder_is_the_moving_average_of_the_query_encoder():
    model = make_model(lr=1.0, momentum=0.75)
    start = [v.numpy() for v in model.descending_variables()]
    for key, query in zip(model.key_variables()[:-4], start):
        np.testing.assert_array_equal(key, query)
    model.train_on_batch(VIEWS, LABELS)
    first = [v.numpy() for v in model.descending_variables()]
    keys = [v.numpy() for v in model.key_variables()]
    assert max(np.abs(a - b).max() for a, b in zip(start, first)) > 0.01
    for key, query in zip(keys, start):  # it follows at the beginning of a step
        np.testing.assert_allclose(key, query, atol=1e-6)
    model.train_on_batch(VIEWS, LABELS)
    for new, key, query in zip(model.key_variables(), keys, first):
        np.testing.assert_allclose(new, 0.75 * key + 0.25 * query, atol=1e-6)


@pytest.mark.long
def test_training_lowers_the_loss_and_evaluates_single_images(tmp_path):
    model = make_model(binary_student, resolutions=(12, 16, 20))
    model.compile(tf.keras.optimizers.Adam(1e-2), metrics=["accuracy"])
    history = model.fit(batches(10), epochs=3, validation_data=(VIEWS[0], LABELS), verbose=0)
    history = history.history
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    logits = model.student(VIEWS[0]).numpy()
    log_p = tf.nn.log_softmax(logits).numpy()
    np.testing.assert_allclose(history["val_loss"][-1], -log_p[range(8), LABELS].mean(), rtol=1e-4)

    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.student(VIEWS[0]), logits, atol=1e-5)


def test_what_is_saved_or_checkpointed_goes_on_as_if_never_stopped(tmp_path):
    model = make_model()
    model.fit(batches(), verbose=0)
    model.save(tmp_path / "model.keras")
    path = tf.train.Checkpoint(**model.trained_parts()).save(str(tmp_path / "checkpoint"))
    resumed = make_model()
    tf.train.Checkpoint(**resumed.trained_parts()).restore(path).assert_consumed()
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is PacoModel
    expected = model.fit(batches(), verbose=0).history["loss"]
    for other in (loaded, resumed):
        assert other.fit(batches(), verbose=0).history["loss"] == pytest.approx(expected)
        for ours, theirs in zip(model.key_variables(), other.key_variables()):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
        np.testing.assert_array_equal(other.queue.labels, model.queue.labels)
        np.testing.assert_allclose(other.queue.keys, model.queue.keys, atol=1e-5)


def test_config_rebuilds_the_model():
    own = {"alpha": 0.3, "temperature": 0.4, "momentum": 0.5, "queue_size": 6}
    own |= {"projection_width": 7, "seed": 8}
    config = json.loads(json.dumps(make_model(**own).get_config()))
    rebuilt = PacoModel.from_config(config)
    assert {name: rebuilt.get_config()[name] for name in own} == own
    np.testing.assert_allclose(rebuilt.log_prior, np.log(np.array(COUNTS) / 75), rtol=1e-5)


@pytest.mark.long
def test_a_distribution_strategy_steps_as_none_does():
    losses = []
    for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0"])):
        with strategy.scope():
            model = make_model(run_eagerly=False)
        losses.append([model.fit(batches(3), verbose=0).history["loss"][0] for _ in range(2)])
        assert model.queue.labels.numpy().tolist() == [*LABELS, *LABELS, *LABELS[:4]]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_class_counts_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="class_counts has 3 classes but the student has 4"):
        PacoModel(smooth_student(), [3, 2, 1])
