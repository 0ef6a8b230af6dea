"""Strangers' model files: honest ones load as saved, others are refused before anything runs."""

import json
import pickle
import shutil
import sys
import zipfile

from candle_tf.networks.safe_load import load_model  # first: the package selects Keras 2

# isort: split
import h5py
import larq
import numpy as np
import pytest
import tensorflow as tf

layers = tf.keras.layers
IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype("float32")
FORMATS = [".h5", ".keras", "_saved_model"]
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")


@pytest.fixture
def marker(tmp_path):
    """The file that every attack here writes when its code runs."""
    return tmp_path / "pwned"


@pytest.fixture
def plain(tmp_path):
    """A `.keras` and an `.h5` file of one Dense layer, to be edited."""
    model = tf.keras.Sequential([tf.keras.Input((3,)), layers.Dense(2, "relu", name="head")])
    for suffix in (".keras", ".h5"):
        model.save(tmp_path / f"plain{suffix}")
    return tmp_path / "plain"


def lambda_layer(marker):
    def touch(x, marker=str(marker)):
        open(marker, "w").close()
        return x * 2.0

    # Keras stores a function called <lambda> as bytecode.
    touch.__name__ = "<lambda>"
    return layers.Lambda(touch, name="trap")


def save(model, path, marker=None):
    """Saves the model, and forgets what its code left behind while it was built."""
    model.save(path)
    if marker is not None:
        marker.unlink(missing_ok=True)
    return path


