import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.networks import safe_load
from candle_tf.networks.surgery import any_size
from candle_tf.students import RPReLU, RSign, reactnet_a

layers = tf.keras.layers
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 255, (2, 63, 63, 3)).astype("float32")
X = RNG.uniform(-2, 2, (4, 5, 3, 6)).astype("float32")
UPSTREAM = RNG.normal(size=X.shape).astype("float32")
PER_CHANNEL = (0, 1, 2)


def randomize(model):
    """Random weights, small enough for gradients to pass, positive for what batch norm roots."""
    rng = np.random.default_rng(1)
    for variable in model.weights:
        low = 0.2 if "variance" in variable.name else -0.8
        variable.assign(rng.uniform(low, 0.8, variable.shape))
    return model


def of_type(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


def units(model):
    """The binary convolutions, each with the batch norm and the activation of its unit."""
    norms = of_type(model, layers.BatchNormalization)[1:]  # the first is the stem's
    return list(zip(of_type(model, lq.layers.QuantConv2D), norms, of_type(model, RPReLU)))


@pytest.fixture(scope="module")
def at_63_pixels():
    return reactnet_a(5, 63, width=0.125)


@pytest.fixture(scope="module")
def at_64_pixels():
    quantizers = {"input_quantizer": "swish_sign", "kernel_quantizer": None}
    return reactnet_a(5, 64, width=0.1, **quantizers, kernel_constraint=None, norm_momentum=0.8)


@pytest.fixture
def student(at_63_pixels):
    """Its weights are the same ones before every test."""
    return randomize(at_63_pixels)


@pytest.fixture(scope="module")
def full_size():
    return reactnet_a(1000)


def called(layer, *weights):
    """Outputs and gradients w.r.t. inputs and weights of a layer that has these weights."""
    layer.build(X.shape)
    layer.set_weights([w.reshape(v.shape) for w, v in zip(weights, layer.weights, strict=True)])
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x)
    gradients = tape.gradient(outputs, [x, *layer.trainable_weights], UPSTREAM)
    return outputs.numpy(), [np.squeeze(g) for g in gradients]


ALPHA = RNG.uniform(-0.5, 0.5, 6).astype("float32")


def test_rsign_is_the_sign_of_the_shifted_input_with_the_gradient_of_approx_sign():
    outputs, (by_x, by_alpha) = called(RSign("approx_sign"), ALPHA)
    np.testing.assert_array_equal(outputs, np.where(X >= ALPHA, 1, -1))
    distance = np.abs(X - ALPHA)
    expected = UPSTREAM * np.where(distance <= 1, 2 - 2 * distance, 0)
    np.testing.assert_allclose(by_x, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_alpha, -expected.sum(PER_CHANNEL), rtol=1e-4, atol=1e-4)


def test_rsign_without_a_quantizer_only_shifts():
    outputs, (by_x, by_alpha) = called(RSign(None), ALPHA)
    np.testing.assert_allclose(outputs, X - ALPHA, rtol=1e-6)
    np.testing.assert_array_equal(by_x, UPSTREAM)
    np.testing.assert_allclose(by_alpha, -UPSTREAM.sum(PER_CHANNEL), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "quantizer, kind, precision",
    [
        ("approx_sign", lq.quantizers.ApproxSign, 1),
        (lq.quantizers.SwishSign(beta=3.0), lq.quantizers.SwishSign, 1),
        (lq.quantizers.DoReFa(2), lq.quantizers.DoReFa, 2),
        (None, type(None), None),
    ],
)
def test_rsign_is_rebuilt_from_its_config(quantizer, kind, precision):
    first = RSign(quantizer, name="rsign")
    direct = RSign.from_config(first.get_config())
    by_name = lq.quantizers.get(lq.quantizers.serialize(first))
    for rsign in (first, direct, by_name):
        assert (type(rsign), type(rsign.quantizer)) == (RSign, kind)
        assert rsign.precision == precision
        assert rsign.get_config() == first.get_config()


def test_rsign_starts_at_zero_and_rprelu_as_a_prelu():
    np.testing.assert_array_equal(RSign(None)(X), X)
    np.testing.assert_allclose(RPReLU()(X), np.where(X > 0, X, 0.25 * X), rtol=1e-6)


