"""The student as a TFLite flatbuffer: 1-bit for Larq Compute Engine (LCE), or real-valued."""

import io
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import larq as lq
import numpy as np
import tensorflow as tf
from candle_tf.export.interpreters import larq_compute_engine, lce_interpreter
from candle_tf.export.saved_model import (
    NAMES_FILE,
    PREPROCESSING_FILE,
    names_text,
    preprocessing_text,
    writing,
)
from candle_tf.networks.keras_internals import flat_layers
from candle_tf.networks.surgery import rewire
from candle_tf.students.bits import KERNELS, is_binary
from candle_tf.utils.files import written_beside
from candle_tf.utils.quiet import quiet_conversion


def export_flatbuffer(
    student: tf.keras.Model,
    path: str | os.PathLike,
    image_size: int,
    class_names: Sequence[str] | None = None,
    centre_square: float = 1.0,
    *,
    binary: bool,
):
    """Writes the student as a `.tflite` file.

    The network in the file takes `images`, float32 RGB in [0, 255], (1, image_size, image_size, 3).
    It gives `probabilities`, float32 (1, classes). A zip archive at the end of the file holds the
    class names, like TFLite's associated files: `unzip -p FILE class_names.txt`. It also holds
    `preprocessing.json` with `centre_square`.

    Args:
        student: Keras model from images to logits.
        path: File to write. An earlier file is replaced once the new one is complete.
        image_size: Side of the images in pixels.
        class_names: Names in class order; by default the class numbers.
        centre_square: Side of the central square to cut out of a photograph, as a fraction of its
            shorter side.
        binary: Whether LCE converts the student. LCE packs 1-bit weights and runs their
            convolutions as bit operations, and the file needs LCE's runtime. Otherwise TFLite
            converts the student with real-valued weights, for any TFLite runtime.

    Raises:
        ImportError: If LCE is not installed.
        ValueError: If `path` does not end in `.tflite`, or the numbers of names and classes differ.
            Also if a quantized layer would stay real-valued in a binary file; the message names it.
        OSError: If the file cannot be written.

    Example:
        >>> pixels = tf.keras.Input((16, 16, 3))
        >>> logits = tf.keras.layers.Dense(3)(tf.keras.layers.GlobalAveragePooling2D()(pixels))
        >>> student = tf.keras.Model(pixels, logits)
        >>> ct.export.export_flatbuffer(student, "pets.tflite", image_size=16, binary=False)
        >>> os.path.exists("pets.tflite")
        True
    """
    write_flatbuffer(
        student,
        path,
        class_names,
        centre_square,
        lambda: to_lce(student, image_size) if binary else to_tflite(student, image_size),
    )


def write_flatbuffer(
    student: tf.keras.Model,
    path: str | os.PathLike,
    class_names: Sequence[str] | None,
    centre_square: float,
    make: Callable[[], bytes],
):
    """Writes a flatbuffer with its class names, as `export_flatbuffer` describes.

    Args:
        student: Keras model from images to logits.
        path: File to write.
        class_names: Names in class order; by default the class numbers.
        centre_square: Side of the central square, as a fraction of the shorter side.
        make: Function that returns the flatbuffer; called after the checks of the other arguments.

    Raises:
        ValueError: For a wrong file name or wrong class names.
        OSError: If the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".tflite":
        raise ValueError(f"The name of a flatbuffer must end in .tflite, not {path.name!r}.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory: name a file in it.")
    names, preprocessing = names_text(student, class_names), preprocessing_text(centre_square)
    with writing(path):
        flatbuffer = make()
        path.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(path) as beside:
        beside.write_bytes(with_names(flatbuffer, names, preprocessing))


def with_names(flatbuffer: bytes, names: str, preprocessing: str) -> bytes:
    """Appends the zip archive with the two text files to a flatbuffer."""
    file = io.BytesIO(flatbuffer)
    with zipfile.ZipFile(file, "a") as archive:  # without dates, so that equal exports are equal
        archive.writestr(zipfile.ZipInfo(NAMES_FILE), names)
        archive.writestr(zipfile.ZipInfo(PREPROCESSING_FILE), preprocessing)
    return file.getvalue()


def to_tflite(student: tf.keras.Model, image_size: int) -> bytes:
    """Converts the student by TFLite's own converter, with real-valued weights in all layers."""
    return convert(
        with_softmax(student),
        (1, image_size, image_size, 3),
        lambda path: tf.lite.TFLiteConverter.from_saved_model(path).convert(),
    )


def to_lce(student: tf.keras.Model, image_size: int) -> bytes:
    """Converts the student by LCE, with all quantized layers in 1 bit.

    Raises:
        ImportError: If LCE is not installed.
        ValueError: For a layer that would stay real-valued, or a network that LCE cannot run.
    """
    lce = larq_compute_engine()
    sized = rewire(student, (image_size, image_size, 3))  # tells each layer its input's shape
    layers = binary_layers(sized)
    shape = (1, image_size, image_size, 3)
    flatbuffer = convert(with_softmax(unfolded(sized, layers)), shape, lce.convert_saved_model)
    found = operations(flatbuffer)
    if found.count("LceBconv2d") < len(layers) or "LceDequantize" in found:
        for layer in layers:  # converts each layer alone to find the culprit
            shape = (1, *layer.get_input_shape_at(-1)[1:])
            alone = convert(layer, shape, lce.convert_saved_model)
            if "LceBconv2d" not in operations(alone):
                raise ValueError(
                    f"Larq Compute Engine keeps layer {layer.name!r} real-valued: choose "
                    "quantizers to -1 and 1 and padding by 0 or 1, or export with format='tflite'."
                )
        if found.count("LceBconv2d") < len(layers):
            raise ValueError(
                f"Larq Compute Engine keeps a layer of {student.name!r} real-valued, although it "
                "packs each layer alone: export with format='tflite'."
            )
    try:
        lce_interpreter(flatbuffer)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"Larq Compute Engine converts {student.name!r} but cannot run it ({error}): export "
            "with format='tflite'."
        ) from error
    return flatbuffer


