"""The C source of networks made of every layer it knows, against Keras."""

import shutil
import subprocess

import candle_tf as ct
import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.export import c_library
from candle_tf.export.c_library import load_c
from candle_tf.export.c_plan import plan
from candle_tf.export.c_source import c_string, export_c, identifier, is_c_export
from candle_tf.export.loaded import Exported
from candle_tf.students import RPReLU, RSign, at_bits, reactnet_a, resnet_e

K = tf.keras.layers
needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="needs cc: apt-get install gcc")


@pytest.fixture(autouse=True)
def quick_compiler(monkeypatch):
    monkeypatch.setattr(c_library, "FLAGS", ("-O0", *c_library.FLAGS[1:]))


def quantized(filters=64, size=3, **changes):
    arguments = dict(input_quantizer="ste_sign", kernel_quantizer="ste_sign", padding="same")
    return lq.layers.QuantConv2D(filters, size, use_bias=False, **{**arguments, **changes})


def network(body, stem=64):
    """Pixels, a stem, `body`, pooling and a classifier."""
    images = tf.keras.Input((12, 12, 3))
    x = K.Rescaling(1 / 127.5, -1)(images)
    x = body(K.Conv2D(stem, 3, strides=2, padding="same")(x))
    if len(x.shape) == 4:
        x = K.GlobalAveragePooling2D(name="features")(x)
    return tf.keras.Model(images, K.Dense(5)(x), name="made")


def gated(x):
    gate = K.Dense(64, activation="sigmoid")(K.Flatten()(K.AveragePooling2D(6)(x)))
    return K.Multiply()([quantized()(x), K.Reshape((1, 1, 64))(gate)])


def shortcut(x):
    y = K.BatchNormalization()(quantized(input_quantizer=RSign(), pad_values=1.0)(x))
    return RPReLU()(K.add([y, x]))


def dense_block(x):
    for _ in range(2):
        x = K.Concatenate()([x, quantized(24)(K.BatchNormalization()(x))])
    return K.Conv2D(40, 1)(K.ReLU()(K.MaxPooling2D(2)(x)))


def split(x):
    a, b = tf.split(x, 2, axis=-1)
    return tf.concat([quantized(8)(a), tf.nn.relu(b)], axis=-1)


BODIES = {
    "zeros outside": quantized(),
    "ones outside": quantized(pad_values=1.0),
    "nothing outside": quantized(padding="valid"),
    "strided and dilated": lambda x: quantized(dilation_rate=2)(quantized(70, strides=2)(x)),
    "more words than a byte counts": lambda x: quantized(16)(quantized(260)(x)),
    "a kernel above the map": lambda x: quantized(16, 5)(K.MaxPooling2D(3)(x)),
    "scaled weights": quantized(20, kernel_quantizer="magnitude_aware_sign", activation="relu"),
    "a quantized dense layer": lambda x: lq.layers.QuantDense(
        9, input_quantizer="ste_sign", kernel_quantizer="ste_sign"
    )(K.Flatten()(x)),
    "flattened": K.Flatten(),
    "depthwise": lambda x: K.DepthwiseConv2D(3, 2, padding="same")(K.PReLU(shared_axes=[1, 2])(x)),
    "groups": K.Conv2D(32, 3, groups=4),
    "overlapping pools": lambda x: K.AveragePooling2D(3, 2, padding="same")(K.LeakyReLU()(x)),
    "twice the same": lambda x: K.add([x, x]),
    "gated": gated,
    "shortcut": lambda x: shortcut(shortcut(x)),
    "dense block": dense_block,
    "split": split,
}


def randomized(model):
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.shape.rank in (1, 3):
            drawn = rng.uniform(0.5, 1.5, variable.shape)
            positive = "variance" in variable.name or "gamma" in variable.name
            variable.assign(drawn if positive else 0.3 * (drawn - 1))
    return model


@needs_compiler
@pytest.mark.parametrize("body", BODIES)
def test_each_layer_computes_what_keras_does(body, tmp_path):
    model = randomized(network(BODIES[body]))
    images = np.random.default_rng(1).integers(0, 256, (8, 12, 12, 3)).astype(np.uint8)
    logits, classifier = model(images.astype(np.float32)).numpy(), model.layers[-1]
    kernel, bias = classifier.get_weights()
    classifier.set_weights([kernel / logits.std(), (bias - logits.mean(0)) / logits.std()])
    export_c(model, tmp_path / "made", 12)
    *_, predict = load_c(tmp_path / "made")
    expected = tf.nn.softmax(model(images.astype(np.float32))).numpy()
    assert np.ptp(expected, axis=0).max() > 0.001, "all images alike: this test proves nothing"
    difference = np.abs(predict(images) - expected).max(-1)
    # The classifier's weights have 16 bits, and a sign may turn.
    assert np.median(difference) < 5e-5 and difference.max() < 0.02


