from functools import cache

import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.networks.safe_load import load_model
from candle_tf.students import BITS, STUDENTS, RSign, at_bits, create, requantize
from candle_tf.students.bits import dorefa, is_binary

layers = tf.keras.layers
IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
NAMES = ["resnet_e", pytest.param("reactnet_a", marks=pytest.mark.long)]
CHANGED = ["ternary", "2", "4", "32"]

# By bits: the precision, and every value of the kernels and the inputs.
LEVELS = {
    "1": (1, [-1, 1], [-1, 1]),
    "ternary": (2, [-1, 0, 1], [-1, 0, 1]),
    "2": (2, np.linspace(-1, 1, 4), np.linspace(0, 1, 4)),
    "4": (4, np.linspace(-1, 1, 16), np.linspace(0, 1, 16)),
}


def randomize(model):
    """Random weights; the values of a kernel are spread evenly over [-1, 1]."""
    rng = np.random.default_rng(1)
    for v in model.weights:
        if v.shape.rank == 4:
            v.assign(rng.permutation(np.linspace(-1, 1, v.shape.num_elements())).reshape(v.shape))
        else:
            v.assign(rng.uniform(0.2 if "variance" in v.name else -0.8, 0.8, v.shape))
    return model


@cache
def original(name):
    """The student, and what it was when it was made: architecture and weights."""
    student = randomize(STUDENTS[name](5, 32, width=0.125))
    return student, student.to_json(), student.get_weights()


@cache
def at(name, bits):
    return at_bits(original(name)[0], bits)


def quantized(model):
    return [layer for layer in model.layers if isinstance(layer, lq.layers.QuantConv2D)]


def kernel_of(layer):
    with lq.context.quantized_scope(True):
        return tf.convert_to_tensor(layer.kernel).numpy()


def macs(layer, precision):
    return lq.models.LayerProfile(layer).op_count("mac", precision)


def dorefa_activations(x, bits):
    n = 2**bits - 1
    return np.round(np.clip(x, 0, 1) * n) / n


def dorefa_weights(w, bits):
    n = 2**bits - 1
    limited = np.tanh(w)
    return 2 * np.round((limited / (2 * np.abs(limited).max()) + 0.5) * n) / n - 1


def test_every_width_is_tested():
    assert set(BITS) == {"1", *CHANGED} == {*LEVELS, "32"}


