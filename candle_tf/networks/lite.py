"""A frozen network by TensorFlow Lite, whose CPU kernels are faster than TensorFlow's."""

import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from candle_tf.utils.quiet import without_noise

MOST_THREADS = 16  # each keeps its own copy of the weights


class LiteEncoder:
    """A function of images, computed by TensorFlow Lite (XNNPACK) in float32.

    It needs 0.55 to 0.65 of TensorFlow's time (docs/performance.md). The results differ by rounding
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
        self.flatbuffer, self.own = converted(traced), threading.local()
        self.width = int(np.prod(traced.structured_outputs.shape[1:]))
        self.pool = ThreadPoolExecutor(min(MOST_THREADS, processors()))
        image = np.random.default_rng(0).uniform(0, 255, spec.shape).astype(np.float32)
        expected = traced(tf.constant(image)).numpy()
        if not np.allclose(self(image), expected, rtol=0, atol=1e-3 * np.abs(expected).max()):
            raise ValueError("TensorFlow Lite computes something else.")

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns the features, float32 (batch, width), of images (batch, size, size, 3)."""
        each = list(self.pool.map(self.of_one, images))
        return np.reshape(each, (len(images), self.width)).astype(np.float32)

    def of_one(self, image: np.ndarray) -> np.ndarray:
        """Returns the features (width,) of an image (size, size, 3)."""
        if not hasattr(self.own, "interpreter"):
            self.own.interpreter = interpreter_of(self.flatbuffer)
        interpreter = self.own.interpreter
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]


def converted(traced) -> bytes:
    """Returns the flatbuffer of a concrete function.

    Raises:
        ValueError: If TensorFlow Lite cannot compute it.
    """
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], traced)
    # With protobuf in pure Python, these two would take half a minute.
    converter.experimental_lower_to_saved_model = False
    converter.exclude_conversion_metadata = True
    try:
        with without_noise():
            flatbuffer = converter.convert()
            interpreter_of(flatbuffer)
    except Exception as error:  # the class of the converter's error is not public
        raise ValueError(f"TensorFlow Lite cannot compute it: {error}") from error
    return flatbuffer


def interpreter_of(flatbuffer: bytes) -> tf.lite.Interpreter:
    """Returns an interpreter of one thread that is ready to run."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*tf.lite.Interpreter is deprecated")
        interpreter = tf.lite.Interpreter(model_content=flatbuffer, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def processors() -> int:
    """Returns the number of processors that TensorFlow or this process may use."""
    given = tf.config.threading.get_intra_op_parallelism_threads()
    allowed = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return given or (len(allowed(0)) if allowed else os.cpu_count() or 1)
