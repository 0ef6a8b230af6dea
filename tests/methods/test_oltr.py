"""OLTR's head and losses against NumPy, and its student through every export."""

import numpy as np
import pytest
import tensorflow as tf
from candle_tf import StudentModel
from candle_tf.export.interpreters import lce_interpreter
from candle_tf.methods.oltr import (
    MetaEmbedding,
    OltrModel,
    SquashedCosine,
    large_margin_loss,
    with_meta_embedding,
)
from candle_tf.students import resnet_e

SIZE, CLASSES, WIDTH = 16, 4, 32
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 255, (8, 1, 1, 3)) * RNG.uniform(0, 1, (8, SIZE, SIZE, 3))
IMAGES = IMAGES.astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 3])
FEATURES = RNG.normal(size=(8, 5)).astype(np.float32)
CENTROIDS = RNG.normal(size=(CLASSES, 5)).astype(np.float32)
DISTANCES = np.linalg.norm(FEATURES[:, None] - CENTROIDS, axis=-1)


def first_student():
    tf.keras.utils.set_random_seed(1)
    return resnet_e(CLASSES, SIZE, width=0.25, blocks=(1, 1))


def oltr_student():
    centroids = RNG.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    return with_meta_embedding(first_student(), centroids)


def random_embedding() -> MetaEmbedding:
    layer = MetaEmbedding(CLASSES)
    layer.build((None, 5))
    layer.set_weights([RNG.normal(size=w.shape) for w in layer.get_weights()])
    layer.centroids.assign(CENTROIDS)
    return layer


def test_the_meta_embedding_follows_the_formula():
    layer = random_embedding()
    hallucinated = FEATURES @ layer.hallucinator.kernel.numpy() + layer.hallucinator.bias.numpy()
    o = np.exp(hallucinated)
    recalled = o / o.sum(1, keepdims=True) @ CENTROIDS
    e = np.tanh(FEATURES @ layer.selector.kernel.numpy() + layer.selector.bias.numpy())
    reachability = 10 / DISTANCES.min(1, keepdims=True)
    expected = reachability * (FEATURES + e * recalled)
    np.testing.assert_allclose(layer(FEATURES), expected, rtol=1e-4, atol=1e-4)


def test_with_a_zero_concept_selector_it_is_the_direct_feature_by_reachability():
    layer = random_embedding()
    for variable in layer.selector.weights:
        variable.assign(tf.zeros_like(variable))
    expected = FEATURES * 10 / DISTANCES.min(1, keepdims=True)
    np.testing.assert_allclose(layer(FEATURES), expected, rtol=1e-4)


def test_gradients_are_finite_on_a_centroid_and_do_not_reach_the_memory():
    layer = random_embedding()
    features = tf.Variable(np.concatenate([CENTROIDS, np.zeros((1, 5), np.float32)]))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(SquashedCosine(3)(layer(features)) ** 2)
    of_features, *others = tape.gradient(loss, [features, *layer.trainable_variables])
    assert np.isfinite(of_features).all() and np.abs(of_features).max() > 0
    reached = [v.name for v, g in zip(layer.trainable_variables, others) if g is not None]
    assert len(reached) == 4 and not any("centroids" in name for name in reached)


