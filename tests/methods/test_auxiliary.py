"""The auxiliary terms in training: their weight, their gradient, their way through a file."""

import numpy as np
import pytest
import tensorflow as tf
from candle_tf import StudentModel
from candle_tf.methods.auxiliary import TERMS, AuxiliaryModel
from candle_tf.students import resnet_e

SIZE, CLASSES = 16, 4
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 255, (8, 1, 1, 3)) * RNG.uniform(0, 1, (8, SIZE, SIZE, 3))
IMAGES = IMAGES.astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 3])
EACH_TERM = pytest.mark.parametrize("term", TERMS)


def smooth_student():
    """No quantizers and no batch norm: a step does not change what its own gradient meant."""
    tf.keras.utils.set_random_seed(1)
    return tf.keras.Sequential(
        [
            tf.keras.Input((SIZE, SIZE, 3)),
            tf.keras.layers.Rescaling(1 / 127.5, -1.0),
            tf.keras.layers.Conv2D(6, 3, 4, activation="tanh"),
            tf.keras.layers.GlobalAveragePooling2D(name="features"),
            tf.keras.layers.Dense(CLASSES, name="logits"),
        ]
    )


def binary_student():
    tf.keras.utils.set_random_seed(1)
    return resnet_e(CLASSES, SIZE, width=0.25, blocks=(1, 1))


@pytest.mark.long
@EACH_TERM
def test_a_step_descends_on_the_cross_entropy_and_the_weighted_term(term, assert_descends):
    model = AuxiliaryModel(smooth_student(), term, weight=0.3)
    model.compile(tf.keras.optimizers.SGD(1.0))
    *encoder, classifier = model.student.layers
    with tf.GradientTape() as tape:
        features = IMAGES
        for layer in encoder:
            features = layer(features)
        log_p = tf.nn.log_softmax(classifier(features))
        loss = -tf.reduce_mean(tf.gather(log_p, LABELS, batch_dims=1))
        loss += 0.3 * TERMS[term](features, LABELS)
    gradients = tape.gradient(loss, model.student.trainable_variables)
    assert_descends(model, IMAGES, LABELS, loss, gradients)


@EACH_TERM
def test_with_weight_zero_it_is_the_student_alone(term):
    trained = []
    for model in (
        AuxiliaryModel(smooth_student(), term, weight=0.0),
        StudentModel(smooth_student()),
    ):
        model.compile(tf.keras.optimizers.SGD(0.5), run_eagerly=True)
        model.train_on_batch(IMAGES, LABELS)
        trained.append(model.student.get_weights())
    for ours, theirs in zip(*trained):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.long
@EACH_TERM
def test_the_term_draws_classes_together_and_apart(term):
    """The spread within the classes shrinks against that of the whole batch."""

    def spread(weight):
        model = AuxiliaryModel(smooth_student(), term, weight)
        model.compile(tf.keras.optimizers.SGD(0.05))
        batch = tf.data.Dataset.from_tensors((IMAGES, LABELS)).repeat(30)
        model.fit(batch, verbose=0)
        features = model.halves.embed(IMAGES, training=False).numpy()
        within = features[:4] - features[4:]  # the two images of each class
        return np.sum(within**2) / np.sum((features - features.mean(0)) ** 2)

    assert spread(1.0) < 0.9 * spread(0.0)


@pytest.mark.long
def test_training_lowers_the_loss_and_a_file_keeps_the_model(tmp_path):
    model = AuxiliaryModel(binary_student(), "range", weight=0.1, resolutions=(12, 16, 20), seed=5)
    model.compile(tf.keras.optimizers.Adam(1e-2), metrics=["accuracy"])
    batch = tf.data.Dataset.from_tensors((IMAGES, LABELS)).repeat(10)
    history = model.fit(batch, epochs=3, verbose=0).history
    assert set(history) == {"loss", "accuracy"}
    assert history["loss"][-1] < 0.7 * history["loss"][0]

    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is AuxiliaryModel
    assert (loaded.term, loaded.weight, loaded.resolution.seed) == ("range", 0.1, 5)
    np.testing.assert_array_equal(loaded.student(IMAGES), model.student(IMAGES))
    assert int(loaded.optimizer.iterations) == 30

    path = tf.train.Checkpoint(**model.trained_parts()).save(str(tmp_path / "checkpoint"))
    resumed = AuxiliaryModel(binary_student(), "range", weight=0.1)
    resumed.compile(tf.keras.optimizers.Adam(1e-2))
    tf.train.Checkpoint(**resumed.trained_parts()).restore(path).assert_consumed()
    np.testing.assert_array_equal(resumed.student(IMAGES), model.student(IMAGES))


def test_an_unknown_term_is_refused():
    with pytest.raises(ValueError, match="Unknown auxiliary term 'lifted': did you mean 'lifted_s"):
        AuxiliaryModel(smooth_student(), "lifted", 0.1)
