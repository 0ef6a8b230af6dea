"""The runtimes of flatbuffers on this machine: Larq Compute Engine (LCE) and TensorFlow Lite.

Each gives the input size in pixels and a function from one image (1, size, size, 3) to its
probabilities. The function runs on one thread.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf


def larq_compute_engine():
    """Imports Larq Compute Engine, an optional package.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import larq_compute_engine
    except ImportError as error:
        raise ImportError(
            "Larq Compute Engine is not installed: pip install 'larq-compute-engine<0.17' (it "
            "has wheels for Linux on x86-64, macOS and Windows), or export with format='tflite'."
        ) from error
    return larq_compute_engine


def lce_interpreter(flatbuffer: bytes) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """Returns LCE's interpreter, which runs binary files and others."""
    # Indirect BGEMM is LCE's fastest portable kernel. On 64-bit ARM all kernels are optimised.
    interpreter = larq_compute_engine().testing.Interpreter(flatbuffer, use_indirect_bgemm=True)
    return interpreter.input_shapes[0][1], interpreter.predict


def tflite_interpreter(flatbuffer: bytes) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """Returns TensorFlow Lite's interpreter, which runs only files without LCE's operations."""
    interpreter = tf.lite.Interpreter(model_content=flatbuffer, num_threads=1)
    interpreter.allocate_tensors()
    (images,), (probabilities,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(images["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(probabilities["index"])

    return images["shape"][1], run
