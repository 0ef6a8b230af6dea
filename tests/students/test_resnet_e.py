import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.networks.surgery import any_size
from candle_tf.students import resnet_e

IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")


def tiny(**kwargs):
    return resnet_e(5, **{"width": 0.125, **kwargs})


def randomize(model):
    """Random weights, positive wherever batch norm needs it."""
    rng = np.random.default_rng(1)
    model.set_weights(
        [
            rng.uniform(0.2, 1, w.shape) * rng.choice([1, -1], w.shape)
            if w.ndim == 4
            else rng.uniform(0.2, 1, w.shape)
            for w in model.get_weights()
        ]
    )
    return model


def convolutions(model):
    """The model's convolutions: (full-precision ones, binary ones)."""
    found = [layer for layer in model.layers if isinstance(layer, tf.keras.layers.Conv2D)]
    binary = [layer for layer in found if isinstance(layer, lq.layers.QuantConv2D)]
    return [layer for layer in found if layer not in binary], binary


@pytest.mark.parametrize(
    "arguments, features, binary",
    [
        ({}, 256, 3),
        ({"blocks": (2, 2, 2), "width": 0.5}, 128, 6),
        ({"blocks": (1, 3), "width": 0.25}, 32, 4),
    ],
)
def test_shapes(arguments, features, binary):
    student = resnet_e(7, **arguments)
    assert student.input_shape == (None, 32, 32, 3)
    assert student.output_shape == (None, 7)
    assert student.get_layer("features").output_shape == (None, features)
    stem, quantized = convolutions(student)
    assert (len(stem), len(quantized)) == (2, binary)
    logits = student(IMAGES)
    assert logits.shape == (2, 7) and np.isfinite(logits).all()


def test_pixels_are_standardized_by_channel():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    cases = {((0.5,) * 3, (0.5,) * 3): tiny(), (mean, std): tiny(mean=mean, std=std)}
    for (mean, std), student in cases.items():
        first = tf.keras.Model(student.input, student.layers[1].output)
        np.testing.assert_allclose(first(IMAGES), (IMAGES / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize(
    "image_size, stem, halvings",
    [(32, 2, 1), (48, 2, 1), (64, 2, 1), (65, 2, 2), (224, 3, 3)],
)
@pytest.mark.parametrize("separable", [True, False])
def test_the_stem_halves_large_images_again(image_size, stem, halvings, separable):
    student = tiny(image_size=image_size, separable_stem=separable)
    depthwise = [x for x in student.layers if isinstance(x, tf.keras.layers.DepthwiseConv2D)]
    assert len(depthwise) == (stem - 1 if separable else 0)
    plain, quantized = convolutions(student)
    assert [layer.filters for layer in plain] == [2, *[8] * (stem - 1)]
    assert quantized[0].input_shape[1] == -(-image_size // 2**halvings)


def test_twice_the_side_costs_no_more_multiplications():
    small, large = tiny(image_size=32), tiny(image_size=64, halvings=2)
    small, large = lq.models.ModelProfile(small), lq.models.ModelProfile(large)
    assert large.op_count("mac", 1) == small.op_count("mac", 1)
    assert large.op_count("mac", 32) == small.op_count("mac", 32)


def test_the_stem_halves_as_often_as_asked():
    for halvings, side in [(1, 32), (2, 16), (3, 8)]:
        student = tiny(image_size=64, halvings=halvings)
        assert convolutions(student)[1][0].input_shape[1] == side


@pytest.mark.parametrize("blocks", [(1, 1, 1), (2, 2, 2)])
def test_binary_operations(blocks):
    # side^2 * 3x3 * channels in * channels out, of stages at 16, 8 and 4 pixels
    first = sum(s * s * 9 * i * o for s, i, o in [(16, 64, 64), (8, 64, 128), (4, 128, 256)])
    later = sum(s * s * 9 * c * c for s, c in [(16, 64), (8, 128), (4, 256)])
    profile = lq.models.ModelProfile(resnet_e(10, blocks=blocks))
    macs = profile.op_count("mac", 1)
    assert macs == pytest.approx(first + (blocks[0] - 1) * later, rel=0.01)
    assert macs <= 60e6


def test_convolutions_after_the_stem_are_binary():
    _, quantized = convolutions(tiny())
    for layer in quantized:
        kernel = layer.kernel_quantizer(tf.convert_to_tensor(layer.kernel))
        inputs = layer.input_quantizer(tf.random.normal(layer.input_shape[1:]))
        assert set(np.unique(kernel)) == set(np.unique(inputs)) == {-1.0, 1.0}
        assert layer.kernel_constraint is not None and not layer.use_bias and layer.pad_values == 1


@pytest.mark.parametrize(
    "quantizers, binary",
    [({}, True), ({"input_quantizer": None, "kernel_quantizer": None}, False)],
    ids=["binary", "full precision"],
)
def test_quantizers(quantizers, binary):
    student = randomize(tiny(kernel_constraint=None, **quantizers))
    profile = lq.models.ModelProfile(student)
    assert (profile.op_count("mac", 1) > 0) == binary
    before = student(IMAGES).numpy()
    kernel = convolutions(student)[1][1].kernel
    kernel.assign(kernel * 0.5)  # a sign forgets magnitudes
    assert np.allclose(student(IMAGES), before, rtol=1e-5) == binary


def test_other_sizes():
    student = randomize(tiny())
    network = any_size(student)
    np.testing.assert_allclose(network(IMAGES), student(IMAGES), rtol=1e-4)
    for size in (16, 24, 40):
        logits = network(tf.image.resize(IMAGES, [size, size]))
        assert logits.shape == (2, 5) and np.isfinite(logits).all()


def test_input_is_scaled_inside():
    student = tiny()
    stem, _ = convolutions(student)
    scaled = tf.keras.Model(student.input, stem[0].input)
    ramp = np.linspace(0, 255, 32 * 32 * 3, dtype="float32").reshape(1, 32, 32, 3)
    np.testing.assert_allclose(scaled(ramp), ramp / 127.5 - 1, atol=1e-5)


def test_every_weight_learns():
    student = tiny(blocks=(2, 1, 1))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(student(IMAGES, training=True)[:, 0] * [1.0, -2.0])
    for variable, gradient in zip(
        student.trainable_variables, tape.gradient(loss, student.trainable_variables)
    ):
        assert np.abs(gradient).max() > 0, variable.name


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_save_and_reload(suffix, tmp_path):
    student = randomize(tiny())
    student.save(tmp_path / f"student{suffix}")
    again = tf.keras.models.load_model(tmp_path / f"student{suffix}", compile=False)
    np.testing.assert_allclose(again(IMAGES), student(IMAGES), rtol=1e-5)
    assert len(convolutions(again)[1]) == 3
