"""A frozen network by TensorFlow Lite, whose CPU kernels are faster than TensorFlow's."""

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import tensorflow as tf
from candle_tf.utils.quiet import quiet_conversion

MOST_BYTES = 2**30  # of the weights, of which each thread keeps a copy


class LiteEncoder:
    """A function of images, computed by TensorFlow Lite (XNNPACK) in float32.

    It needs 0.5 to 0.8 of TensorFlow's time (docs/performance.md). The results differ by rounding
    alone, and those of an image do not depend on the images beside it. Each thread has images of
    its own, because threads that share an image wait busily for each other.

    Args:
        function: Function from images (1, size, size, 3) to features (1, width), of frozen weights.
        size: Side of the images in pixels.

    Raises:
        ValueError: If TensorFlow Lite cannot compute the function, or computes something else.

    Example:
        >>> encode = LiteEncoder(lambda images: tf.reduce_mean(images, (1, 2)), size=4)
        >>> encode(np.ones((2, 4, 4, 3), "float32"))
        array([[1., 1., 1.],
               [1., 1., 1.]], dtype=float32)
    """

    def __init__(self, function: Callable[[tf.Tensor], tf.Tensor], size: int):
        spec = tf.TensorSpec((1, size, size, 3), tf.float32)
        traced = tf.function(function, input_signature=[spec]).get_concrete_function()
        self.width = int(np.prod(traced.structured_outputs.shape[1:]))
        images = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype(np.float32)
        images[1] = np.linspace(0, 255, size)[:, None]  # a smooth image
        expected = np.concatenate([traced(tf.constant(image[None])) for image in images])
        try:
            # The converter writes pages about what it cannot.
            with quiet_conversion(re.compile("")):
                flatbuffer = flatbuffer_of(traced)
                threads = max(1, min(processors(), MOST_BYTES // len(flatbuffer)))
                self.pool, self.free = ThreadPoolExecutor(threads), SimpleQueue()
                for _ in range(threads):
                    self.free.put(tflite_interpreter(flatbuffer)[1])
                found = self(images)
        except Exception as error:  # the class of the converter's error is not public
            raise ValueError(f"TensorFlow Lite cannot compute it: {error}") from error
        if not np.allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max()):
            raise ValueError("TensorFlow Lite computes something else.")

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns the features, float32 (batch, width), of images (batch, size, size, 3)."""
        each = list(self.pool.map(self.encode_one, images))
        return np.reshape(each, (len(images), self.width)).astype(np.float32)

    def encode_one(self, image: np.ndarray) -> np.ndarray:
        """Returns the features (1, width) of an image (size, size, 3)."""
        interpreter = self.free.get()
        try:
            return interpreter(image[None])
        finally:
            self.free.put(interpreter)


def flatbuffer_of(traced) -> bytes:
    """Converts a concrete function."""
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], traced)
    # With protobuf in pure Python, these two would take half a minute.
    converter.experimental_lower_to_saved_model = False
    converter.exclude_conversion_metadata = True
    return converter.convert()


def tflite_interpreter(flatbuffer: bytes) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """Returns TensorFlow Lite's interpreter of a file without LCE's operations, on one thread.

    Returns:
        The side of the input in pixels, and a function from one image (1, side, side, 3) to the
        network's output (1, width).
    """
    with quiet_conversion():
        interpreter = tf.lite.Interpreter(model_content=flatbuffer, num_threads=1)
        interpreter.allocate_tensors()
    (images,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(images["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(outputs["index"])

    return images["shape"][1], run


def processors() -> int:
    """Returns the number of processors that TensorFlow or this process may use."""
    given = tf.config.threading.get_intra_op_parallelism_threads()
    allowed = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return given or (len(allowed(0)) if allowed else os.cpu_count() or 1)