REFUSED = {
    "4 bits": (lambda: at_bits(resnet_e(3), "4"), "'quant_conv2d.*' .*not quantized to -1 and 1"),
    "ternary": (lambda: network(quantized(kernel_quantizer="ste_tern")), "more than 1 bit"),
    "padding by -1": (lambda: network(quantized(pad_values=-1.0)), "pads by -1"),
    "groups": (lambda: network(quantized(groups=2)), "is binary in 2 groups"),
    "an unknown layer": (lambda: network(K.Conv2DTranspose(8, 3)), "'conv2d_transpose.*' .*not am"),
    "an activation": (lambda: network(K.Conv2D(8, 3, activation="gelu")), "activation 'gelu'"),
    "an operation": (lambda: network(lambda x: tf.math.exp(x)), "calls TensorFlow's math.exp"),
    "a map": (lambda: tf.keras.Sequential([K.InputLayer((12, 12, 3)), K.Conv2D(3, 3)]), "ends in"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_compute_is_refused_by_name(case, tmp_path):
    make, problem = REFUSED[case]
    with pytest.raises(ValueError, match=problem):
        export_c(make(), tmp_path / "student", 12 if case != "4 bits" else 32)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = network(quantized())
    model.layers[-1].bias.assign([np.nan] * 5)
    with pytest.raises(ValueError, match="'dense.*' .*not finite"):
        export_c(model, tmp_path / "student", 12)


@pytest.mark.long
@pytest.mark.parametrize("make", [resnet_e, reactnet_a])
def test_every_binary_layer_of_our_students_is_packed(make):
    student = make(10, 32, width=0.25)
    layers = [layer for layer in student.layers if isinstance(layer, lq.layers.QuantConv2D)]
    assert [value.kind for value in plan(student, 32)].count("binary") == len(layers)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("c") / "10 Made"
    model = randomized(network(quantized()))
    names = ["plain", 'quo"te', "back\\slash", "??/", "Bär 熊"]
    ct.StudentModel(model).export(path, class_names=names, format="c")
    return path, names


@needs_compiler
def test_what_was_exported_is_loaded_as_any_other(exported):
    path, names = exported
    loaded = Exported(path)
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3))
    assert loaded.class_names == names
    np.testing.assert_allclose(loaded.predict(images).sum(-1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="NaN or Inf"):
        loaded.predict(np.full((1, 12, 12, 3), np.nan))


@needs_compiler
def test_its_own_program_reads_whole_images_only(exported, tmp_path):
    path, names = exported
    program = str(tmp_path / "program")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-DSTUDENT_10_MADE_MAIN"]
    source = "10 Made/student_10_made.c"  # a relative path, as people give it
    subprocess.run(["cc", *flags, source, "-o", program], check=True, cwd=path.parent)
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.uint8).tobytes()
    done = subprocess.run([program], input=image + image, capture_output=True)
    first, second = done.stdout.decode().splitlines()
    assert done.returncode == 0 and first == second and first.endswith(" %")
    assert any(first.startswith(name) for name in names)
    done = subprocess.run([program], input=image[:-1], capture_output=True)
    assert done.returncode == 1 and not done.stdout and b"431 bytes are not" in done.stderr


def test_without_a_compiler_one_sentence_says_so(exported, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ImportError, match="No C compiler is installed.*apt-get install gcc"):
        Exported(exported[0])


def test_other_files_at_the_place_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not an earlier export of C source"):
        export_c(network(quantized()), tmp_path, 12)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_second_export_has_the_same_bytes(exported, tmp_path):
    model = network(quantized())
    for name in ("a", "b"):
        export_c(model, tmp_path / name / "made", 12)
    for file in ("made.c", "made.h"):
        assert (tmp_path / "a/made" / file).read_bytes() == (
            tmp_path / "b/made" / file
        ).read_bytes()
    assert is_c_export(tmp_path / "a/made") and not is_c_export(tmp_path)


def test_names_become_identifiers_and_strings():
    assert identifier("Photos-2.v1") == "photos_2_v1" and identifier("ü") == "student"
    assert c_string('a"?\\é') == '"a\\042\\077\\134\\303\\251"'


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="pets cannot be written .*: make room or export elsewhere"):
        ct.export.export_c(student, tmp_path / "file" / "pets", image_size=16)
