import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from candle_tf import StudentModel
from candle_tf.export.flatbuffer import operations
from candle_tf.export.loaded import Exported
from candle_tf.methods import Experts, branch
from candle_tf.networks.safe_load import load_model
from candle_tf.students import at_bits, resnet_e

layers = tf.keras.layers
SIZE = 16


@pytest.fixture(scope="module")
def original():
    tf.keras.utils.set_random_seed(0)
    return resnet_e(5, SIZE, width=0.25)


@pytest.fixture(scope="module")
def branched(original):
    return branch(original, 3)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (6, 1, 1, 3)) * rng.uniform(0, 1, (6, SIZE, SIZE, 3))
    return images.astype(np.float32)


def convolutions(student):
    return [x for x in student.layers if isinstance(x, lq.layers.QuantConv2D)]


def test_the_logits_are_the_mean_of_the_experts():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 6)).astype(np.float32)
    experts = Experts(3, 2)
    experts.build((None, 6))
    kernels = rng.normal(size=(3, 2, 2)).astype(np.float32)
    biases = rng.normal(size=(3, 2)).astype(np.float32)
    experts.set_weights([w for pair in zip(kernels, biases) for w in pair])
    expected = np.einsum("bnw,nwc->bnc", features.reshape(4, 3, 2), kernels) + biases
    np.testing.assert_allclose(experts.each(features), expected, rtol=1e-5)
    np.testing.assert_allclose(experts(features), expected.mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_a_branched_student_is_a_student(original, branched, batch):
    assert branched.input_shape == original.input_shape
    assert branched.get_layer("features").output_shape == (None, 3 * 64)
    assert branched(batch).shape == (6, 5)
    assert StudentModel(branched, resolutions=(12, 16, 20))(batch).shape == (6, 5)


@pytest.mark.long
def test_the_last_residual_block_stands_in_copies_and_the_trunk_once(original, branched):
    names = [layer.name for layer in convolutions(original)]
    copies = [f"branch_{i}_{names[-1]}" for i in range(3)]
    assert sorted(layer.name for layer in convolutions(branched)) == sorted(names[:-1] + copies)
    adds = [layer for layer in branched.layers if isinstance(layer, layers.Add)]
    assert len(adds) == 2 + 3


def test_the_trunk_keeps_its_weights_and_each_copy_has_random_ones(original, branched, batch):
    kernels = [layer.get_weights()[0] for layer in convolutions(original)]
    again = {layer.name: layer.get_weights()[0] for layer in convolutions(branched)}
    names = [layer.name for layer in convolutions(original)]
    for name, kernel in zip(names[:-1], kernels):
        np.testing.assert_array_equal(again[name], kernel)
    heads = [kernel for kernel, _ in zip(*[iter(branched.get_layer("logits").get_weights())] * 2)]
    copies = [again[f"branch_{i}_{names[-1]}"] for i in range(3)]
    for different in (heads, [kernels[-1], *copies]):
        for i, one in enumerate(different):
            assert all(np.abs(one - other).max() > 0.1 for other in different[:i])
    assert not {v.ref() for v in branched.variables} & {v.ref() for v in original.variables}


def test_copies_of_a_seeded_layer_differ():
    x = images = tf.keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 3, kernel_initializer=tf.keras.initializers.GlorotUniform(7))(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    student = branch(tf.keras.Model(images, layers.Dense(2)(x)), 2)
    one, other = (student.layers[i].get_weights()[0] for i in (1, 2))
    assert one.shape == other.shape == (3, 3, 3, 4) and np.abs(one - other).max() > 0.1


def without_names(config):
    return {key: value for key, value in config.items() if key != "name"}


@pytest.mark.long
@pytest.mark.parametrize("bits", ["1", "4"])
def test_every_larq_layer_keeps_its_quantizers_and_constraints(bits):
    student = at_bits(resnet_e(3, SIZE, width=0.125), bits)
    last = convolutions(student)[-1].get_config()
    assert last["kernel_quantizer"] and last["input_quantizer"] and last["kernel_constraint"]
    copies = [x for x in convolutions(branch(student, 2)) if x.name.startswith("branch_")]
    assert len(copies) == 2
    for copy in copies:
        assert without_names(copy.get_config()) == without_names(last)


@pytest.mark.long
def test_a_branched_student_takes_other_quantizers():
    student = at_bits(branch(resnet_e(3, SIZE, width=0.125), 2), "32")
    assert len(convolutions(student)) == 2 + 2
    assert all(layer.kernel_quantizer is None for layer in convolutions(student))


def parallel(x):
    """Two shortcuts, one around the other: only the outer one's start is on every path."""
    y = layers.Conv2D(4, 3, padding="same", name="inner")(x)
    y = layers.Add()([y, layers.Conv2D(4, 3, padding="same", name="last")(y)])
    return layers.Add()([x, y])


def test_a_block_is_never_cut_through_its_shortcut():
    images = tf.keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 3, name="stem")(images)
    x = layers.GlobalAveragePooling2D(name="features")(parallel(x))
    student = branch(tf.keras.Model(images, layers.Dense(2)(x)), 2)
    found = {layer.name for layer in student.layers if isinstance(layer, layers.Conv2D)}
    assert found == {"stem", *(f"branch_{i}_{name}" for i in (0, 1) for name in ("inner", "last"))}


def test_a_student_without_convolutions_is_refused():
    images = tf.keras.Input((4, 4, 3))
    x = layers.GlobalAveragePooling2D(name="features")(images)
    with pytest.raises(ValueError, match="no convolution before its features.*give a convol"):
        branch(tf.keras.Model(images, layers.Dense(2)(x)), 2)


def test_a_saved_student_gives_the_same_logits(branched, batch, tmp_path):
    branched.save(tmp_path / "student.keras")
    loaded = load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(loaded(batch), branched(batch))
    assert isinstance(loaded.get_layer("logits"), Experts)


@pytest.mark.long
def test_exports_give_the_same_probabilities_and_every_copy_is_packed(branched, batch, tmp_path):
    model = StudentModel(branched)
    model.export(tmp_path / "saved")
    model.export(tmp_path / "student.tflite", format="lce")
    expected = tf.nn.softmax(branched(batch)).numpy()
    assert np.ptp(expected, axis=0).max() > 0.05
    for path in (tmp_path / "saved", tmp_path / "student.tflite"):
        np.testing.assert_allclose(Exported(path).predict(batch), expected, atol=1e-4)
    packed = operations((tmp_path / "student.tflite").read_bytes()).count("LceBconv2d")
    assert packed == len(convolutions(branched)) == 5
