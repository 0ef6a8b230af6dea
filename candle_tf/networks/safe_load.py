"""Safe loading of a saved Keras model from somebody else: none of its code is run.

A saved model is a program. A Lambda carries bytecode, and the `module` of an entry is imported.
The graph of a SavedModel can write files, and an `.npz` can hold pickles.

So the architecture is first read as text. Each class, function and module in it must belong to
Keras, Larq or this library. The model is rebuilt from this text, and only numbers are read from
the file.
"""

import contextlib
import inspect
import json
import os
import zipfile
from pathlib import Path

import h5py
import larq  # noqa: F401  registers its layers, quantizers and constraints with Keras
import tensorflow as tf
from candle_tf.networks.keras_internals import saved_metadata_pb2
from candle_tf.utils.files import LARGEST_TEXT

TRUSTED_PACKAGES = {"keras", "tf_keras", "larq", "larq_zoo", "candle_tf"}

# Public in Keras, but unsafe: they run the file's bytecode, open its vocabulary file, or look up
# further names.
UNSAFE = set(
    "Lambda IntegerLookup StringLookup TextVectorization get serialize deserialize".split()
)
# Not public, but safe: models, old names, notation for values. No `__lambda__`, no `__typespec__`.
INTERNAL = set(
    "Functional Model Sequential Policy DTypePolicy TFOpLambda SlicingOpLambda "
    "BatchNormalizationV1 BatchNormalizationV2 SyncBatchNormalization function TensorShape "
    "TypeSpec __tuple__ __ellipsis__ __bytes__ __tensor__ __numpy__".split()
)
# Functions that layers around raw TensorFlow calls may use: arithmetic and reshaping.
OP_LAYERS = {"TFOpLambda", "SlicingOpLambda"}
OP_FAMILIES = ("__operators__.", "math.", "nn.", "linalg.", "image.resize")
OPS = set(
    "boolean_mask broadcast_to cast clip_by_value concat convert_to_tensor expand_dims gather "
    "identity norm one_hot ones_like pad repeat reshape reverse roll shape slice split squeeze "
    "stack stop_gradient strided_slice tensordot tile transpose unstack where zeros_like".split()
)


class ModelFileError(ValueError):
    """The error of a model file that is broken, not a Keras 2 model, or unsafe."""


def load_model(path: str | os.PathLike, allow_custom_code: bool = False) -> tf.keras.Model:
    """Loads a whole model, uncompiled, that `model.save()` of Keras 2 wrote.

    Args:
        path: A `.keras` or `.h5` file, or a SavedModel directory.
        allow_custom_code: Whether Keras may load everything in the file and run its author's code.

    Raises:
        FileNotFoundError: If nothing is at `path`.
        ModelFileError: If the file is no Keras 2 model or holds weights only. Also if it names a
            class, function or module that does not belong to Keras, Larq or candle_tf. It is a
            ValueError.

    Example:
        >>> network = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125, blocks=(1,))
        >>> network.save("network.keras")
        >>> load_model("network.keras").output_shape
        (None, 3)
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"No model at {path}: expected a .keras or .h5 file or a SavedModel directory."
        )
    try:
        config = _architecture(path)
        if allow_custom_code:
            return tf.keras.models.load_model(path, compile=False, safe_mode=False)
        _refuse_strangers(path, config)
        return _rebuild(path, config)
    except ModelFileError:
        raise
    except Exception as error:  # h5py, zipfile, protobuf and Keras each fail in their own ways
        reason = (str(error).splitlines() or [""])[0][:300]
        raise ModelFileError(
            f"{path} is not a model that Keras 2 can load ({type(error).__name__}: {reason}); "
            "expected a .keras or .h5 file or a SavedModel directory written by model.save()."
        ) from error


def _is_archive(path: Path) -> bool:
    # The test of Keras itself, so that it loads exactly the file that is checked here.
    return str(path).endswith(".keras") and zipfile.is_zipfile(path)


def _architecture(path: Path) -> dict:
    """Returns the model's serialized form, read as text."""
    if path.is_dir():
        metadata = path / "keras_metadata.pb"
        if not metadata.is_file():
            raise ModelFileError(f"{path} is not a Keras SavedModel: it has no keras_metadata.pb.")
        nodes = saved_metadata_pb2.SavedMetadata.FromString(metadata.read_bytes()).nodes
        root = json.loads({node.node_path: node.metadata for node in nodes}["root"])
        return {"class_name": root["class_name"], "config": root.get("config")}
    if _is_archive(path):
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("config.json").file_size > LARGEST_TEXT:
                raise ModelFileError(f"{path}: config.json is over {LARGEST_TEXT:,} bytes.")
            with contextlib.suppress(KeyError, json.JSONDecodeError, TypeError):
                metadata = json.loads(archive.read("metadata.json"))
                _refuse_keras_3(path, metadata["keras_version"])
            config = json.loads(archive.read("config.json"))
        return {**config, "compile_config": None}  # the same as compile=False in Keras
    with h5py.File(path, "r") as file:
        _refuse_keras_3(path, file.attrs.get("keras_version", ""))
        if "model_config" not in file.attrs:
            raise ModelFileError(
                f"{path} holds weights only, no architecture: build the network by name "
                "(`teacher=keras:NAME` with `teacher_weights=PATH`)."
            )
        return json.loads(file.attrs["model_config"])