def binary_layers(student: tf.keras.Model) -> list[tf.keras.layers.Layer]:
    """Returns the student's quantized layers, if LCE can pack all of them.

    Raises:
        ValueError: For a student without quantized layers, or for the first that LCE cannot pack.
    """
    found = []
    for layer in flat_layers(student):  # those of nested models too
        names = {role: f"{role}_quantizer" for role in ("input", *KERNELS)}
        own = {role: getattr(layer, q) for role, q in names.items() if hasattr(layer, q)}
        if not any(own.values()):
            continue
        if not isinstance(layer, lq.layers.QuantConv2D):
            problem = f"is a {type(layer).__name__}, but LCE packs only QuantConv2D"
        elif layer.groups > 1:
            problem = f"has {layer.groups} groups, which LCE cannot run"
        elif wide := [role for role, quantizer in own.items() if not is_binary(quantizer)]:
            precision = getattr(own[wide[0]], "precision", None)
            problem = f"has {f'a {precision}-bit' if precision else 'a real-valued'} {wide[0]}"
        elif side := too_small_to_pad(layer):
            problem = (
                f"pads its {side}-pixel input with zeros, which LCE computes wrongly where the "
                "kernel is larger (pad_values=1.0 or larger images help)"
            )
        else:
            found.append(layer)
            continue
        raise ValueError(
            f"Layer {layer.name!r} {problem}: a binary file cannot hold it. Train a network "
            "that is binary throughout, or export with format='tflite'."
        )
    if not found:
        raise ValueError(
            f"The student {student.name!r} has no binary layer: export it with format='tflite'."
        )
    return found


class Unfolded(tf.keras.layers.BatchNormalization):
    """Batch norm after an operation that changes nothing, but keeps LCE from folding the norm."""

    def call(self, inputs, training=None):
        return super().call(tf.maximum(inputs, inputs.dtype.min), training=training)


def unfolded(
    student: tf.keras.Model, binary: list[tf.keras.layers.Layer], tolerance: float = 1e-4
) -> tf.keras.Model:
    """Returns the same network, but keeps LCE from folding a batch norm if that loses digits.

    LCE folds the norm's scale s into a convolution of k inputs as s k - 2 s (bits that differ), in
    float32. A large s loses digits in this difference. For a channel that never varied in training
    (dead behind a ReLU), s is in the hundreds, and the error s k 2^-24 in the hundredths.

    Args:
        student: The student.
        binary: Its binary layers.
        tolerance: Largest accepted error.
    """
    apart = {}
    for layer in binary:
        signs = layer.kernel_quantizer(tf.convert_to_tensor(layer.kernel))  # may be scaled
        inputs = np.sum(np.abs(signs), axis=(0, 1, 2))
        for norm in {node.layer for node in layer.outbound_nodes} & set(student.layers):
            if isinstance(norm, tf.keras.layers.BatchNormalization):
                variance = norm.moving_variance.numpy() + norm.epsilon
                scale = (norm.gamma.numpy() if norm.scale else 1.0) / np.sqrt(variance)
                if np.max(np.abs(scale) * inputs) * 2.0**-24 > tolerance:
                    apart[norm] = Unfolded.from_config(norm.get_config())
    again = rewire(student, student.input_shape[1:], lambda layer: apart.get(layer, layer))
    for norm, copy in apart.items():
        copy.set_weights(norm.get_weights())
    return again


def too_small_to_pad(layer: lq.layers.QuantConv2D) -> int | None:
    """Returns the side of a zero-padded input that is smaller than the kernel, else None.

    LCE 0.16 corrects its optimised kernels for zero padding, but not for windows that extend beyond
    both sides of the map.
    """
    for side, kernel, dilation in zip(
        layer.get_input_shape_at(-1)[1:3], layer.kernel_size, layer.dilation_rate
    ):
        zeros = layer.padding == "same" and layer.pad_values == 0.0
        if zeros and side < (kernel - 1) * dilation + 1:
            return side
    return None


def with_softmax(student: tf.keras.Model) -> tf.keras.Model:
    """Returns the student with a softmax after its logits."""
    # Fixed names: Keras would number the layers, and equal exports would differ.
    return tf.keras.Sequential([student, tf.keras.layers.Softmax(name="softmax")], name="export")


def convert(
    layer: tf.keras.layers.Layer, input_shape: tuple[int, ...], converter: Callable[[str], bytes]
) -> bytes:
    """Converts a layer or model with float32 inputs through a temporary SavedModel.

    Args:
        layer: The layer or model.
        input_shape: Fixed shape of its input.
        converter: Function from the SavedModel's path to the flatbuffer.
    """
    module = tf.Module()
    module.parameters = layer.variables
    module.run = tf.function(
        lambda images: {"probabilities": layer(images, training=False)},
        input_signature=[tf.TensorSpec(input_shape, tf.float32, name="images")],
    )
    with quiet_conversion(), tempfile.TemporaryDirectory() as path:
        tf.saved_model.save(
            module,
            path,
            signatures={"serving_default": module.run},
            options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
        )
        return converter(path)


def operations(flatbuffer: bytes) -> list[str]:
    """Returns the custom operations of a flatbuffer by name, in running order, "" for built-ins."""
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(flatbuffer, 0)
    codes = [(code.customCode or b"").decode() for code in model.operatorCodes]
    return [codes[operator.opcodeIndex] for operator in model.subgraphs[0].operators]
