"""Flatbuffers of a trained student, run by the interpreters that a device would run."""

import re
import sys
import zipfile

import candle_tf as ct
import larq as lq
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.export.flatbuffer import export_flatbuffer, operations, to_lce, to_tflite, with_names
from candle_tf.students import RPReLU, RSign, at_bits, resnet_e

pytestmark = pytest.mark.filterwarnings(
    r"ignore:\s*Warning. tf.lite.Interpreter is deprecated:UserWarning"
)
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "Wagen ü"]
WIDTHS = ["1", "4", "ternary", "32"]


@pytest.fixture(scope="module")
def images(cifar10):
    return cifar10("test[:200]")[0].astype(np.float32)


@pytest.fixture(scope="module")
def trained(cifar10):
    """A binary student whose batch norm has left its initial state."""
    tf.keras.utils.set_random_seed(0)
    model = ct.StudentModel(resnet_e(10, 32, width=0.125))
    model.compile(tf.keras.optimizers.Adam(1e-2))
    images, labels = cifar10("train[:256]")
    model.fit(images.astype(np.float32), labels, batch_size=32, epochs=4, verbose=0)
    return model


@pytest.fixture(scope="module")
def lce_file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("lce") / "student.tflite"
    trained.export(path, class_names=NAMES, format="lce")
    return path


@pytest.fixture(scope="module")
def plain_files(trained, tmp_path_factory):
    """{width: (the student at that width, its file)}, TFLite's own conversions."""
    directory, files = tmp_path_factory.mktemp("plain"), {}
    for width in WIDTHS:
        student = at_bits(trained.student, width)
        ct.StudentModel(student).export(
            directory / f"{width}.tflite", class_names=NAMES, format="tflite"
        )
        files[width] = student, directory / f"{width}.tflite"
    return files


def run_lce(path, images):
    from larq_compute_engine.tflite.python.interpreter import Interpreter

    return Interpreter(path.read_bytes()).predict(images)


def run_tflite(path, images):
    interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    answers = []
    for image in images:
        interpreter.set_tensor(given["index"], image[None])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(answer["index"]))
    return np.concatenate(answers)


def assert_agree(probabilities, student, images, atol):
    """Rounding can turn the sign of an activation near 0, so that a rare image differs."""
    expected = tf.nn.softmax(student(images)).numpy()
    assert np.ptp(expected, axis=0).max() > 0.05, "all images alike: this test proves nothing"
    difference = np.abs(probabilities - expected).max(-1)
    assert np.mean(probabilities.argmax(-1) == expected.argmax(-1)) >= 0.995
    assert np.median(difference) < 1e-5 and difference.max() < atol


def test_a_binary_file_gives_the_students_classes(lce_file, trained, images):
    assert_agree(run_lce(lce_file, images), trained.student, images, atol=0.02)


@pytest.mark.long
@pytest.mark.parametrize("width", WIDTHS)
def test_a_plain_file_runs_on_tflite_at_any_width(width, plain_files, images):
    student, path = plain_files[width]
    assert not any(operations(path.read_bytes()))
    assert_agree(run_tflite(path, images), student, images, atol=0.02)


def test_every_binary_layer_is_packed(lce_file, trained):
    layers = [x for x in trained.student.layers if isinstance(x, lq.layers.QuantConv2D)]
    packed = operations(lce_file.read_bytes()).count("LceBconv2d")
    assert packed == len(layers) == 3


def test_a_binary_file_is_smaller(lce_file, plain_files):
    _, plain = plain_files["1"]
    assert lce_file.stat().st_size < plain.stat().st_size / 2


@pytest.mark.long
def test_the_default_student_is_a_twentieth_of_its_real_valued_twin():
    student = resnet_e(10)
    plain = to_tflite(at_bits(student, "32"), 32)
    assert 20 * len(with_names(to_lce(student, 32), "\n".join(NAMES), "{}")) < len(plain)


def test_tflite_alone_cannot_run_a_binary_file(lce_file):
    with pytest.raises(RuntimeError, match="unresolved custom op: Lce"):
        tf.lite.Interpreter(str(lce_file)).allocate_tensors()


