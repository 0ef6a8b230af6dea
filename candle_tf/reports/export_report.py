"""The savings of a binary export: size, operations and latency, beside real-valued weights."""

import os
import platform
import re
import statistics
import tempfile
import time
from pathlib import Path

import larq as lq
import numpy as np
import tensorflow as tf
from candle_tf.export.flatbuffer import to_tflite
from candle_tf.export.interpreters import lce_interpreter
from candle_tf.networks.lite import tflite_interpreter
from candle_tf.networks.surgery import renewed
from candle_tf.reports.tables import markdown
from candle_tf.students.bits import at_bits


def export_report(student: tf.keras.Model, path: str | os.PathLike, image_size: int) -> str:
    """Returns Markdown that compares a Larq Compute Engine file with the network in float32.

    The text holds the sizes of the files, multiply-accumulates by width, one row per layer as Larq
    counts them, and the latencies on this machine, for one image at a time on one thread.

    Args:
        student: Exported student.
        path: Its `.tflite` file.
        image_size: Side in pixels of the student's images.
    """
    student = renewed(student)  # Larq cannot tell the shapes of layers of several input sizes
    packed = Path(path).read_bytes()
    plain = to_tflite(at_bits(student, "32"), image_size)
    with tempfile.TemporaryDirectory() as directory:
        whole = os.path.join(directory, "student.weights.h5")
        student.save_weights(whole)
        keras = os.path.getsize(whole)
    files = {"Keras weights, float32": keras, "TFLite, float32": len(plain), "LCE": len(packed)}
    sizes = {
        "kB": {name: f"{size / 1000:.1f}" for name, size in files.items()},
        "times the LCE file": {name: f"{size / len(packed):.1f}" for name, size in files.items()},
    }
    profile = lq.models.ModelProfile(student)
    macs = {
        "multiply-accumulates": {
            f"{bits}-bit": f"{profile.op_count('mac', bits):,}"
            for bits in profile.unique_op_precisions
        }
    }
    lines: list[str] = []
    lq.models.summary(student, print_fn=lines.append)
    milliseconds = latencies(packed, plain, image_size)
    ratio = milliseconds["LCE"] / milliseconds["TFLite, float32"]
    return "\n".join(
        [
            f"# {student.name} at {image_size} pixels\n",
            markdown(sizes, files),
            "",
            markdown(macs, macs["multiply-accumulates"]),
            "",
            markdown(
                {"ms an image": {k: f"{v:.2f}" for k, v in milliseconds.items()}}, milliseconds
            ),
            f"\nOn this machine ({platform.machine()}, one thread, medians) LCE takes {ratio:.2f} "
            "times as long as TFLite with its XNNPACK kernels. LCE's optimised kernels are for "
            "64-bit ARM: elsewhere it runs portable ones, so measure on the device.\n",
            "```",
            "\n".join(lines).rstrip(),
            "```",
            "",
        ]
    )


def is_export_report(text: str) -> bool:
    """Returns whether a text is one that `export_report` returned."""
    return re.match(r"# .* at \d+ pixels\n", text) is not None


def latencies(packed: bytes, plain: bytes, image_size: int, seconds: float = 5.0) -> dict:
    """Returns the median milliseconds per image of both, which run in turn for some seconds."""
    image = np.zeros((1, image_size, image_size, 3), np.float32)
    runs = {
        "LCE": lce_interpreter(packed)[1],
        "TFLite, float32": tflite_interpreter(plain)[1],
    }
    took: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(image)  # the first run allocates
    end = time.monotonic() + seconds
    while time.monotonic() < end or not took["TFLite, float32"]:
        for name, run in runs.items():
            start = time.perf_counter()
            run(image)
            took[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in took.items()}
