"""Larq Compute Engine (LCE), the runtime of binary flatbuffers on this machine."""

from collections.abc import Callable

import numpy as np


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
    """Returns LCE's interpreter of a file with LCE's operations, as `tflite_interpreter` does."""
    # Indirect BGEMM is LCE's fastest portable kernel. On 64-bit ARM all kernels are optimised.
    interpreter = larq_compute_engine().testing.Interpreter(flatbuffer, use_indirect_bgemm=True)
    return interpreter.input_shapes[0][1], interpreter.predict