@pytest.mark.long
@pytest.mark.parametrize("bits", LEVELS)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_and_inputs_take_the_values_of_the_width(name, bits):
    _, kernel_levels, input_levels = LEVELS[bits]
    found = quantized(at(name, bits))
    assert len(found) == {"resnet_e": 3, "reactnet_a": 26}[name]
    for layer in found[:: len(found) // 3]:  # each takes a second
        ramp = np.linspace(-3, 3, 401, dtype="float32")[:, None]
        inputs = layer.input_quantizer(np.tile(ramp, layer.input_shape[-1]))
        np.testing.assert_allclose(np.unique(inputs), input_levels, atol=1e-6)
        np.testing.assert_allclose(np.unique(kernel_of(layer)), kernel_levels, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_32_bits_are_kernels_and_inputs_as_they_are(name):
    for layer in quantized(at(name, "32"))[::3]:
        np.testing.assert_array_equal(kernel_of(layer), layer.get_weights()[0])
        assert layer.kernel_quantizer is None and layer.kernel_constraint is None
        if name == "reactnet_a":
            x = np.random.default_rng(0).normal(size=(5, layer.input_shape[-1])).astype("float32")
            np.testing.assert_allclose(layer.input_quantizer(x), x - layer.input_quantizer.alpha)
        else:
            assert layer.input_quantizer is None


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", NAMES)
def test_larq_counts_the_memory_and_operations_of_the_width(name, bits):
    precision = LEVELS[bits][0] if bits in LEVELS else 32
    before, after = (lq.models.ModelProfile(m) for m in (at(name, "1"), at(name, bits)))
    kernels = sum(layer.kernel.shape.num_elements() for layer in quantized(at(name, "1")))
    assert after.memory == before.memory + (precision - 1) * kernels
    assert after.op_count("mac") == before.op_count("mac")
    assert sum(macs(layer, precision) for layer in quantized(at(name, bits))) == before.op_count(
        "mac", 1
    )


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", NAMES)
def test_only_one_bit_inputs_are_padded_with_ones(name, bits):
    assert {layer.pad_values for layer in quantized(at(name, bits))} == {1 if bits == "1" else 0}


@pytest.mark.parametrize("bits", CHANGED)
@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_kept_and_the_student_is_left_alone(name, bits):
    again = at(name, bits)
    student, architecture, weights = original(name)
    assert student.to_json() == architecture
    for was, is_now, kept in zip(weights, student.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(is_now, was)
        np.testing.assert_array_equal(kept, was)
    assert not {v.ref() for v in again.variables} & {v.ref() for v in student.variables}


@pytest.mark.parametrize("bits", CHANGED)
@pytest.mark.parametrize("name", NAMES)
def test_layers_without_quantizers_stay_as_they_are(name, bits):
    student, again = at(name, "1"), at(name, bits)
    assert [layer.name for layer in again.layers] == [layer.name for layer in student.layers]
    for before, after in zip(student.layers, again.layers):
        assert type(after) is type(before)
        if before not in quantized(student):
            assert after.get_config() == before.get_config()
    logits = again(IMAGES)
    assert logits.shape == (2, 5) and np.isfinite(logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_one_bit_is_the_student_itself(name):
    assert at(name, "1") is original(name)[0]


def test_an_unknown_width_is_named():
    with pytest.raises(ValueError, match="Unknown student_bits '3'"):
        at_bits(original("resnet_e")[0], "3")


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize(
    "mode, reference, derivative",
    [
        ("activations", dorefa_activations, lambda x: (x >= 0) & (x <= 1)),
        # The largest magnitude counts as a constant.
        (
            "weights",
            dorefa_weights,
            lambda x: (1 - np.tanh(x) ** 2) / np.tanh(np.abs(x).max()),
        ),
    ],
    ids=["activations", "weights"],
)
def test_dorefa_is_that_of_the_paper(mode, reference, derivative, bits):
    rng = np.random.default_rng(0)
    x, upstream = rng.uniform(-1.5, 1.5, (2, 500)).astype("float32")
    with tf.GradientTape() as tape:
        watched = tf.Variable(x)
        outputs = lq.quantizers.get(dorefa(bits, mode))(watched)
    np.testing.assert_allclose(outputs, reference(x, bits), atol=1e-6)
    gradient = tape.gradient(outputs, watched, upstream)
    np.testing.assert_allclose(gradient, upstream * derivative(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", ["2", "4"])
@pytest.mark.parametrize("name", NAMES)
def test_a_convolution_works_on_dorefa_inputs_and_weights(name, bits):
    layer = quantized(at(name, bits))[0]
    x = np.random.default_rng(0).uniform(-1, 2, (2, *layer.input_shape[1:])).astype("float32")
    shift = layer.input_quantizer.alpha.numpy() if name == "reactnet_a" else 0
    inputs = dorefa_activations(x - shift, int(bits))
    kernel = dorefa_weights(layer.get_weights()[0], int(bits))
    expected = tf.nn.conv2d(inputs, kernel, layer.strides, "SAME")
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("bits", CHANGED)
def test_rsign_keeps_its_shift_around_another_quantizer(bits):
    inner = lq.quantizers.get(BITS[bits]["input_quantizer"])
    pairs = zip(quantized(at("reactnet_a", "1")), quantized(at("reactnet_a", bits)), strict=True)
    for before, after in ((b.input_quantizer, a.input_quantizer) for b, a in pairs):
        assert type(after) is RSign and type(after.quantizer) is type(inner)
        assert after.precision == getattr(inner, "precision", None)
        np.testing.assert_array_equal(after.alpha, before.alpha)
        assert np.abs(before.alpha).max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_first_of_two_steps_has_real_kernels_and_binary_inputs(name):
    student = at(name, "1")
    first = requantize(student, kernel_quantizer=None)
    assert [layer.name for layer in first.layers] == [layer.name for layer in student.layers]
    assert first.layers[-1].name == "logits" and first.get_layer("features").output.shape.rank == 2
    for before, after in zip(quantized(student), quantized(first)):
        expected = {**before.get_config(), "kernel_quantizer": None}
        assert after.get_config() == expected and after.pad_values == 1
        assert is_binary(after.input_quantizer)
        assert macs(after, 1) == 0 < macs(after, 32)
        # Real kernels of signs do what the binary kernels do.
        after.kernel.assign(np.where(before.get_weights()[0] >= 0, 1, -1))
    np.testing.assert_allclose(first(IMAGES), student(IMAGES), rtol=1e-3, atol=1e-3)


def test_depthwise_pointwise_and_dense_kernels_change_alike():
    x = images = tf.keras.Input((8, 8, 3))
    for layer, roles in [
        (lq.layers.QuantDepthwiseConv2D, ["depthwise"]),
        (lq.layers.QuantSeparableConv2D, ["depthwise", "pointwise"]),
        (lq.layers.QuantDense, ["kernel"]),
    ]:
        sizes = {"units": 4} if roles == ["kernel"] else {"kernel_size": 3}
        sizes |= {"filters": 4} if "pointwise" in roles else {}
        kernels = {f"{role}_quantizer": "ste_sign" for role in roles}
        clips = {f"{role}_constraint": "weight_clip" for role in roles}
        x = layer(**sizes, input_quantizer="ste_sign", **kernels, **clips)(x)
    student = tf.keras.Model(images, x)
    again = requantize(student, **BITS["4"])
    for layer in again.layers[1:]:
        roles = [key for key in layer.get_config() if key.endswith("_quantizer")]
        for role in roles:
            assert getattr(layer, role).precision == 4
            mode = "activations" if role == "input_quantizer" else "weights"
            assert getattr(layer, role).mode == mode
        assert lq.models.LayerProfile(layer).unique_param_bidtwidths == [4, 32]


@pytest.mark.parametrize("bits", CHANGED)
def test_a_requantized_student_is_saved_and_safely_reloaded(bits, tmp_path):
    student = at("resnet_e", bits)
    student.save(tmp_path / "student.keras")
    again = load_model(tmp_path / "student.keras")
    np.testing.assert_allclose(again(IMAGES), student(IMAGES), rtol=1e-4, atol=1e-4)
    assert lq.models.ModelProfile(again).memory == lq.models.ModelProfile(student).memory


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The `keras.initializers.serialize")
def test_a_zoo_student_at_32_bits_has_no_binary_operations():
    student = create("larq_zoo:QuickNetSmall", num_classes=5, image_size=32)
    before, after = (lq.models.ModelProfile(m) for m in (student, at_bits(student, "32")))
    assert before.op_count("mac", 1) > 0 == after.op_count("mac", 1)
    assert after.op_count("mac", 32) == after.op_count("mac") == before.op_count("mac")
    assert after.memory == after.fp_equivalent_memory > before.memory


@pytest.mark.parametrize(
    "quantizer, binary",
    [
        ("ste_sign", True),
        ("approx_sign", True),
        (lq.quantizers.SwishSign(), True),
        (RSign("approx_sign"), True),
        (lq.quantizers.serialize(RSign("approx_sign")), True),
        (lq.quantizers.serialize(RSign(None)), False),
        (RSign(dorefa(2, "activations")), False),
        ("ste_tern", False),
        (dorefa(4, "weights"), False),
        (dorefa(1, "activations"), True),
        (None, False),
    ],
)
def test_what_leaves_one_bit_is_binary(quantizer, binary):
    assert is_binary(quantizer) == binary
