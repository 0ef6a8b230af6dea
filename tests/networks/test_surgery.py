import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.networks.surgery import (
    any_size,
    at_policy,
    check_size,
    fold_batch_norm,
    split_at_features,
)

layers = tf.keras.layers
RNG = np.random.default_rng(0)


def images(height=16, width=16):
    return tf.constant(RNG.uniform(0, 255, (2, height, width, 3)), tf.float32)


def network(*head, size=16, name="features"):
    x = inputs = tf.keras.Input((size, size, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same")(x)
    x = layers.BatchNormalization()(x)
    for layer in head or [layers.GlobalAveragePooling2D(name=name)]:
        x = layer(x)
    return tf.keras.Model(inputs, layers.Dense(2)(x))


def sequential():
    return tf.keras.Sequential(
        [
            tf.keras.Input((16, 16, 3)),
            layers.Conv2D(4, 3),
            layers.GlobalAveragePooling2D(name="features"),
            layers.Dense(2),
        ]
    )


def test_at_policy_reaches_a_network_in_the_network():
    whole = tf.keras.Sequential([tf.keras.Input((16, 16, 3)), network()])
    rounded = at_policy(whole, "mixed_bfloat16")
    inner = rounded.layers[0]
    assert {layer.compute_dtype for layer in inner.layers[1:]} == {"bfloat16"}
    assert inner.input.dtype == tf.float32
    batch = tf.constant(np.random.default_rng(1).uniform(0, 255, (2, 16, 16, 3)), tf.float32)
    np.testing.assert_allclose(rounded(batch), whole(batch), rtol=0.1, atol=1.0)


def test_at_policy_changes_how_a_network_computes_not_what():
    model = network()
    batch = tf.constant(np.random.default_rng(1).uniform(0, 255, (2, 16, 16, 3)), tf.float32)
    rounded = at_policy(model, "mixed_bfloat16")
    assert {layer.compute_dtype for layer in rounded.layers[1:]} == {"bfloat16"}
    assert {w.dtype for w in rounded.weights} == {tf.float32}
    logits = tf.cast(rounded(batch), tf.float32)
    np.testing.assert_allclose(logits, model(batch), rtol=0.03, atol=0.03)
    assert (logits.numpy() != model(batch).numpy()).any()
    np.testing.assert_array_equal(at_policy(rounded, "float32")(batch), model(batch))


@pytest.mark.parametrize("build", [network, sequential])
def test_any_size(build):
    model = build()
    rewired = any_size(model)
    assert rewired.input_shape == (None, None, None, 3)
    assert [id(w) for w in rewired.weights] == [id(w) for w in model.weights]
    batch = images()
    np.testing.assert_allclose(rewired(batch), model(batch), rtol=1e-5)
    assert rewired(images(24, 10)).shape == (2, 2)


def nested():
    return tf.keras.Sequential([tf.keras.Input((8, 8, 4)), layers.Conv2D(4, 3)])


@pytest.mark.parametrize(
    "head",
    [
        lambda: [layers.Flatten(name="features")],
        lambda: [layers.Flatten(), layers.Dense(5, name="features")],
        lambda: [layers.Reshape((256,)), layers.Dense(5, name="features")],
        lambda: [nested(), layers.GlobalAveragePooling2D(name="features")],
    ],
    ids=["flatten", "flatten and dense", "reshape", "nested of fixed size"],
)
@pytest.mark.parametrize("rewire", [any_size, split_at_features])
def test_networks_of_one_size_are_refused(head, rewire):
    with pytest.raises(ValueError, match="size"):
        rewire(network(*head()))


@pytest.mark.parametrize("build", [network, sequential])
def test_split_at_features(build):
    student = build()
    batch = images()
    for _ in range(2):
        encoder, classifier = split_at_features(student)
        assert encoder(batch).shape == (2, 4)
        np.testing.assert_allclose(classifier(encoder(batch)), student(batch), rtol=1e-5)
        assert classifier(encoder(images(24, 24))).shape == (2, 2)
    kernel, *_ = student.trainable_variables
    kernel.assign(kernel * 2.0)
    np.testing.assert_allclose(classifier(encoder(batch)), student(batch), rtol=1e-5)


def test_batch_norm_of_the_split_trains_the_student():
    student = network()
    encoder, _ = split_at_features(student)
    before = student.layers[2].moving_mean.numpy()
    encoder(images(), training=True)
    assert np.abs(student.layers[2].moving_mean - before).max() > 0.1


def test_a_student_without_features_is_refused():
    with pytest.raises(ValueError, match="no layer named 'features'"):
        split_at_features(network(name="pooled"))


def strided(padding="same", after=()):
    x = inputs = tf.keras.Input((32, 32, 3))
    for _ in range(3):
        x = layers.Conv2D(4, 3, strides=2, padding=padding)(x)
    x = layers.GlobalAveragePooling2D()(x)
    for layer in after:
        x = layer(x)
    return any_size(tf.keras.Model(inputs, x))


@pytest.mark.parametrize(
    "network, works",
    [(strided(), 8), (strided("valid"), 15), (strided(after=[layers.Dropout(0.5)]), 8)],
)
def test_check_size(network, works):
    check_size(network, 32, works, "student")
    assert network(tf.zeros((1, works, works, 3))).shape == (1, 4)
    with pytest.raises(ValueError, match="smaller than the student can downsample"):
        check_size(network, 32, works // 2 - 1, "student")


def randomised(model):
    """With batch norm that has seen something."""
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([RNG.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


def norms(model) -> int:
    return sum(isinstance(layer, layers.BatchNormalization) for layer in model.layers)


def chain(*parts):
    inputs = x = tf.keras.Input((16, 16, 3))
    for part in parts:
        x = part(x)
    return tf.keras.Model(inputs, x)


FOLDS = [
    lambda: [layers.Conv2D(4, 3), layers.BatchNormalization()],
    lambda: [layers.Conv2D(4, 3, strides=2, use_bias=False), layers.BatchNormalization()],
    lambda: [layers.Conv2D(6, 3, groups=3), layers.BatchNormalization(epsilon=0.1)],
    lambda: [layers.DepthwiseConv2D(3, depth_multiplier=2), layers.BatchNormalization()],
    lambda: [layers.Dense(5, use_bias=False), layers.BatchNormalization(scale=False)],
    lambda: [layers.Conv2D(4, 3), layers.BatchNormalization(center=False), layers.ReLU()],
]
STAYS = [
    lambda: [layers.BatchNormalization(), layers.Conv2D(4, 3)],
    lambda: [layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization()],
    lambda: [layers.Conv2D(4, 3), layers.BatchNormalization(axis=1)],
    lambda: [layers.SeparableConv2D(4, 3), layers.BatchNormalization()],
    lambda: [lq.layers.QuantConv2D(4, 3, kernel_quantizer="ste_sign"), layers.BatchNormalization()],
]


@pytest.mark.parametrize("parts, left", [*((f, 0) for f in FOLDS), *((f, 1) for f in STAYS)])
def test_folded_batch_norm_is_the_same_function(parts, left):
    model = randomised(chain(*parts()))
    weights = model.get_weights()
    folded = fold_batch_norm(model)
    assert norms(folded) == left
    batch = images()
    np.testing.assert_allclose(folded(batch), model(batch), rtol=1e-4, atol=1e-3)
    for before, after in zip(weights, model.get_weights()):  # the network stays as it is
        np.testing.assert_array_equal(before, after)
    assert norms(model) == 1


def test_a_convolution_that_others_see_keeps_its_batch_norm():
    inputs = tf.keras.Input((16, 16, 3))
    seen = layers.Conv2D(4, 3)(inputs)
    both = layers.add([layers.BatchNormalization()(seen), seen])
    model = randomised(tf.keras.Model(inputs, both))
    folded = fold_batch_norm(model)
    assert norms(folded) == 1
    batch = images()
    np.testing.assert_allclose(folded(batch), model(batch), rtol=1e-5)
    model = randomised(tf.keras.Model(inputs, [seen, both]))
    assert norms(fold_batch_norm(model)) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    "name, left",
    [
        ("MobileNet", 0),
        *(
            pytest.param(n, 0, marks=pytest.mark.slow)
            for n in ("MobileNetV3Small", "EfficientNetV2B0")
        ),
    ],
)
def test_applications_fold(name, left):
    network = getattr(tf.keras.applications, name)
    model = randomised(network(weights=None, include_top=False, input_shape=(64, 64, 3)))
    folded = fold_batch_norm(model)
    assert norms(folded) == left
    batch = tf.constant(RNG.uniform(-1, 1, (2, 64, 64, 3)), tf.float32)
    expected = model(batch).numpy()
    np.testing.assert_allclose(folded(batch), expected, atol=1e-5 * np.abs(expected).max())


def test_folding_keeps_the_networks_precision_under_a_global_policy():
    model = randomised(chain(layers.Conv2D(4, 3)))
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        folded = fold_batch_norm(model)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert {layer.compute_dtype for layer in folded.layers} == {"float32"}