def test_the_classifier_is_a_cosine_damped_by_a_small_norm():
    classifier = SquashedCosine(3, scale=16.0)
    logits = classifier(FEATURES)
    w = classifier.kernel.numpy()
    norm = np.linalg.norm(FEATURES, axis=1, keepdims=True)
    cosine = FEATURES @ w / norm / np.linalg.norm(w, axis=0)
    np.testing.assert_allclose(logits, 16 * norm / (1 + norm) * cosine, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(classifier(1e4 * FEATURES), 16 * cosine, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("margin", [0.0, 10.0, 100.0])
def test_the_large_margin_loss_follows_the_formula(margin):
    squares = DISTANCES**2
    own = squares[range(8), LABELS]
    expected = own.mean() / 2 + 0.01 * max(0, margin - (squares.sum() - own.sum()) / (8 * CLASSES))
    loss = large_margin_loss(FEATURES, LABELS, CENTROIDS, margin)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_stage_2_starts_from_stage_1():
    first = StudentModel(first_student()).student  # whose layers serve several networks
    centroids = RNG.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    second = with_meta_embedding(first, centroids)
    embedding = second.get_layer("meta_embedding")
    features = tf.keras.Model(second.input, embedding.input)(IMAGES)
    kernel, bias = first.get_layer("logits").get_weights()
    np.testing.assert_allclose(features @ kernel + bias, first(IMAGES), atol=1e-5)
    np.testing.assert_array_equal(embedding.centroids, centroids)
    np.testing.assert_array_equal(embedding.hallucinator.kernel, kernel)
    assert second.layers[-1].name == "logits"


@pytest.mark.long
def test_training_lowers_the_loss_of_its_formula():
    model = OltrModel(oltr_student(), weight=0.5)
    model.compile(tf.keras.optimizers.Adam(1e-2), metrics=["accuracy"])
    start = model.memory().numpy()
    batch = tf.data.Dataset.from_tensors((IMAGES, LABELS)).repeat(10)
    history = model.fit(batch, epochs=3, validation_data=(IMAGES, LABELS), verbose=0).history
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert np.abs(model.memory().numpy() - start).max() > 0.01, "the memory does not learn"

    features = model.halves.embed(IMAGES, training=True)
    log_p = tf.nn.log_softmax(model.halves.classify(features, training=True)).numpy()
    margin = large_margin_loss(features, LABELS, model.memory())
    loss, _ = model.objective(IMAGES, tf.constant(LABELS), None)
    expected = -log_p[range(8), LABELS].mean() + 0.5 * margin
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.fixture(scope="module")
def trained():
    model = OltrModel(oltr_student(), resolutions=(12, 16, 20), weight=0.2, seed=3)
    model.compile("adam")
    model.fit(IMAGES, LABELS, epochs=3, verbose=0)
    return model


@pytest.mark.long
def test_what_is_saved_or_checkpointed_has_the_same_logits(trained, tmp_path):
    trained.save(tmp_path / "model.keras")
    path = tf.train.Checkpoint(**trained.trained_parts()).save(str(tmp_path / "checkpoint"))
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is OltrModel and loaded.weight == 0.2
    resumed = OltrModel(oltr_student(), resolutions=(12, 16, 20), weight=0.2, seed=3)
    resumed.compile("adam")
    tf.train.Checkpoint(**resumed.trained_parts()).restore(path).assert_consumed()
    for other in (loaded, resumed):
        np.testing.assert_array_equal(other.student(IMAGES), trained.student(IMAGES))
        assert int(other.optimizer.iterations) == int(trained.optimizer.iterations) == 3


@pytest.mark.long
def test_exports_give_the_students_probabilities(trained, tmp_path):
    expected = tf.nn.softmax(trained.predict(IMAGES, verbose=0)).numpy()
    trained.export(tmp_path / "saved_model")
    signature = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"]
    served = signature(images=tf.constant(IMAGES))["probabilities"]
    np.testing.assert_allclose(served, expected, atol=1e-5)
    pytest.importorskip("larq_compute_engine")
    trained.export(tmp_path / "student.tflite", format="lce")
    _, predict = lce_interpreter((tmp_path / "student.tflite").read_bytes())
    found = np.concatenate([predict(image[None]) for image in IMAGES])
    np.testing.assert_allclose(found, expected, atol=1e-3)


def without_dense_head():
    student = first_student()
    softmax = tf.keras.layers.Softmax(name="softmax")(student.output)
    return tf.keras.Model(student.input, softmax)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: OltrModel(first_student()), "has no meta-embedding: give with_meta_emb"),
        (lambda: with_meta_embedding(without_dense_head(), np.zeros((4, 32))), "end in a Dense"),
        (lambda: with_meta_embedding(first_student(), np.zeros((4, 31))), r"\(4, 31\) .* 32 feat"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