def test_rprelu_is_a_prelu_between_two_shifts():
    gamma, slope, zeta = np.random.default_rng(2).uniform(-0.5, 0.5, (3, 6)).astype("float32")
    outputs, (by_x, by_gamma, by_slope, by_zeta) = called(RPReLU(), gamma, slope, zeta)
    shifted = X - gamma
    factor = np.where(shifted > 0, 1, slope)
    np.testing.assert_allclose(outputs, factor * shifted + zeta, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_x, UPSTREAM * factor, rtol=1e-6)
    for found, expected in [
        (by_gamma, -UPSTREAM * factor),
        (by_slope, UPSTREAM * np.minimum(shifted, 0)),
        (by_zeta, UPSTREAM),
    ]:
        np.testing.assert_allclose(found, expected.sum(PER_CHANNEL), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "load, name",
    [
        (tf.keras.models.load_model, "model.keras"),
        (safe_load.load_model, "model.keras"),
        (safe_load.load_model, "model.h5"),
        (safe_load.load_model, "saved_model"),
    ],
)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
def test_a_saved_model_keeps_both_layers(load, name, tmp_path):
    x = images = tf.keras.Input((6, 6, 3))
    x = lq.layers.QuantConv2D(
        4,
        3,
        padding="same",
        pad_values=1.0,
        input_quantizer=RSign(lq.quantizers.DoReFa(3)),
        kernel_quantizer="ste_sign",
        kernel_constraint="weight_clip",
    )(x)
    model = randomize(tf.keras.Model(images, RPReLU()(x)))
    model.compile(loss="mse")  # or Keras warns that it was not
    model.save(tmp_path / name)
    again = load(tmp_path / name)
    inputs = np.random.default_rng(3).normal(size=(2, 6, 6, 3)).astype("float32")
    np.testing.assert_allclose(again(inputs), model(inputs), rtol=1e-5, atol=1e-5)
    _, convolution, activation = again.layers
    assert type(activation) is RPReLU and type(convolution.input_quantizer) is RSign
    assert isinstance(convolution.input_quantizer.quantizer, lq.quantizers.DoReFa)
    assert convolution.input_quantizer.precision == 3


@pytest.mark.long
def test_the_operations_are_the_published_ones(full_size):
    profile = lq.models.ModelProfile(full_size)
    binary, real = profile.op_count("mac", 1), profile.op_count("mac", 32)
    assert binary == pytest.approx(4.82e9, rel=0.01)
    assert real == pytest.approx(0.12e8, rel=0.02)
    assert binary / 64 + real == pytest.approx(0.87e8, rel=0.01)
    assert profile.op_count("mac") == binary + real


@pytest.mark.long
def test_the_layers_are_those_of_mobilenet_v1(full_size):
    (stem,) = [c for c in of_type(full_size, layers.Conv2D) if not hasattr(c, "kernel_quantizer")]
    assert stem.output_shape == (None, 112, 112, 32) and stem.strides == (2, 2)
    # 3x3 convolutions, then 1x1: side and channels of the output, stride
    threes = [
        *[(112, 32, 1), (56, 64, 2), (56, 128, 1), (28, 128, 2), (28, 256, 1), (14, 256, 2)],
        *[(14, 512, 1)] * 5,
        *[(7, 512, 2), (7, 1024, 1)],
    ]
    ones = [
        *[(112, 64, 1), (56, 128, 1), (56, 128, 1), (28, 256, 1), (28, 256, 1), (14, 512, 1)],
        *[(14, 512, 1)] * 5,
        *[(7, 1024, 1), (7, 1024, 1)],
    ]
    found = [c for c, _, _ in units(full_size)]
    assert [c.kernel_size for c in found] == [(3, 3), (1, 1)] * 13
    for convolutions, expected in [(found[::2], threes), (found[1::2], ones)]:
        assert [(*c.output_shape[2:], c.strides[0]) for c in convolutions] == expected
    assert full_size.get_layer("features").output_shape == (None, 1024)
    assert full_size.output_shape == (None, 1000)


@pytest.mark.long
@pytest.mark.parametrize("network, stem", [("at_63_pixels", 4), ("at_64_pixels", 3)])
def test_width_scales_every_channel(network, stem, full_size, request):
    network = request.getfixturevalue(network)
    for narrow, wide in zip(
        of_type(network, layers.Conv2D), of_type(full_size, layers.Conv2D), strict=True
    ):
        assert narrow.filters == wide.filters * stem // 32
    assert network.get_layer("features").output_shape == (None, 32 * stem)


@pytest.mark.parametrize("width", [0, 0.03, -1])
def test_a_width_without_channels_is_refused(width):
    with pytest.raises(ValueError, match=f"width {width} leaves the network without channels"):
        reactnet_a(5, width=width)


