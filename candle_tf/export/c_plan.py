"""The plan of a student's C source: the network as a list of a few kinds of operations."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import larq as lq
import numpy as np
import tensorflow as tf
from candle_tf.networks.keras_internals import TFOpLambda
from candle_tf.networks.surgery import rewire
from candle_tf.students.quantizers import FusedApproxSign  # noqa: F401  registers its name
from candle_tf.students.reactnet import RPReLU, RSign

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Window:
    """The input pixels of one output pixel, in a convolution or a pooling.

    Attributes:
        kernel: Height and width in pixels.
        strides: Vertical and horizontal step in pixels.
        dilation: Vertical and horizontal distance of two taps in pixels.
        before: Rows of padding above and columns of padding to the left.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Step:
    """One element-wise operation on the channels of a pixel.

    Attributes:
        kind: "affine" (x * a + b), "prelu" (x, or x * a below 0), "sigmoid", or "add" or
            "multiply" with another value.
        a: Factors or slopes, float64 (channels,).
        b: Summands, float64 (channels,).
        value: The other value, with the same height and width or with one pixel.
    """

    kind: str
    a: np.ndarray | None = None
    b: np.ndarray | None = None
    value: "Value | None" = None


@dataclass(eq=False)
class Value:
    """A feature map, the operation that computes it, and the element-wise steps that follow.

    Attributes:
        kind: "pixels", "binary" and "real" convolutions, "dense" (a real one on one pixel, after
            the last sign), "depthwise", "max", "average", "copy" of parts of other maps, or "view"
            of another map as one pixel.
        layer: Name of the Keras layer.
        shape: Height, width, channels.
        inputs: The feature maps that the operation reads.
        window: Window of each pixel in the first input.
        weights: Real and dense: (taps, inputs, outputs). Binary: the same, True where the weight is
            -1. Depthwise: (taps, channels).
        parts: Parts of a copy: (index of the input, first channel, last channel), or (None, 0, n)
            for n zeros.
        pad: Value around the map of a binary convolution: 0 or 1.
        bits: Index in the input's `packs` that a binary convolution reads.
        steps: The element-wise steps on each pixel.
        packs: Lists of thresholds, float64 (channels,): a channel's bit is set below its threshold.
        stored: Whether another operation reads the real values.
    """

    kind: str
    layer: str
    shape: Shape
    inputs: list["Value"] = field(default_factory=list)
    window: Window = Window((1, 1), (1, 1))
    weights: np.ndarray | None = None
    parts: list[tuple[int | None, int, int]] = field(default_factory=list)
    pad: int = 0
    bits: int = 0
    steps: list[Step] = field(default_factory=list)
    packs: list[np.ndarray] = field(default_factory=list)
    stored: bool = False

    def read(self) -> "Value":
        """Returns the value and notes that another operation reads its real numbers."""
        self.stored = True
        return self

    def packed(self, thresholds: np.ndarray) -> int:
        """Returns the index in `packs` of the signs of (value - thresholds)."""
        for index, known in enumerate(self.packs):
            if np.array_equal(known, thresholds):
                return index
        self.packs.append(thresholds)
        return len(self.packs) - 1


def plan(student: tf.keras.Model, image_size: int) -> list[Value]:
    """Returns the student's values in the order of their computation; the last are the logits.

    An element-wise layer becomes a step of the value before it, unless another layer reads that
    value too.

    Args:
        student: Keras model from images (batch, image_size, image_size, 3) in [0, 255] to logits.
        image_size: Side of the images in pixels.

    Raises:
        ValueError: For a layer that the C source cannot compute. The message names the layer.

    Example:
        >>> [value.kind for value in plan(ct.students.resnet_e(10, blocks=(1,)), 32)]
        ['pixels', 'real', 'depthwise', 'real', 'binary', 'average', 'dense']
    """
    network = rewire(student, (image_size, image_size, 3))
    reader = _Reader()
    pixels = reader.new("pixels", "images", (image_size, image_size, 3))
    (logits,) = reader.trace(network, [pixels])
    if logits.shape[:2] != (1, 1):
        raise ValueError(
            f"The student {student.name!r} ends in a map of {logits.shape}, not in one row of "
            "logits: end it with pooling and a dense layer."
        )
    if logits.kind == "view" or logits is not reader.values[-1]:
        logits = reader.after(logits, "logits")
    logits.read()
    for value in reversed(reader.values):
        if value.kind == "binary":
            break
        if value.kind == "real" and value.shape[:2] == value.window.kernel == (1, 1):
            value.kind = "dense"
    return reader.values


