"""The gradient of a convolution by its input, computed as a convolution.

On a CPU, TensorFlow's own operation for this gradient is slow for small feature maps of many
channels (docs/performance.md). The same sums as a convolution of the outputs' gradient with the
mirrored kernel take a fraction of that time. Only the order of the summands differs.
"""

from functools import partial

import larq as lq
import tensorflow as tf
from candle_tf.networks.keras_internals import flat_layers, left_padding, pad_in_convolution_op
from candle_tf.utils.distribution import only_cpus

MOST_PLACES = 64  # of a strided convolution's outputs: above, TensorFlow's own gradient is faster


def quicken(network: tf.keras.Model):
    """Has the convolutions of a network compute the gradient by their input as a convolution.

    Values, weights and configs stay as they are. Layers of other classes than Keras' and Larq's
    two-dimensional convolutions keep their gradients, and so does each layer where there is a GPU.

    Args:
        network: Network whose layers change in place, also those of the networks within it.

    Example:
        >>> student = ct.students.resnet_e(num_classes=10, image_size=32, blocks=(1,))
        >>> quicken(student)
        >>> student(tf.zeros((1, 32, 32, 3))).shape
        TensorShape([1, 10])
    """
    if not only_cpus():
        return
    for layer in flat_layers(network):
        if type(layer) in (tf.keras.layers.Conv2D, lq.layers.QuantConv2D) and is_plain(layer):
            pad_in_convolution_op(layer)
            layer.convolution_op = partial(convolution_op, layer)


def is_plain(layer: tf.keras.layers.Conv2D) -> bool:
    """Returns whether `input_gradient` can compute a layer's gradient.

    Example:
        >>> is_plain(tf.keras.layers.Conv2D(4, 3)), is_plain(tf.keras.layers.Conv2D(4, 1, 2))
        (True, False)
    """
    whole = layer.groups == 1 and layer.dilation_rate == (1, 1)
    stride, other = layer.strides
    covered = stride == other <= min(layer.kernel_size)  # each place of the input is seen
    return whole and covered and layer.data_format == "channels_last"


def convolution_op(
    layer: tf.keras.layers.Conv2D, inputs: tf.Tensor, kernel: tf.Tensor
) -> tf.Tensor:
    """Returns a layer's convolution, in place of Keras' method of this name.

    Args:
        layer: Layer that gives the padding and the strides.
        inputs: Inputs (batch, height, width, channels), not padded yet.
        kernel: Kernel (height, width, channels, filters).
    """
    kernel, stride = tf.convert_to_tensor(kernel), layer.strides[0]
    pads = left_padding(layer, inputs)
    padding = "VALID" if pads else layer.padding.upper()

    def padded(x):
        return tf.pad(x, pads, constant_values=layer.pad_values) if pads else x

    def forward(x, kernel):
        return tf.nn.conv2d(padded(x), kernel, stride, padding)

    @tf.custom_gradient
    def quick(x, kernel):
        y = forward(x, kernel)

        def gradients(dy):
            dy = tf.ensure_shape(dy, y.shape)  # the layers after it may not know it
            of_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=padded(x),
                filter_sizes=tf.shape(kernel),
                out_backprop=dy,
                strides=[1, stride, stride, 1],
                padding=padding,
            )
            return input_gradient(dy, kernel, x.shape[1:3], stride, layer.padding), of_kernel

        return y, gradients

    return (quick if pays(layer, inputs) else forward)(inputs, kernel)


def pays(layer: tf.keras.layers.Conv2D, inputs: tf.Tensor) -> bool:
    """Returns whether a layer's gradient by these inputs is faster as a convolution.

    With strides, this needs the size of the inputs when the step is traced. Inputs with several
    batch dimensions keep TensorFlow's gradient.
    """
    if inputs.shape.rank != 4:
        return False
    places = layer.compute_output_shape(inputs.shape)[1:3].num_elements()
    return layer.strides[0] == 1 or places is not None and places <= MOST_PLACES


def input_gradient(
    dy: tf.Tensor, kernel: tf.Tensor, sides: tf.TensorShape, stride: int, padding: str
) -> tf.Tensor:
    """Returns the gradient of a convolution by its input, (batch, height, width, channels).

    Row `stride * q + a` of the padded input has met the rows a, a + stride, ... of the kernel, at
    the outputs q, q - 1, ... So the rows of each a are a convolution of `dy` with those rows of the
    kernel, mirrored; the same holds for columns.

    Args:
        dy: Gradient by the outputs, (batch, rows, columns, filters).
        kernel: Kernel (height, width, channels, filters).
        sides: Height and width of the input; with stride 1 they may be unknown.
        stride: Stride of rows and columns, at most the kernel's sides.
        padding: "same" or "valid".

    Example:
        >>> dy, kernel = tf.ones((1, 1, 1, 1)), tf.reshape(tf.range(4.0), (2, 2, 1, 1))
        >>> input_gradient(dy, kernel, tf.TensorShape((2, 2)), 2, "valid")[0, ..., 0].numpy()
        array([[0., 1.],
               [2., 3.]], dtype=float32)
    """
    mirrored = tf.transpose(tf.reverse(kernel, (0, 1)), (0, 1, 3, 2))
    lengths = kernel.shape[:2]
    if stride == 1:
        pads = [(n - 1 - (n - 1) // 2, (n - 1) // 2) for n in lengths]
        pads = pads if padding == "same" else [(n - 1, n - 1) for n in lengths]
        return tf.nn.conv2d(dy, mirrored, 1, [(0, 0), *pads, (0, 0)])
    before = [same_begin(*of, stride) if padding == "same" else 0 for of in zip(sides, lengths)]
    first = [begin // stride for begin in before]
    ends = [-(-(begin + side) // stride) for begin, side in zip(before, sides)]

    def phase(*offsets: int) -> tf.Tensor:
        rows, columns = ((n - 1 - a) % stride for n, a in zip(lengths, offsets))
        part = mirrored[rows::stride, columns::stride]
        tops = [n - 1 - q for n, q in zip(part.shape, first)]
        bottoms = [end - n for end, n in zip(ends, dy.shape[1:3])]
        return tf.nn.conv2d(dy, part, 1, [(0, 0), *zip(tops, bottoms), (0, 0)])

    rows = [tf.stack([phase(a, b) for b in range(stride)], 3) for a in range(stride)]
    height, width = (stride * (end - begin) for end, begin in zip(ends, first))
    whole = tf.reshape(tf.stack(rows, 2), (-1, height, width, kernel.shape[2]))
    top, left = (begin - stride * q for begin, q in zip(before, first))
    return whole[:, top : top + sides[0], left : left + sides[1]]


def same_begin(side: int, length: int, stride: int) -> int:
    """Returns the padding before the first row of an input, for the padding "same".

    Args:
        side: Rows of the input.
        length: Rows of the kernel.
        stride: Stride of the rows.

    Example:
        >>> same_begin(32, 3, 1), same_begin(32, 3, 2), same_begin(33, 3, 2)
        (1, 0, 1)
    """
    return max(0, (-(-side // stride) - 1) * stride + length - side) // 2