def _refuse_keras_3(path: Path, version: str | bytes):
    """Refuses a file of Keras 3, because Keras 2 cannot build its networks."""
    version = version.decode() if isinstance(version, bytes) else str(version)
    if version.startswith("3"):
        raise ModelFileError(
            f"{path} was saved by Keras 3: save it with tf-keras (TF_USE_LEGACY_KERAS=1), or load "
            "its weights into a network of a known name (`teacher=keras:NAME` "
            "with `teacher_weights=PATH`)."
        )


def _rebuild(path: Path, config: dict) -> tf.keras.Model:
    """Builds the model from exactly the text that was checked, and loads the file's weights.

    Keras's own loader is not safe. It runs the initializers of a SavedModel's graph, revives layers
    from the graph, and unpickles `model.weights.npz`. Here the graph is never opened. Weights are
    read as HDF5 or as a checkpoint.
    """
    model = tf.keras.models.model_from_json(json.dumps(config))
    if path.is_dir():
        restored = model.load_weights(path / "variables" / "variables")
        restored.assert_existing_objects_matched().expect_partial()  # partial: no optimizer here
    else:
        model.load_weights(path)
    return model


def _refuse_strangers(path: Path, config: dict) -> None:
    """Raises ModelFileError for the first name that is not known."""
    known = _known_names()
    todo = [(config, "")]
    while todo:  # every dict at any depth: models in models, wrapped layers, quantizers
        node, layer = todo.pop()
        if isinstance(node, dict):
            inner = node.get("config")
            layer = inner.get("name", layer) if isinstance(inner, dict) else layer
            if "class_name" in node and _stranger(node, known):
                import larq_zoo  # noqa: F401  registers its own; only now, since it takes seconds

                known = _known_names()
                if stranger := _stranger(node, known):
                    raise ModelFileError(
                        f"{path}: layer {layer!r} uses the {stranger}, which may run any code or "
                        "open any file of its author's choice; pass `allow_custom_code=True` "
                        "if you trust its author."
                    )
            todo += [(child, layer) for child in reversed(node.values())]
        elif isinstance(node, list):
            todo += [(child, layer) for child in reversed(node)]


def _stranger(node: dict, known: set[str]) -> str | None:
    """Returns the first unknown name that Keras would look up in a serialized object, or None."""
    # Keras looks for either name, in its registry and then in `module`: all must be known.
    names = [node["class_name"], node.get("registered_name") or "function"]
    if node["class_name"] == "function":
        names.append(node.get("config"))
    for name in map(str, names):
        if name not in known:
            return f"class or function {name!r}"
    module = str(node.get("module") or "builtins")  # builtins: how Keras notes its own functions
    if module != "builtins" and module.split(".")[0] not in TRUSTED_PACKAGES:
        return f"module {module!r}"
    if node["class_name"] in OP_LAYERS:
        symbol = str(node["config"]["function"])
        op = symbol.removeprefix("compat.v1.")
        if op not in OPS and not op.startswith(OP_FAMILIES):
            return f"TensorFlow function {symbol!r}"
    return None


def _known_names() -> set[str]:
    """Returns Keras's public classes and functions, and all that trusted packages registered."""
    k = tf.keras
    known = set()
    for space in (k.layers, k.initializers, k.regularizers, k.constraints, k.losses, k.metrics):
        known.update(name for name, _ in inspect.getmembers(space, inspect.isclass))
    for space in (k.activations, k.regularizers, k.losses, k.metrics):
        known.update(name for name, _ in inspect.getmembers(space, inspect.isfunction))
    for name, value in k.saving.get_custom_objects().items():  # "QuantDense", "candle_tf>Teacher"
        if getattr(value, "__module__", "").split(".")[0] in TRUSTED_PACKAGES:
            known.update((name, name.split(">")[-1]))
    return (known | INTERNAL) - UNSAFE