class _Reader:
    """Traces Keras networks node by node."""

    def __init__(self):
        self.values: list[Value] = []
        self.readers: Counter = Counter()  # how many nodes read a value
        self.shared: set[int] = set()  # ids of the values that several nodes read

    def new(self, kind: str, layer: str, shape: Shape, *inputs: Value, **details) -> Value:
        value = Value(kind, layer, shape, list(inputs), **details)
        self.values.append(value)
        return value

    def trace(self, network: tf.keras.Model, inputs: list[Value]) -> list[Value]:
        known = {id(tensor): value for tensor, value in zip(network.inputs, inputs)}
        nodes = [
            node
            for depth in sorted(network._nodes_by_depth, reverse=True)
            for node in network._nodes_by_depth[depth]
            if not node.is_input
        ]
        readers = Counter(id(tensor) for node in nodes for tensor in node.keras_inputs)
        readers.update(id(tensor) for tensor in network.outputs)
        for node in nodes:
            given = [known[id(tensor)] for tensor in node.keras_inputs]
            for tensor, value in zip(node.keras_inputs, given):
                if readers[id(tensor)] > 1:
                    self.shared.add(id(value))
            made = self.node(node, given)
            for tensor, value in zip(tf.nest.flatten(node.outputs), made):
                known[id(tensor)] = value
        return [known[id(tensor)] for tensor in network.outputs]

    def node(self, node, given: list[Value]) -> list[Value]:
        layer = node.layer
        if isinstance(layer, tf.keras.Model):
            return self.trace(layer, given)
        if type(layer) not in READERS:  # a subclass may compute something else
            refuse(layer, "is not among the layers that the C source computes")
        for weights in layer.get_weights():
            if not np.all(np.isfinite(weights)):
                refuse(layer, "has weights that are not finite")
        made = READERS[type(layer)](self, layer, given, node)
        return made if isinstance(made, list) else [made]

    def after(self, value: Value, layer: str, *steps: Step) -> Value:
        """Returns the value with more steps, or a copy with them if another layer reads it."""
        if id(value) in self.shared or value.kind == "view" or value.stored or value.packs:
            # A new value that starts as a copy of this one.
            parts = [(0, 0, value.shape[2])]
            value = self.new("copy", layer, value.shape, value.read(), parts=parts)
        for step in steps:
            last = value.steps[-1] if value.steps else None
            if step.kind == "affine" and last and last.kind == "affine":
                value.steps[-1] = Step("affine", last.a * step.a, last.b * step.a + step.b)
            else:
                value.steps.append(step)
        return value

    def joined(self, layer: str, kind: str, a: Value, b: Value) -> Value:
        """Returns a + b or a * b, as a step of the later one."""
        if self.values.index(a) < self.values.index(b):
            a, b = b, a
        if a.shape != b.shape and a.shape[:2] == (1, 1):  # a factor per channel, computed last
            self.shared.add(id(b))
            a, b = self.after(b, layer), a
        if b.shape not in (a.shape, (1, 1, a.shape[2])):
            raise ValueError(
                f"Layer {layer!r} joins maps of {a.shape} and {b.shape}, which the C source does "
                "not compute: export with format='tflite'."
            )
        if a is b:
            self.shared.add(id(a))
            a = self.after(a, layer)
        return self.after(a, layer, Step(kind, value=b.read()))