@pytest.mark.long
@pytest.mark.parametrize("network, side", [("at_63_pixels", 63), ("at_64_pixels", 32)])
def test_below_64_pixels_the_stem_does_not_stride(network, side, request):
    convolutions = of_type(request.getfixturevalue(network), layers.Conv2D)
    for convolution, expected in [(convolutions[0], side), (convolutions[-1], -(-side // 16))]:
        assert convolution.get_output_shape_at(0)[1] == expected


@pytest.mark.long
def test_every_weight_learns(student):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(student(IMAGES, training=True)[:, 0] * [1.0, -2.0])
    variables = student.trainable_variables
    assert len(variables) == 1 + 2 + 26 * (2 + 2 + 3) + 2  # stem, its norm; units; classifier
    for variable, gradient in zip(variables, tape.gradient(loss, variables)):
        assert np.abs(gradient).max() > 0, variable.name


@pytest.mark.long
def test_the_weights_work_at_other_sizes(student):
    network = any_size(student)
    np.testing.assert_allclose(network(IMAGES), student(IMAGES), rtol=1e-4, atol=1e-4)
    for size in (32, 48):
        logits = network(tf.image.resize(IMAGES, [size, size]))
        assert logits.shape == (2, 5) and np.isfinite(logits).all()


@pytest.mark.long
def test_shortcuts_alone_carry_the_stem_to_the_features(at_64_pixels):
    student = randomize(at_64_pixels)
    for _, norm, activation in units(student):
        norm.set_weights([np.zeros_like(w) for w in norm.get_weights()])
        gamma, slope, zeta = activation.get_weights()
        activation.set_weights([0 * gamma, np.ones_like(slope), 0 * zeta])  # the identity
    stem = of_type(student, layers.BatchNormalization)[0]
    ends = [layer.get_output_at(0) for layer in (stem, student.get_layer("features"))]
    stem, features = tf.keras.Model(student.input, ends)(tf.image.resize(IMAGES, [64, 64]))
    expected = np.tile(np.mean(stem, (1, 2)), 32)  # doubled five times
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_a_doubling_unit_equals_two_convolutions_side_by_side(student):
    doubling = [u for u in units(student) if u[0].filters == 2 * u[0].kernel.shape[-2]]
    assert [c.kernel.shape[-2] for c, _, _ in doubling] == [4, 8, 16, 32, 64]
    for convolution, norm, activation in doubling:
        channels = convolution.filters // 2
        shift, kernel = convolution.input_quantizer.alpha, convolution.kernel.latent_variable
        branches = [
            (
                lq.layers.QuantConv2D(
                    channels,
                    1,
                    use_bias=False,
                    input_quantizer="approx_sign",
                    kernel_quantizer="ste_sign",
                    kernel_constraint="weight_clip",
                    weights=[kernel.numpy()[..., half]],
                ),
                layers.BatchNormalization(
                    epsilon=1e-5, weights=[w[half] for w in norm.get_weights()]
                ),
            )
            for half in (slice(channels), slice(channels, None))
        ]
        images = convolution.get_input_at(0)
        unit = tf.keras.Model(images, activation.get_output_at(0))
        x = tf.random.normal((3, *images.shape[1:]))
        for training in (False, True):
            halves = [n(c(x - shift), training=training) + x for c, n in branches]
            expected = activation(tf.concat(halves, -1))
            np.testing.assert_allclose(unit(x, training=training), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "network, inputs, kernels, constraint, precision, momentum",
    [
        ("at_63_pixels", "FusedApproxSign", "SteSign", "weight_clip", 1, 0.9),
        ("at_64_pixels", "SwishSign", "NoneType", "NoneType", 32, 0.8),
    ],
)
def test_arguments_reach_every_layer(
    network, inputs, kernels, constraint, precision, momentum, request
):
    found = units(request.getfixturevalue(network))
    assert len({id(layer.input_quantizer) for layer, _, _ in found}) == 26  # an alpha for each
    for layer, norm, _ in found:
        assert type(layer.input_quantizer) is RSign
        assert type(layer.input_quantizer.quantizer).__name__ == inputs
        assert type(layer.kernel_quantizer).__name__ == kernels
        assert type(layer.kernel_constraint).__name__ == constraint
        assert getattr(layer.kernel, "precision", 32) == precision
        assert norm.momentum == momentum
