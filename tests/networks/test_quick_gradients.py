"""Gradients of convolutions as convolutions: equal to TensorFlow's, in each layer of a student."""

import candle_tf
import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.networks import quick_gradients
from candle_tf.networks.quick_gradients import MOST_PLACES, quicken
from tf_keras import layers

SIGNS = {"input_quantizer": "fused_approx_sign", "kernel_quantizer": "ste_sign"}
CASES = [
    (size, kernel, stride, padding, value)
    for size in ((8, 8), (7, 10), (5, 6))
    for kernel, stride in ((1, 1), (2, 1), (3, 1), ((5, 3), 1), (2, 2), (3, 2), ((4, 5), 2), (3, 3))
    for padding, value in (("same", 0.0), ("same", 1.0), ("valid", 0.0))
]


def network(size, quick, kind=lq.layers.QuantConv2D, **arguments):
    """Returns a network of one convolution with fixed weights, whose gradient is quick or not."""
    inputs = layers.Input((*size, 6))
    made = tf.keras.Model(inputs, kind(4, use_bias=False, **arguments)(inputs))
    rng = np.random.default_rng(1)
    made.set_weights([rng.uniform(-1, 1, w.shape) for w in made.get_weights()])
    if quick:
        quicken(made)
    return made


def outputs_and_gradients(model, images, traced=True):
    def step(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            y = model(images)
            places = tf.cast(tf.reshape(tf.range(tf.size(y)), tf.shape(y)), y.dtype)
            loss = tf.reduce_sum(y * tf.sin(places))
        return y, *tape.gradient(loss, [images, *model.trainable_variables])

    return (tf.function(step, autograph=False) if traced else step)(tf.convert_to_tensor(images))


def pixels(*size):
    return np.random.default_rng(0).normal(size=(2, *size, 6)).astype(np.float32)


def check_equal(model, reference, images, **kwargs):
    ours = outputs_and_gradients(model, images, **kwargs)
    for a, b in zip(ours, outputs_and_gradients(reference, images, **kwargs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size, kernel, stride, padding, value", CASES)
def test_gradients_equal_tensorflows(size, kernel, stride, padding, value):
    how = {"kernel_size": kernel, "strides": stride, "padding": padding, "pad_values": value}
    model, reference = (network(size, quick, **how, **SIGNS) for quick in (True, False))
    check_equal(model, reference, pixels(*size), traced=False)


def convolved(x, kernel, pad):
    """Returns the sums of a 3x3 convolution, written out in NumPy."""
    x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=pad)
    rows, columns = x.shape[1] - 2, x.shape[2] - 2
    parts = [x[:, i : i + rows, j : j + columns] @ kernel[i, j] for i in range(3) for j in range(3)]
    return np.sum(parts, axis=0)


def test_the_input_gradient_equals_differences_of_numpys_sums():
    model = network((4, 5), True, kernel_size=3, padding="same", pad_values=1.0)
    x, kernel = pixels(4, 5).astype(np.float64), model.get_weights()[0].astype(np.float64)
    y, gradient, _ = outputs_and_gradients(model, x.astype(np.float32))
    weights = np.sin(np.arange(y.numpy().size).reshape(y.shape))
    np.testing.assert_allclose(y, convolved(x, kernel, 1.0), atol=1e-5)
    for place in [(0, 0, 0, 0), (0, 3, 4, 5), (1, 1, 2, 3), (1, 0, 4, 2)]:
        moved = x.copy()
        moved[place] += 1.0  # a convolution is linear: the difference is the gradient
        difference = convolved(moved, kernel, 1.0) - convolved(x, kernel, 1.0)
        np.testing.assert_allclose(gradient[place], np.sum(weights * difference), atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_any_size_at_run_time(stride):
    how = {"kernel_size": 3, "strides": stride, "padding": "same", "pad_values": 1.0}
    model, reference = (network((None, None), quick, **how, **SIGNS) for quick in (True, False))
    for size in ((8, 8), (7, 10)):
        check_equal(model, reference, pixels(*size))


def test_half_precision():
    how = {"kind": layers.Conv2D, "kernel_size": 3, "padding": "same", "dtype": "mixed_bfloat16"}
    model, reference = (network((6, 6), quick, **how) for quick in (True, False))
    images = tf.cast(pixels(6, 6), tf.bfloat16)
    ours, theirs = (outputs_and_gradients(m, images) for m in (model, reference))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(tf.cast(a, "float32"), tf.cast(b, "float32"), atol=0.1)


def traced_operations(model, images):
    step = tf.function(lambda x: outputs_and_gradients(model, x, traced=False), autograph=False)
    graph = step.get_concrete_function(tf.constant(images)).graph
    return [operation.type for operation in graph.get_operations()]


@pytest.mark.parametrize(
    "arguments, size, quick",
    [
        ({"kernel_size": 3}, (8, 8), True),
        ({"kernel_size": 3, "strides": 2}, (17, 17), True),
        ({"kernel_size": 3, "strides": 2}, (35, 35), False),  # more than MOST_PLACES outputs
        ({"kernel_size": 1, "strides": 2}, (8, 8), False),
        ({"kernel_size": 3, "groups": 2}, (8, 8), False),
        ({"kernel_size": 3, "dilation_rate": 2}, (8, 8), False),
        ({"kernel_size": 3, "kind": layers.Conv2D}, (8, 8), True),
        ({"kernel_size": 3, "kind": layers.Conv2DTranspose}, (8, 8), False),
    ],
)
def test_which_layers_change(arguments, size, quick):
    assert MOST_PLACES == 64
    model = network(size, True, **arguments)
    changed = any("convolution_op" in vars(layer) for layer in model.layers)
    operations = traced_operations(model, pixels(*size))
    transposes = arguments.get("kind") == layers.Conv2DTranspose
    assert quick == (changed and "Conv2DBackpropInput" not in operations) or transposes
    assert not (transposes and changed)


def test_nothing_changes_beside_a_gpu(monkeypatch):
    found = tf.config.list_physical_devices() + [tf.config.PhysicalDevice("/gpu:0", "GPU")]
    monkeypatch.setattr(
        quick_gradients.tf.config, "list_physical_devices", lambda: found, raising=True
    )
    model = network((8, 8), True, kernel_size=3)
    assert not any("convolution_op" in vars(layer) for layer in model.layers)


@pytest.mark.long
def test_a_student_takes_them_in_every_training_and_is_saved_as_before(tmp_path):
    student = candle_tf.students.resnet_e(3, 16, width=0.125, blocks=(2, 1))
    before = student.get_config()
    images = np.random.default_rng(0).uniform(0, 255, (4, 16, 16, 3)).astype(np.float32)
    outputs = student.predict(images, verbose=0)
    for _ in range(2):  # the second model finds the layers as the first one left them
        model = candle_tf.StudentModel(student)
        np.testing.assert_array_equal(student.predict(images, verbose=0), outputs)
    assert student.get_config() == before
    assert "Conv2DBackpropInput" not in traced_operations(model.student, images)
    model.compile()
    model.fit(images, np.array([0, 1, 2, 0]), verbose=0)
    student.save(tmp_path / "student.keras")
    again = tf.keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(
        again.predict(images, verbose=0), student.predict(images, verbose=0)
    )


@tf.keras.utils.register_keras_serializable("tests")
class Doubled(layers.Layer):
    """Doubles its input by an operation whose gradient has no static shape."""

    def call(self, x):
        y = tf.py_function(lambda a: 2 * a, [x], tf.float32)
        y.set_shape(x.shape)
        return y


@tf.keras.utils.register_keras_serializable("tests")
class TwoViews(layers.Layer):
    """Convolves inputs with two batch dimensions."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convolution = layers.Conv2D(4, 3, padding="same")

    def call(self, x):
        return tf.reduce_mean(self.convolution(tf.stack([x, 2 * x], axis=1)), axis=1)


@pytest.mark.parametrize("last", [Doubled, TwoViews])
def test_layers_of_unusual_shapes_still_train(last):
    inputs = layers.Input((9, 9, 3))
    x = last()(layers.Conv2D(4, 3, strides=2)(inputs))
    x = layers.GlobalAveragePooling2D(name="features")(x)
    model = candle_tf.StudentModel(tf.keras.Model(inputs, layers.Dense(2)(x)))
    before = [w.copy() for w in model.get_weights()]
    model.compile("sgd", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(255 * np.random.default_rng(0).random((2, 9, 9, 3)), np.array([0, 1]))
    assert any(np.any(a != b) for a, b in zip(before, model.get_weights()))
