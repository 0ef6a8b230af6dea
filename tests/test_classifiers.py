import candle_tf as ct
import numpy as np
import pytest
import tensorflow as tf
from candle_tf import classifiers
from candle_tf.export.flatbuffer import to_lce, to_tflite

FEATURES = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
BUILDERS = pytest.mark.parametrize("build", [classifiers.linear, classifiers.scaled_linear])


def randomize(model):
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    return model


@BUILDERS
def test_formula(build):
    classifier = randomize(build(5, 3))
    kernel, bias, *scale = classifier.get_weights()
    assert kernel.shape == (5, 3) and len(scale) == (build is classifiers.scaled_linear)
    expected = (FEATURES @ kernel + bias) * (scale[0] if scale else 1.0)
    np.testing.assert_allclose(classifier(FEATURES), expected, rtol=1e-4, atol=1e-6)


@BUILDERS
def test_seed(build):
    first, same, other = (build(5, 3, seed)(FEATURES).numpy() for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1e-2


def test_scaling_starts_as_the_linear_classifier():
    scaled, plain = classifiers.scaled_linear(5, 3, seed=4), classifiers.linear(5, 3, seed=4)
    np.testing.assert_array_equal(scaled(FEATURES), plain(FEATURES))


def test_gradient_of_the_scale():
    classifier = randomize(classifiers.scaled_linear(5, 3))
    kernel, bias, _ = classifier.get_weights()
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(classifier(FEATURES))
    gradients = tape.gradient(total, classifier.trainable_variables)
    assert len(gradients) == 3
    np.testing.assert_allclose(gradients[2], (FEATURES @ kernel + bias).sum(0), rtol=1e-4)


@BUILDERS
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_save_and_reload(build, suffix, tmp_path):
    classifier = randomize(build(5, 3))
    classifier.save(tmp_path / f"classifier{suffix}")
    again = tf.keras.models.load_model(tmp_path / f"classifier{suffix}", compile=False)
    np.testing.assert_allclose(again(FEATURES), classifier(FEATURES), rtol=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0, 300.0])
def test_a_cosine_classifier_in_half_precision(size):
    whole = classifiers.CosineClassifier(3)
    half = classifiers.CosineClassifier(3, dtype="mixed_float16")
    features = size * np.ones((2, 5), np.float32)
    expected = whole(features)
    half(features)
    half.set_weights(whole.get_weights())
    np.testing.assert_allclose(half(features), expected, rtol=1e-2, atol=1e-3)


HOW = {"loss": None, "learning_rate": 0.1, "seed": 0}


class Recorder:
    """Keeps the labels that it is given in place of learning from them."""

    def compile(self, *args, **kwargs):
        pass

    def fit(self, batches, epochs, steps_per_epoch, verbose):
        drawn = [labels.numpy() for _, labels in batches.take(epochs * steps_per_epoch)]
        return np.concatenate(drawn).reshape(epochs, -1)


def test_a_last_batch_that_is_filled_up_stays_near_the_end():
    labels = np.repeat([0, 1], [945, 105])
    drawn = classifiers.fit_on_features(
        *(Recorder(), labels[:, None], labels),
        sampler="progressively_balanced",
        epochs=30,
        batch_size=500,
        **HOW,
    )
    assert drawn.shape == (30, 1500)
    np.testing.assert_allclose(drawn[-6:].mean(axis=1), 0.5, atol=0.05)