def names_in(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["class_names.txt", "preprocessing.json"]
        return archive.read("class_names.txt").decode().splitlines()


def test_the_class_names_are_an_associated_file(lce_file, plain_files):
    assert names_in(lce_file) == names_in(plain_files["1"][1]) == NAMES


def test_a_second_export_has_the_same_bytes(lce_file, trained, tmp_path):
    trained.export(tmp_path / "again.tflite", class_names=NAMES, format="lce")
    assert (tmp_path / "again.tflite").read_bytes() == lce_file.read_bytes()


def quantized(name=None, kind=lq.layers.QuantConv2D, size=(32, 3), **changes):
    """A binary layer, but for the changes."""
    arguments = dict(
        input_quantizer="ste_sign", kernel_quantizer="ste_sign", kernel_constraint="weight_clip"
    )
    return kind(*size, use_bias=False, name=name, **{**arguments, **changes})


def student_of(*layers):
    """Real-valued stem, these layers, pooling and classifier."""
    x = images = tf.keras.Input((16, 16, 3))
    stem = tf.keras.layers.Conv2D(64, 3, strides=2)
    for layer in (stem, *layers, tf.keras.layers.GlobalAveragePooling2D(name="features")):
        x = layer(x)
    return tf.keras.Model(images, tf.keras.layers.Dense(3)(x), name="made")


def nested(layer):
    x = tf.keras.Input((7, 7, 64))
    return tf.keras.Model(x, layer(x), name="inner")


def shared(layer):
    return lambda x: layer(layer(x))


REFUSED = {
    "4 bits": (lambda: at_bits(resnet_e(3, width=0.125), "4"), "'quant_conv2d.*' has a 4-bit inp"),
    "ternary": (
        lambda: at_bits(resnet_e(3, width=0.125), "ternary"),
        "'quant_conv2d.*' has a 2-bit inp",
    ),
    "32 bits": (lambda: at_bits(resnet_e(3, width=0.125), "32"), "'resnet_e' has no binary layer"),
    "dense": (
        lambda: student_of(
            quantized(),
            tf.keras.layers.GlobalAveragePooling2D(keepdims=True),
            quantized("odd", lq.layers.QuantDense, (8,)),
        ),
        "'odd' is a QuantDense",
    ),
    "real input": (
        lambda: student_of(quantized("odd", input_quantizer=None), quantized()),
        "'odd' has a real-valued input",
    ),
    "real kernel": (
        lambda: student_of(quantized(), quantized("odd", kernel_quantizer=None)),
        "'odd' has a real-valued kernel",
    ),
    "groups": (lambda: student_of(quantized("odd", groups=2)), "'odd' has 2 groups"),
    "small map": (
        lambda: student_of(tf.keras.layers.MaxPool2D(3), quantized("odd", padding="same")),
        "'odd' pads its 2-pixel input with zeros",
    ),
    # What Larq Compute Engine itself would leave as it is:
    "padding by -1": (
        lambda: student_of(quantized(), quantized("odd", padding="same", pad_values=-1.0)),
        "keeps layer 'odd' real-valued",
    ),
    "kernel of 0 and 1": (
        lambda: student_of(quantized(), quantized("odd", kernel_quantizer="ste_heaviside")),
        "keeps layer 'odd' real-valued",
    ),
    "behind a layer used twice": (
        lambda: student_of(
            shared(quantized(size=(64, 3))), quantized("odd", kernel_quantizer="ste_heaviside")
        ),
        "keeps layer 'odd' real-valued",
    ),
    "in a nested model": (
        lambda: student_of(nested(quantized("odd", kernel_quantizer="ste_tern")), quantized()),
        "'odd' has a 2-bit kernel",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("case", REFUSED)
def test_a_layer_that_would_stay_real_valued_is_named(case, tmp_path):
    make, problem = REFUSED[case]
    with pytest.raises(ValueError, match=f"{problem}.*format='tflite'"):
        export_flatbuffer(make(), tmp_path / "student.tflite", 16, binary=True)
    assert not list(tmp_path.iterdir())


def behind_batch_norm(x):
    y = quantized(input_quantizer=RSign(), size=(64, 3), padding="same", pad_values=1.0)(x)
    return RPReLU()(tf.keras.layers.add([tf.keras.layers.BatchNormalization()(y), x]))


def at_once(x):
    return RPReLU()(quantized(input_quantizer=RSign())(x))


@pytest.mark.long
@pytest.mark.parametrize("unit", [behind_batch_norm, at_once])
def test_reactnets_layers_compute_the_same(unit, tmp_path):
    student = student_of(unit, unit)
    rng = np.random.default_rng(0)
    for variable in student.trainable_variables:
        if variable.shape.rank != 4:
            variable.assign_add(rng.normal(0, 0.2, variable.shape))
    images = rng.normal(size=(20, 16, 16, 3)).astype(np.float32)
    logits, classifier = student(images).numpy(), student.layers[-1]
    kernel, bias = classifier.get_weights()
    classifier.set_weights([kernel / logits.std(), (bias - logits.mean(0)) / logits.std()])
    export_flatbuffer(student, tmp_path / "student.tflite", 16, binary=True)
    assert_agree(run_lce(tmp_path / "student.tflite", images), student, images, atol=1e-3)


@pytest.mark.parametrize("sign", ["ste_sign", "magnitude_aware_sign"])
def test_a_channel_that_never_varied_keeps_its_digits(sign, tmp_path):
    """Behind its ReLU in training, so that its moving variance came near 0; others did vary."""
    packed = quantized(size=(64, 3), activation="relu", kernel_quantizer=sign)
    norm = tf.keras.layers.BatchNormalization()
    student = student_of(packed, norm)
    stem, classifier = student.layers[1], student.layers[-1]
    stem.bias.assign(tf.fill(stem.bias.shape, 1e4))  # so that all inputs are 1
    dead = np.arange(64) < 32
    packed.kernel.assign(tf.fill(packed.kernel.shape, 0.3) * np.where(dead, -1.0, 1.0))
    norm.moving_variance.assign(np.where(dead, 1e-6, 1e4))
    norm.moving_mean.assign(np.where(dead, 1e-3, 170.0))
    classifier.kernel.assign(tf.random.normal(classifier.kernel.shape, stddev=0.1, seed=0))
    images = np.random.default_rng(0).uniform(0, 255, (5, 16, 16, 3)).astype(np.float32)
    export_flatbuffer(student, tmp_path / "student.tflite", 16, binary=True)
    binary = run_lce(tmp_path / "student.tflite", images)
    np.testing.assert_allclose(binary, tf.nn.softmax(student(images)), atol=1e-5)


def simple_student():
    x = tf.keras.Input((16, 16, 3))
    features = tf.keras.layers.GlobalAveragePooling2D(name="features")(x)
    return tf.keras.Model(x, tf.keras.layers.Dense(3)(features))


def test_the_names_are_numbers_by_default(tmp_path):
    path = tmp_path / "new directory" / "student.tflite"
    export_flatbuffer(simple_student(), path, 16, binary=False)
    assert names_in(path) == ["0", "1", "2"] and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    "file, names, problem",
    [
        ("student.tflite", ["one", "two"], "class_names has 2 names but the student has 3 classes"),
        ("student.lite", None, r"end in .tflite, not 'student.lite'"),
        ("student", None, r"end in .tflite, not 'student'"),
    ],
)
def test_wrong_arguments_write_nothing(file, names, problem, binary, tmp_path):
    with pytest.raises(ValueError, match=problem):
        export_flatbuffer(simple_student(), tmp_path / file, 16, names, binary=binary)
    assert not list(tmp_path.iterdir())


def fail(*_):
    raise OSError("No space left on device")


def half_written(path, _):
    path.write_text("half")
    fail()


@pytest.mark.parametrize(
    "place, broken", [("os.replace", fail), ("pathlib.Path.write_bytes", half_written)]
)
def test_a_failure_leaves_the_old_file(place, broken, tmp_path, monkeypatch):
    path = tmp_path / "student.tflite"
    path.write_text("an earlier export")
    monkeypatch.setattr(place, broken)
    with pytest.raises(OSError, match="No space left"):
        export_flatbuffer(simple_student(), path, 16, binary=False)
    monkeypatch.undo()
    assert path.read_text() == "an earlier export"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_in_the_place_of_the_file_stays(tmp_path):
    path = tmp_path / "student.tflite"
    path.mkdir()
    with pytest.raises(OSError, match="student.tflite"):
        export_flatbuffer(simple_student(), path, 16, binary=False)
    assert list(tmp_path.iterdir()) == [path] and not list(path.iterdir())


def test_the_format_may_be_a_saved_model(trained, tmp_path):
    trained.export(tmp_path / "student", class_names=NAMES, format="saved_model")
    assert tf.saved_model.contains_saved_model(str(tmp_path / "student"))


@pytest.mark.parametrize("format, near", [("tf_lite", "tflite"), ("LCE", "lce"), ("savd", "saved")])
def test_an_unknown_format_names_the_nearest(format, near, trained, tmp_path):
    with pytest.raises(ValueError, match=f"Unknown format '{format}': did you mean '{near}"):
        trained.export(tmp_path / "student.tflite", format=format)
    assert not list(tmp_path.iterdir())


def test_without_lce_the_export_says_what_to_install(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "larq_compute_engine", None)
    with pytest.raises(ImportError, match="pip install 'larq-compute-engine<0.17'") as error:
        trained.export(tmp_path / "student.tflite", format="lce")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("error:(?s).*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.parametrize("format", ["lce", "tflite"])
def test_an_export_is_quiet(trained, tmp_path, capfd, format):
    trained.export(tmp_path / "student.tflite", format=format)
    ct.export.Exported(tmp_path / "student.tflite")
    out, err = capfd.readouterr()
    assert not re.search("tensorflow|XNNPACK|Ignored", out + err)