def refuse(layer: tf.keras.layers.Layer, problem: str):
    """Raises the sentence that names a layer and the problem that the C source has with it."""
    raise ValueError(
        f"Layer {layer.name!r} ({type(layer).__name__}) {problem}: export with format='tflite'."
    )


def affine(scale, shift, channels: int) -> Step:
    """Returns the step x * scale + shift, with one number of each per channel."""
    full = [np.broadcast_to(np.asarray(x, np.float64), (channels,)).copy() for x in (scale, shift)]
    return Step("affine", *full)


def prelu(slope, channels: int) -> Step:
    """Returns the step that multiplies negative numbers by a slope per channel."""
    return Step("prelu", np.broadcast_to(np.asarray(slope, np.float64), (channels,)).copy())


def activation(reader: _Reader, layer, value: Value) -> Value:
    """Returns the value behind the layer's own activation."""
    function = getattr(layer, "activation", None)
    name = getattr(function, "__name__", type(function).__name__)
    if function is None or name == "linear":
        return value
    if name == "relu":
        return reader.after(value, layer.name, prelu(0.0, value.shape[2]))
    if name == "sigmoid":
        return reader.after(value, layer.name, Step("sigmoid"))
    refuse(layer, f"has the activation {name!r}, which the C source does not compute")


def window_of(layer, shape: Shape, kernel, strides, dilation=(1, 1)) -> tuple[Window, list[int]]:
    """Returns the window of a convolution or a pooling, and its output's height and width."""
    before, sides = [], []
    for side, size, step, spread in zip(shape, kernel, strides, dilation):
        reach = (size - 1) * spread + 1
        if layer.padding == "same":
            sides.append(-(-side // step))
            before.append(max((sides[-1] - 1) * step + reach - side, 0) // 2)
        elif layer.padding == "valid":
            sides.append((side - reach) // step + 1)
            before.append(0)
        else:
            refuse(layer, f"pads by {layer.padding!r}")
    if layer.data_format != "channels_last":
        refuse(layer, "has its channels first")
    window = Window(tuple(kernel), tuple(strides), tuple(dilation), tuple(before))
    return window, sides


def thresholds_of(layer, quantizer, channels: int) -> np.ndarray | None:
    """Returns the thresholds below which an input becomes -1, or None for a real-valued input."""
    if quantizer is None or isinstance(quantizer, lq.quantizers.NoOp):
        return None
    alpha = np.zeros(channels)
    if isinstance(quantizer, RSign):
        alpha = quantizer.alpha.numpy().astype(np.float64)
        quantizer = quantizer.quantizer
    probe = np.array([-1e6, -2.0, -1.0, -1e-6, 0.0, 1e-6, 0.5, 1.0, 2.0, 1e6], np.float32)
    given = probe if quantizer is None else quantizer(tf.constant(probe)).numpy()
    if not np.array_equal(given, np.where(probe >= 0, 1.0, -1.0)):
        refuse(layer, "has an input that is not quantized to -1 and 1")
    return alpha


def read_convolution(reader: _Reader, layer, given: list[Value], node) -> Value:
    """Reads a convolution or dense layer as a binary or real one, by its input quantizer."""
    (x,) = given
    dense = isinstance(layer, tf.keras.layers.Dense)
    kernel = quantized(layer, "kernel")
    if dense:
        kernel = kernel[None, None]
        window, sides = Window((1, 1), (1, 1)), list(x.shape[:2])
    else:
        window, sides = window_of(
            layer, x.shape, layer.kernel_size, layer.strides, layer.dilation_rate
        )
    outputs = kernel.shape[3]
    shape = (*sides, outputs)
    thresholds = thresholds_of(layer, getattr(layer, "input_quantizer", None), x.shape[2])
    if thresholds is not None:
        if getattr(layer, "groups", 1) > 1:
            refuse(layer, f"is binary in {layer.groups} groups")
        scale = np.abs(kernel[0, 0, 0])
        if np.any(scale == 0) or not np.array_equal(
            np.abs(kernel), np.broadcast_to(scale, kernel.shape)
        ):
            refuse(layer, "has a kernel of more than 1 bit")
        pad = getattr(layer, "pad_values", 0.0)
        if pad not in (0.0, 1.0):
            refuse(layer, f"pads by {pad}")
        if x.kind == "view":
            x = reader.after(x, layer.name)
        bits = x.packed(thresholds)
        weights = (kernel < 0).reshape(-1, *kernel.shape[2:])
        value = reader.new(
            "binary", layer.name, shape, x, window=window, weights=weights, pad=int(pad), bits=bits
        )
    else:
        groups = getattr(layer, "groups", 1)
        if groups > 1:  # one convolution, with zeros between the groups
            inputs = kernel.shape[2]
            full = np.zeros((*kernel.shape[:2], inputs * groups, outputs))
            for group in range(groups):
                mine = slice(group * outputs // groups, (group + 1) * outputs // groups)
                full[:, :, group * inputs : (group + 1) * inputs, mine] = kernel[..., mine]
            kernel = full
        if getattr(layer, "pad_values", 0.0):
            refuse(layer, f"pads a real-valued input by {layer.pad_values}")
        weights = kernel.reshape(-1, *kernel.shape[2:]).astype(np.float64)
        value = reader.new("real", layer.name, shape, x.read(), window=window, weights=weights)
        scale = np.ones(outputs)
    bias = layer.bias.numpy() if layer.use_bias else 0.0
    reader.after(value, layer.name, affine(scale, bias, outputs))
    return activation(reader, layer, value)


def quantized(layer, role: str) -> np.ndarray:
    """Returns a layer's kernel after its quantizer, float64."""
    kernel = getattr(layer, role)
    quantizer = getattr(layer, f"{role}_quantizer", None)
    kernel = tf.convert_to_tensor(kernel)
    return (kernel if quantizer is None else quantizer(kernel)).numpy().astype(np.float64)


def read_depthwise(reader: _Reader, layer, given: list[Value], node) -> Value:
    """Reads a depthwise convolution with a real-valued input and one output per channel."""
    (x,) = given
    if getattr(layer, "input_quantizer", None) is not None:
        refuse(layer, "is a quantized depthwise convolution")
    kernel = quantized(
        layer, "depthwise_kernel" if hasattr(layer, "depthwise_kernel") else "kernel"
    )
    if kernel.shape[3] != 1:
        refuse(layer, f"makes {kernel.shape[3]} channels from each one")
    if getattr(layer, "pad_values", 0.0):
        refuse(layer, f"pads a real-valued input by {layer.pad_values}")
    window, sides = window_of(layer, x.shape, layer.kernel_size, layer.strides, layer.dilation_rate)
    weights = kernel.reshape(-1, kernel.shape[2])
    value = reader.new(
        "depthwise", layer.name, (*sides, x.shape[2]), x.read(), window=window, weights=weights
    )
    if layer.use_bias:
        reader.after(value, layer.name, affine(1.0, layer.bias.numpy(), x.shape[2]))
    return activation(reader, layer, value)


def read_pooling(kind: str) -> Callable:
    """Returns the reader of a pooling over windows, "max" or "average"."""

    def read(reader: _Reader, layer, given: list[Value], node) -> Value:
        (x,) = given
        window, sides = window_of(layer, x.shape, layer.pool_size, layer.strides)
        return reader.new(kind, layer.name, (*sides, x.shape[2]), x.read(), window=window)

    return read


def read_global_pooling(kind: str) -> Callable:
    """Returns the reader of a pooling whose single window is the whole map."""

    def read(reader: _Reader, layer, given: list[Value], node) -> Value:
        (x,) = given
        window = Window(x.shape[:2], x.shape[:2])
        return reader.new(kind, layer.name, (1, 1, x.shape[2]), x.read(), window=window)

    return read


def read_batch_norm(reader: _Reader, layer, given: list[Value], node) -> Value:
    """Reads batch norm as an affine step with the moving averages."""
    (x,) = given
    if list(layer.axis) != [len(layer.get_input_shape_at(-1)) - 1]:
        refuse(layer, "does not normalise the last axis")
    scale = 1.0 / np.sqrt(layer.moving_variance.numpy().astype(np.float64) + layer.epsilon)
    if layer.scale:
        scale = scale * layer.gamma.numpy()
    shift = -layer.moving_mean.numpy() * scale
    if layer.center:
        shift = shift + layer.beta.numpy()
    return reader.after(x, layer.name, affine(scale, shift, x.shape[2]))


def read_rescaling(reader: _Reader, layer, given: list[Value], node) -> Value:
    """Reads Keras' input scaling as an affine step."""
    (x,) = given
    return reader.after(x, layer.name, affine(layer.scale, layer.offset, x.shape[2]))


def read_prelu(reader: _Reader, layer, given: list[Value], node) -> Value:
    """Reads a PReLU with one slope for all channels or one per channel."""
    (x,) = given
    slope = layer.alpha.numpy()
    if slope.size not in (1, x.shape[2]):
        refuse(layer, "has a slope for each pixel")
    return reader.after(x, layer.name, prelu(slope.reshape(-1), x.shape[2]))


def read_leaky_relu(reader: _Reader, layer, given: list[Value], node) -> Value:
    """Reads a leaky ReLU as a PReLU with a fixed slope."""
    return reader.after(given[0], layer.name, prelu(float(layer.alpha), given[0].shape[2]))


def read_relu(reader: _Reader, layer, given: list[Value], node) -> Value:
    """Reads a ReLU without a maximum or threshold as a PReLU with a fixed slope."""
    if layer.max_value is not None or layer.threshold:
        refuse(layer, "has a maximum or a threshold")
    slope = float(layer.negative_slope)
    return reader.after(given[0], layer.name, prelu(slope, given[0].shape[2]))


def read_rprelu(reader: _Reader, layer, given: list[Value], node) -> Value:
    """Reads ReActNet's RPReLU as a shift, a PReLU and another shift."""
    (x,) = given
    channels = x.shape[2]
    return reader.after(
        x,
        layer.name,
        affine(1.0, -layer.gamma.numpy(), channels),
        prelu(layer.slope.numpy().reshape(-1), channels),
        affine(1.0, layer.zeta.numpy(), channels),
    )


def read_activation(reader: _Reader, layer, given: list[Value], node) -> Value:
    """Reads a layer that is only an activation, such as "relu"."""
    return activation(reader, layer, given[0])


def read_identity(reader: _Reader, layer, given: list[Value], node) -> Value:
    """Reads a layer that does nothing in inference, such as dropout."""
    return given[0]


def read_add(reader: _Reader, layer, given: list[Value], node) -> Value:
    """Reads a sum of maps, for instance with a shortcut."""
    total, *others = given
    for other in others:
        total = reader.joined(layer.name, "add", total, other)
    return total


def read_multiply(reader: _Reader, layer, given: list[Value], node) -> Value:
    """Reads a product of maps, for instance with a gate per channel."""
    total, *others = given
    for other in others:
        total = reader.joined(layer.name, "multiply", total, other)
    return total


def read_concatenate(reader: _Reader, layer, given: list[Value], node) -> Value:
    """Reads a concatenation of channels as one copy of all maps."""
    axis = getattr(layer, "axis", -1)
    if axis not in (-1, len(node.outputs.shape) - 1):
        refuse(layer, "does not concatenate channels")
    return copied(reader, layer, [(value, 0, value.shape[2]) for value in given])


def copied(reader: _Reader, layer, parts: list[tuple[Value | None, int, int]]) -> Value:
    """Returns a new map of parts: (map, first channel, last channel), or (None, 0, n) for zeros."""
    inputs = [value.read() for value, *_ in parts if value is not None]
    channels = sum(last - first for _, first, last in parts)
    indices = iter(range(len(inputs)))
    numbered = [(None if v is None else next(indices), first, last) for v, first, last in parts]
    return reader.new("copy", layer.name, (*inputs[0].shape[:2], channels), *inputs, parts=numbered)


def read_reshape(reader: _Reader, layer, given: list[Value], node) -> Value:
    """Reads a reshape or flattening to one pixel as a view of the same memory."""
    (x,) = given
    target = tuple(node.outputs.shape[1:])
    if any(side != 1 for side in target[:-1]):
        refuse(layer, f"makes a map of {target}")
    if x.shape[:2] == (1, 1):
        return x
    return reader.new("view", layer.name, (1, 1, int(np.prod(x.shape))), x.read())


def read_operation(reader: _Reader, layer, given: list[Value], node) -> Value | list[Value]:
    """Reads a TensorFlow function that was called on Keras tensors, such as a sum or a split."""
    name = layer.function.__name__ if hasattr(layer, "function") else layer.name
    symbol = getattr(layer, "symbol", name)
    if symbol in ("__operators__.add", "math.add", "add") and len(given) == 2:
        return read_add(reader, layer, given, node)
    if symbol in ("math.multiply", "multiply") and len(given) == 2:
        return read_multiply(reader, layer, given, node)
    if symbol in ("nn.relu", "relu") and len(given) == 1:
        return reader.after(given[0], layer.name, prelu(0.0, given[0].shape[2]))
    if symbol == "concat":
        axis = node.call_kwargs.get("axis", node.call_args[1] if len(node.call_args) > 1 else None)
        if axis in (-1, 3):
            return copied(reader, layer, [(value, 0, value.shape[2]) for value in given])
    if symbol == "split":
        first, parts = 0, []
        for tensor in node.outputs:
            last = first + tensor.shape[-1]
            parts.append(copied(reader, layer, [(given[0], first, last)]))
            first = last
        if first == given[0].shape[2]:
            return parts
    if symbol in ("compat.v1.pad", "pad"):
        rest = [x for x in (*node.call_args, *node.call_kwargs.values()) if isinstance(x, list)]
        if rest and np.shape(rest[0]) == (4, 2) and not np.any(rest[0][:3]):
            before, after = rest[0][3]
            (x,) = given
            parts = [(None, 0, before), (x, 0, x.shape[2]), (None, 0, after)]
            return copied(reader, layer, [part for part in parts if part[2]])
    refuse(layer, f"calls TensorFlow's {symbol} in a way that the C source does not compute")


K = tf.keras.layers
READERS: dict[type, Callable] = {
    K.Conv2D: read_convolution,
    K.Dense: read_convolution,
    K.DepthwiseConv2D: read_depthwise,
    K.MaxPooling2D: read_pooling("max"),
    K.AveragePooling2D: read_pooling("average"),
    K.GlobalAveragePooling2D: read_global_pooling("average"),
    K.GlobalMaxPooling2D: read_global_pooling("max"),
    K.BatchNormalization: read_batch_norm,
    K.Rescaling: read_rescaling,
    K.PReLU: read_prelu,
    K.LeakyReLU: read_leaky_relu,
    K.ReLU: read_relu,
    RPReLU: read_rprelu,
    K.Activation: read_activation,
    K.Dropout: read_identity,
    K.SpatialDropout2D: read_identity,
    K.Add: read_add,
    K.Multiply: read_multiply,
    K.Concatenate: read_concatenate,
    lq.layers.QuantConv2D: read_convolution,
    lq.layers.QuantDense: read_convolution,
    lq.layers.QuantDepthwiseConv2D: read_depthwise,
    K.Flatten: read_reshape,
    K.Reshape: read_reshape,
    TFOpLambda: read_operation,
}