def edit_archive(path, edit):
    """Rewrites a .keras file: `edit(members: dict of name to bytes)` in place."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    edit(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def edit_config(path, edit):
    """Rewrites the architecture of a .keras or .h5 file by `edit(text) -> text`."""
    if path.suffix == ".keras":
        edit_archive(
            path, lambda m: m.update({"config.json": edit(m["config.json"].decode()).encode()})
        )
    else:
        with h5py.File(path, "a") as file:
            file.attrs["model_config"] = edit(file.attrs["model_config"])


def refuse(path, marker, *words):
    with pytest.raises(ValueError) as refused:
        load_model(path)
    assert not marker.exists(), "the file's code ran"
    for word in (str(path), "allow_custom_code=True", *words):
        assert word in str(refused.value)


def functional_model():
    """Residual, nested, shared, compiled, with raw TensorFlow ops: what honest teachers contain."""
    images = tf.keras.Input((8, 8, 3))
    x = tf.image.resize(images / 127.5 - 1.0, (6, 6))
    x = layers.Conv2D(4, 3, padding="same", kernel_regularizer="l2")(x)
    shared = layers.Conv2D(4, 1, activation=tf.nn.relu, kernel_constraint="max_norm")
    x = shared(tf.nn.relu6(x)) + shared(x)[:, :, :, :]
    backbone = tf.keras.Sequential([layers.Conv2D(5, 3), layers.BatchNormalization()], "backbone")
    backbone.compile(tf.keras.optimizers.SGD(), tf.keras.losses.MeanSquaredError(), ["mae"])
    x = tf.pad(tf.transpose(backbone(x), [0, 2, 1, 3]), [[0, 0], [1, 1], [0, 0], [0, 0]])
    each = layers.TimeDistributed(layers.Dense(3))(tf.reshape(x, [-1, 6 * 4, 5]))
    logits = layers.Dense(3)(tf.concat([tf.reduce_mean(each, 1), layers.Flatten()(x)], -1))
    model = tf.keras.Model(images, tf.cast(logits, tf.float32))
    model.compile("adam", "mse")
    return model


@pytest.mark.long
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_functional_model_loads_as_saved(suffix, tmp_path):
    model = functional_model()
    loaded = load_model(save(model, tmp_path / f"m{suffix}"))
    np.testing.assert_array_equal(loaded(IMAGES), model(IMAGES))
    assert getattr(loaded, "optimizer", None) is None


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_larq_model_loads_as_saved(suffix, tmp_path):
    model = tf.keras.Sequential(
        [
            tf.keras.Input((8, 8, 3)),
            larq.layers.QuantConv2D(4, 3, kernel_quantizer="ste_sign", use_bias=False),
            layers.BatchNormalization(),
            larq.layers.QuantConv2D(
                4,
                3,
                input_quantizer=larq.quantizers.SteSign(clip_value=1.25),
                kernel_quantizer="approx_sign",
                kernel_constraint="weight_clip",
            ),
            layers.Activation(larq.activations.hard_tanh),
            layers.Flatten(),
            larq.layers.QuantDense(3, kernel_quantizer=larq.quantizers.DoReFa(2)),
        ]
    )
    loaded = load_model(save(model, tmp_path / f"m{suffix}"))
    np.testing.assert_array_equal(loaded(IMAGES), model(IMAGES))
    assert loaded.layers[2].input_quantizer.get_config()["clip_value"] == 1.25


@pytest.mark.long
def test_a_real_teacher_loads(shared_data):
    path = shared_data / "weights" / "mobilenet_1_0_conv_pw_12.h5"
    model, images = load_model(path), np.zeros((1, 128, 128, 3), "float32")
    expected = tf.keras.models.load_model(path, compile=False)(images)
    np.testing.assert_array_equal(model(images), expected)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("place", ["plain", "nested", "wrapped"])
def test_a_lambda_is_refused_wherever_it_hides(suffix, place, tmp_path, marker):
    trap = lambda_layer(marker)
    if place == "nested":
        trap = tf.keras.Sequential([tf.keras.Sequential([trap])])
    elif place == "wrapped":
        trap = layers.TimeDistributed(trap)
    model = tf.keras.Sequential([tf.keras.Input((4, 3)), trap])
    path = save(model, tmp_path / f"m{suffix}", marker)
    refuse(path, marker, "'trap'", "Lambda")

    loaded = load_model(path, allow_custom_code=True)
    np.testing.assert_array_equal(loaded(np.ones((1, 4, 3))), np.full((1, 4, 3), 2.0))
    assert marker.exists(), "no attack: this test proves nothing"


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_bytecode_in_an_rnn_cell_wrapper_is_refused(suffix, tmp_path, marker):
    def residual(inputs, outputs, marker=str(marker)):
        open(marker, "w").close()
        return outputs

    residual.__name__ = "<lambda>"
    cell = tf.nn.RNNCellResidualWrapper(layers.LSTMCell(3), residual_fn=residual)
    model = tf.keras.Sequential([tf.keras.Input((4, 3)), layers.RNN(cell, name="rnn")])
    refuse(save(model, tmp_path / f"m{suffix}", marker), marker, "ResidualWrapper")


class CustomScale(layers.Layer):
    def call(self, x):
        return x * 2.0


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_custom_class_is_refused_by_name(suffix, tmp_path, marker):
    model = tf.keras.Sequential([tf.keras.Input((3,)), CustomScale(name="twice")])
    refuse(save(model, tmp_path / f"m{suffix}"), marker, "'CustomScale'", "'twice'")


@pytest.mark.parametrize(
    "entry",
    [
        {"module": "evil", "class_name": "Dense", "registered_name": "Dense"},
        {"module": "keras.layers", "class_name": "Dense", "registered_name": "evil"},
        {"module": "keras.layers", "class_name": "os.system", "registered_name": None},
        {"module": "keras.layers", "class_name": "__lambda__", "registered_name": None},
        {"module": "keras.layers", "class_name": ["Dense"], "registered_name": None},
    ],
)
def test_a_foreign_name_or_module_is_refused(entry, plain, marker):
    def edit(text):
        config = json.loads(text)
        config["config"]["layers"][1].update(entry)
        return json.dumps(config)

    edit_config(path := plain.with_suffix(".keras"), edit)
    refuse(path, marker, "'head'")


def test_a_foreign_module_is_not_imported(plain, marker, tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text(f"open({str(marker)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    path = plain.with_suffix(".keras")
    edit_config(path, lambda text: text.replace('"module": "keras",', '"module": "evil_module",'))
    refuse(path, marker, "module 'evil_module'", "'sequential")

    with pytest.raises(ValueError, match="Sequential"):  # the module, once imported, lacks it
        load_model(path, allow_custom_code=True)
    assert marker.exists(), "no attack: this test proves nothing"
    sys.modules.pop("evil_module")


@pytest.mark.parametrize("function", ["get_file", "deserialize"])
def test_a_foreign_function_is_refused(function, plain, marker):
    entry = {"module": "keras.utils", "class_name": "function", "config": function}
    entry["registered_name"] = function
    edit_config(
        path := plain.with_suffix(".keras"), lambda text: text.replace('"relu"', json.dumps(entry))
    )
    refuse(path, marker, f"'{function}'", "'head'")


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("symbol", ["io.write_file", "numpy_function", "keras.utils.get_file"])
def test_a_tensorflow_function_outside_arithmetic_is_refused(suffix, symbol, tmp_path, marker):
    inputs = tf.keras.Input((3,))
    path = save(tf.keras.Model(inputs, tf.nn.relu6(inputs)), tmp_path / f"m{suffix}")
    edit_config(path, lambda text: text.replace("nn.relu6", symbol))
    refuse(path, marker, symbol, "'tf.")


def test_a_file_reading_layer_is_refused(tmp_path, marker):
    (tmp_path / "words.txt").write_text("a\nb\n")
    lookup = layers.StringLookup(vocabulary=str(tmp_path / "words.txt"))
    model = tf.keras.Sequential([tf.keras.Input((1,), dtype=tf.string), lookup])
    refuse(save(model, tmp_path / "m.keras"), marker, "allow_custom_code")


def test_pickled_weights_are_not_read(plain, marker):
    class Bomb:
        def __reduce__(self):
            return open, (str(marker), "w")

    def edit(members):
        del members["model.weights.h5"]
        members["model.weights.npz"] = pickle.dumps(Bomb())

    edit_archive(path := plain.with_suffix(".keras"), edit)
    with pytest.raises(ValueError, match="is not a model that Keras 2 can load.*model.weights.h5"):
        load_model(path)
    assert not marker.exists(), "the file's code ran"

    with pytest.raises(ValueError):
        load_model(path, allow_custom_code=True)
    assert marker.exists(), "no attack: this test proves nothing"


def test_the_graph_of_a_saved_model_never_runs(tmp_path, marker):
    class Trap(tf.saved_model.experimental.TrackableResource):
        """A resource whose initializer, run by Keras as it loads, writes a file."""

        def __init__(self):
            super().__init__()
            self.initializer = self.resource_handle  # made, and so saved

        def _create_resource(self):
            return tf.raw_ops.MutableHashTableV2(key_dtype=tf.int64, value_dtype=tf.int64)

        def _initialize(self):
            tf.io.write_file(str(marker), "")

    model = tf.keras.Sequential([tf.keras.Input((3,)), layers.Dense(2)])
    model.trap = Trap()
    path = save(model, tmp_path / "m", marker)
    inputs = np.ones((1, 3), "float32")
    np.testing.assert_array_equal(load_model(path)(inputs), model(inputs))
    assert not marker.exists(), "the file's code ran"
    load_model(path, allow_custom_code=True)
    assert marker.exists(), "no attack: this test proves nothing"


@pytest.mark.parametrize("consent", [False, True])
@pytest.mark.parametrize("name", ["w.h5", "w.weights.h5"])
def test_weights_alone_say_how_to_load_them(name, consent, tmp_path):
    tf.keras.Sequential([tf.keras.Input((3,)), layers.Dense(2)]).save_weights(tmp_path / name)
    with pytest.raises(ValueError, match="weights only.*teacher=keras:NAME.*teacher_weights="):
        load_model(tmp_path / name, allow_custom_code=consent)


def test_a_missing_file_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.h5: expected a .keras or .h5 file"):
        load_model(tmp_path / "absent.h5")


@pytest.mark.parametrize("name", ["m.h5", "m.keras", "m.png"])
def test_garbage_is_told_apart(name, tmp_path):
    (tmp_path / name).write_bytes(b"garbage" * 100)
    with pytest.raises(ValueError, match=f"{name} is not a model that Keras 2 can load"):
        load_model(tmp_path / name)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_truncated_file_is_told_apart(suffix, plain):
    path = plain.with_suffix(suffix)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="is not a model that Keras 2 can load"):
        load_model(path)


def test_a_damaged_saved_model_is_told_apart(tmp_path):
    path = save(tf.keras.Sequential([tf.keras.Input((3,)), layers.Dense(2)]), tmp_path / "m")
    shutil.rmtree(path / "variables")
    with pytest.raises(ValueError, match="is not a model that Keras 2 can load"):
        load_model(path)
    (path / "keras_metadata.pb").unlink()
    with pytest.raises(ValueError, match="is not a Keras SavedModel"):
        load_model(path)


def test_an_oversized_config_is_refused(plain, monkeypatch):
    monkeypatch.setattr("candle_tf.networks.safe_load.LARGEST_TEXT", 100)
    with pytest.raises(ValueError, match="over 100 bytes"):
        load_model(plain.with_suffix(".keras"))