@pytest.mark.parametrize(
    "sampler, size, shares",
    [
        ("instance_balanced", 1000, [0.1, 0.1, 0.1, 0.1]),
        ("class_balanced", 1000, [0.5, 0.5, 0.5, 0.5]),
        ("progressively_balanced", 1000, [0.1, 0.2, 0.3, 0.4]),
        ("over_sampling", 1800, [0.5, 0.5, 0.5, 0.5]),
        ("under_sampling", 200, [0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_the_sampler_decides_what_an_epoch_takes(sampler, size, shares):
    labels = np.repeat([0, 1], [900, 100])
    features = np.zeros((1000, 2), np.float32)
    drawn = classifiers.fit_on_features(
        *(Recorder(), features, labels), sampler=sampler, epochs=4, batch_size=100, **HOW
    )
    assert drawn.shape == (4, size)
    np.testing.assert_allclose(drawn.mean(axis=1), shares, atol=0.05)


def cosine_student(num_classes=3):
    student = ct.students.resnet_e(num_classes, 16, width=0.125, blocks=(1,))
    features = student.get_layer("features").output
    logits = classifiers.CosineClassifier(num_classes, scale=8.0, name="logits")(features)
    return tf.keras.Model(student.input, logits, name="cosine_student")


def test_cosine_classifier_formula():
    layer = classifiers.CosineClassifier(3, scale=8.0)
    assert layer(FEATURES).shape == (4, 3) and len(layer.trainable_weights) == 1
    kernel = layer.kernel.numpy()
    cosine = np.array(
        [[x @ w / np.linalg.norm(x) / np.linalg.norm(w) for w in kernel.T] for x in FEATURES]
    )
    np.testing.assert_allclose(layer(FEATURES), 8 * cosine, rtol=1e-4, atol=1e-5)


def test_cosine_classifier_knows_no_norm():
    layer = classifiers.CosineClassifier(3)
    logits = layer(FEATURES).numpy()
    layer.set_weights([layer.kernel * [1.0, 20.0, 0.1]])
    np.testing.assert_allclose(layer(7 * FEATURES), logits, rtol=1e-4, atol=1e-5)
    layer.set_weights([FEATURES[:3].T])
    np.testing.assert_allclose(np.diag(layer(FEATURES[:3])), [30, 30, 30], rtol=1e-5)


def test_cosine_classifier_of_no_feature_has_finite_gradients():
    layer = classifiers.CosineClassifier(3)
    with tf.GradientTape() as tape:
        x = tf.zeros((2, 5))
        tape.watch(x)
        logits = layer(x)
        loss = tf.reduce_sum(logits**2)
    assert not np.any(logits)
    for gradient in tape.gradient(loss, [x, layer.kernel]):
        assert np.isfinite(gradient).all()


@pytest.fixture(scope="module")
def trained():
    """A student with a cosine classifier that fitted LDAM, its images, and how the loss fell."""
    tf.keras.utils.set_random_seed(0)
    images = np.random.default_rng(2).uniform(0, 255, (24, 16, 16, 3)).astype("float32")
    labels = np.repeat([0, 1, 2], [14, 7, 3])
    images[labels == 1] *= [1.0, 0.2, 0.2]
    images[labels == 2] *= [0.2, 0.2, 1.0]
    model = ct.StudentModel(cosine_student())
    model.compile(tf.keras.optimizers.Adam(1e-2), ct.losses.LDAM([14, 7, 3], scale=8.0))
    history = model.fit(images, labels, batch_size=24, epochs=20, verbose=0).history["loss"]
    return model, images, history


@pytest.mark.long
def test_a_student_with_a_cosine_classifier_trains_by_ldam(trained, tmp_path):
    model, images, history = trained
    assert history[-1] < 0.5 * history[0]
    model.save(tmp_path / "model.keras")
    again = tf.keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(again.loss, ct.losses.LDAM) and again.loss.scale == 8.0
    np.testing.assert_allclose(
        again.predict(images, verbose=0), model(images), rtol=1e-4, atol=1e-4
    )


@pytest.mark.long
def test_a_cosine_classifier_exports(trained, tmp_path):
    model, images, _ = trained
    expected = tf.nn.softmax(model(images)).numpy()
    assert np.ptp(expected, axis=0).max() > 0.1
    model.export(tmp_path / "saved_model")
    serve = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"]
    np.testing.assert_allclose(serve(images=images)["probabilities"], expected, atol=1e-4)


@pytest.mark.long
@pytest.mark.filterwarnings(r"ignore:\s*Warning. tf.lite.Interpreter is deprecated:UserWarning")
def test_a_cosine_classifier_converts_for_devices(trained):
    from larq_compute_engine.tflite.python.interpreter import Interpreter

    model, images, _ = trained
    expected = tf.nn.softmax(model(images[:1])).numpy()
    interpreter = tf.lite.Interpreter(model_content=to_tflite(model.student, 16))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images[:1])
    interpreter.invoke()
    answer = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(answer, expected, atol=1e-3)
    answer = Interpreter(to_lce(model.student, 16)).predict(images[:1])
    np.testing.assert_allclose(answer, expected, atol=1e-3)


@BUILDERS
def test_weight_norms(build):
    classifier = randomize(build(5, 3))
    kernel, _, *scale = classifier.get_weights()
    factors = scale[0] if scale else np.ones(3)
    expected = [abs(f) * np.sqrt((column**2).sum()) for f, column in zip(factors, kernel.T)]
    np.testing.assert_allclose(classifiers.weight_norms(classifier), expected, rtol=1e-5)


def test_another_kind_of_classifier_has_no_weight_norms():
    images = tf.keras.Input((4, 4, 3))
    logits = tf.keras.layers.GlobalAveragePooling2D()(tf.keras.layers.Conv2D(10, 3)(images))
    assert classifiers.weight_norms(tf.keras.Model(images, logits)) is None
