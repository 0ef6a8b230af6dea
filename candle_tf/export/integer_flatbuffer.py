"""Flatbuffers with 8-bit integers: full-precision students, or the real layers of binary ones."""

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from candle_tf.export.flatbuffer import (
    binary_layers,
    convert,
    to_lce,
    with_softmax,
    write_flatbuffer,
)

SMALL = 4000  # weights up to this many bytes stay float32: the first convolution matters most
WEIGHTS = {"CONV_2D": 0, "FULLY_CONNECTED": 0, "DEPTHWISE_CONV_2D": 3}  # their axis of outputs


def export_int8(
    student: tf.keras.Model,
    path: str | os.PathLike,
    image_size: int,
    class_names: Sequence[str] | None = None,
    centre_square: float = 1.0,
    *,
    images: np.ndarray | None = None,
):
    """Writes a full-precision student as a `.tflite` file that computes in 8-bit integers.

    The network takes float32 images and gives float32 probabilities, like other flatbuffers.

    Args:
        student: Keras model without quantizers, from images to logits.
        path: File to write.
        image_size: Side of the images in pixels.
        class_names: Names in class order; by default the class numbers.
        centre_square: Side of the central square to cut out of a photograph, as a fraction of its
            shorter side.
        images: Training images (n, image_size, image_size, 3) in [0, 255] that measure the range of
            each activation; about 100 are enough.

    Raises:
        ValueError: For a binary student, without images, or as `export_flatbuffer`.

    Example:
        >>> pixels = tf.keras.Input((16, 16, 3))
        >>> logits = tf.keras.layers.Dense(3)(tf.keras.layers.GlobalAveragePooling2D()(pixels))
        >>> student = tf.keras.Model(pixels, logits)
        >>> images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
        >>> ct.export.export_int8(student, "pets.tflite", image_size=16, images=images)
    """
    if images is None or not len(images):
        raise ValueError(
            "format='int8' measures the ranges of its activations on images: give some training "
            "images."
        )
    try:
        binary_layers(student)
    except ValueError as error:
        if "has no binary layer" not in str(error):
            raise ValueError(quantizers_of(student)) from error
    else:
        raise ValueError(quantizers_of(student))
    write_flatbuffer(
        student,
        path,
        class_names,
        centre_square,
        lambda: to_int8(student, image_size, images),
    )


def quantizers_of(student: tf.keras.Model) -> str:
    """Returns the sentence that refuses a student with quantizers."""
    return (
        f"The student {student.name!r} has quantizers: train it with `student_bits=32` for int8, "
        "or export with `format=lce_int8`."
    )


def to_int8(student: tf.keras.Model, image_size: int, images: np.ndarray) -> bytes:
    """Quantizes the student by TFLite, with ranges of activations measured on images."""

    def converter(path: str) -> bytes:
        given = tf.lite.TFLiteConverter.from_saved_model(path)
        given.optimizations = [tf.lite.Optimize.DEFAULT]
        given.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        given.representative_dataset = lambda: ([image[None]] for image in np.float32(images))
        return given.convert()

    return convert(with_softmax(student), (1, image_size, image_size, 3), converter)


def export_lce_int8(
    student: tf.keras.Model,
    path: str | os.PathLike,
    image_size: int,
    class_names: Sequence[str] | None = None,
    centre_square: float = 1.0,
):
    """Writes the flatbuffer of Larq Compute Engine with 8-bit weights in its real-valued layers.

    Larq Compute Engine expands these weights once, when it loads the file. Arguments and errors are
    those of `candle_tf.export.export_flatbuffer`.

    Example:
        >>> student = ct.students.resnet_e(num_classes=3, image_size=16, width=0.125)
        >>> ct.export.export_lce_int8(student, "pets.tflite", 16)  # doctest: +SKIP
    """
    write_flatbuffer(
        student,
        path,
        class_names,
        centre_square,
        lambda: with_int8_weights(to_lce(student, image_size)),
    )


def with_int8_weights(flatbuffer: bytes) -> bytes:
    """Returns the flatbuffer with int8 instead of float32 weights, and one scale per output.

    Biases, and the factors after binary convolutions, stay float32.
    """
    import flatbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(flatbuffer, 0)
    graph = model.subgraphs[0]
    codes = {getattr(schema.BuiltinOperator, name): axis for name, axis in WEIGHTS.items()}
    dequantize = schema.OperatorCodeT()
    dequantize.builtinCode = schema.BuiltinOperator.DEQUANTIZE
    dequantize.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    dequantize.version = 5  # accepts one scale per channel
    before = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        axis = codes.get(max(code.builtinCode, code.deprecatedBuiltinCode))
        if axis is None:
            continue
        number = operator.inputs[1]
        weights = graph.tensors[number]
        data = model.buffers[weights.buffer].data
        if weights.type != schema.TensorType.FLOAT32 or data is None or len(data) < SMALL:
            continue
        values = np.frombuffer(bytes(data), np.float32).reshape(weights.shape)
        others = tuple(i for i in range(values.ndim) if i != axis)
        scale = np.max(np.abs(values), axis=others, keepdims=True) / 127
        scale[scale == 0] = 1.0
        buffer, packed = schema.BufferT(), schema.TensorT()
        buffer.data = np.rint(values / scale).astype(np.int8).view(np.uint8).ravel()
        packed.shape, packed.type, packed.name = weights.shape, schema.TensorType.INT8, b"int8"
        packed.buffer, packed.quantization = len(model.buffers), schema.QuantizationParametersT()
        packed.quantization.scale = scale.ravel()
        packed.quantization.zeroPoint = np.zeros(scale.size, np.int64)
        packed.quantization.quantizedDimension = axis
        model.buffers.append(buffer)
        weights.buffer = 0  # the empty buffer, as the runtime computes this tensor
        expand = schema.OperatorT()
        expand.opcodeIndex = len(model.operatorCodes)
        expand.inputs, expand.outputs = [len(graph.tensors)], [number]
        graph.tensors.append(packed)
        before.append(expand)
    unused = {tensor.buffer for tensor in graph.tensors}
    for index, buffer in enumerate(model.buffers):
        described = [entry.buffer for entry in model.metadata or ()]
        if index not in unused and index not in described:
            buffer.data = None
    model.operatorCodes.append(dequantize)
    graph.operators = [*before, *graph.operators]
    builder = flatbuffers.Builder(len(flatbuffer))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
