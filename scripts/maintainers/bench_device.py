"""Compares time and memory of a network on this machine: C, Larq Compute Engine, TFLite, rivals.

    python scripts/maintainers/bench_device.py
    python scripts/maintainers/bench_device.py --networks=QuickNet:64,reactnet_a:64 --rivals=0.35
    python scripts/maintainers/bench_device.py --workdir=runs/c10 --trained_rivals=a.tflite

The engines take turns of 20 calls with one image each, and the table shows medians. There is one
Markdown table per network: ms on one thread and on all, kB of the file, kB of scratch memory (only
for the C source, which runs on one thread), and the accuracy of a trained run on the test images.

A rival is an untrained int8 MobileNetV2 with an alpha of `--rivals`: only its speed and size are
measured. `--trained_rivals` names .tflite files that were trained on the run's data: their accuracy
is measured too.
"""

import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import candle_tf  # noqa: F401  before tensorflow
import numpy as np
import tensorflow as tf
from absl import flags
from candle_tf import students
from candle_tf.cli import run_flags
from candle_tf.export.c_library import c_compiler, load_c
from candle_tf.export.c_source import export_c, scratch_bytes
from candle_tf.export.flatbuffer import to_lce, to_tflite
from candle_tf.export.integer_flatbuffer import to_int8, with_int8_weights
from candle_tf.export.interpreters import larq_compute_engine
from candle_tf.resolution import resize
from candle_tf.students import at_bits

RECIPE = "recipe:32"
flags.DEFINE_list(
    "networks",
    None,
    "NAME:SIZE of students with random weights; recipe:32 is that of configs/benchmark/recipe.cfg. "
    "If not given, this and QuickNet and ReActNet-A at 64 and 224 pixels.",
)
flags.DEFINE_string("workdir", None, "A trained run to measure in place of --networks.")
flags.DEFINE_string("data_dir", None, "Present directory of the run's data.")
flags.DEFINE_list("rivals", ["0.1", "0.35", "0.5"], "Alphas of MobileNetV2, int8, untrained.")
flags.DEFINE_list("trained_rivals", [], ".tflite files trained on the run's data.")
flags.DEFINE_integer(
    "calls",
    20,
    "Calls of an engine in each turn, as for a stream of images. With 1 each call finds the caches "
    "full of what the others left there.",
    1,
)
flags.DEFINE_float("seconds", 10.0, "Seconds of measuring for each network.", 0.1)


def student_named(spec: str) -> tuple[tf.keras.Model, int]:
    if spec == RECIPE:
        return students.resnet_e(10, 32, blocks=(3, 2, 2), separable_stem=False), 32
    name, _, size = spec.rpartition(":")
    known = name if name in students.STUDENTS else f"larq_zoo:{name}"
    return students.create(known, num_classes=10, image_size=int(size)), int(size)


def tflite(flatbuffer: bytes, threads: int | None):
    """Returns TFLite's function from one image to probabilities."""
    interpreter = tf.lite.Interpreter(model_content=flatbuffer, num_threads=threads)
    interpreter.allocate_tensors()
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(image: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(answer["index"])

    return run


def lce(flatbuffer: bytes, threads: int, **options):
    interpreter = larq_compute_engine().testing.Interpreter(
        flatbuffer, num_threads=threads, **options
    )
    return interpreter.predict


def medians(runs: dict, image: np.ndarray, seconds: float) -> dict[str, float]:
    """Returns the median milliseconds of each, run in turn."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(image)
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(next(iter(took.values()))) < 5:
        for name, run in runs.items():
            for _ in range(flags.FLAGS.calls):
                start = time.perf_counter()
                run(image)
                took[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in took.items()}


def stripped_bytes(directory: Path, level: str) -> int:
    """Returns the bytes of the compiled and stripped object file."""
    built = directory / "stripped.o"
    source = next(directory.glob("*/*.c"))
    subprocess.run([c_compiler(), level, "-std=c99", "-c", source, "-o", built], check=True)
    subprocess.run(["strip", built], check=True)
    return os.path.getsize(built)


def compare(student, size: int, test=None, representative=None) -> str:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, size, size, 3)).astype(np.float32)
    if representative is None:
        representative = rng.integers(0, 256, (4, size, size, 3)).astype(np.float32)
    files, one, every, kilobytes, scratch = {}, {}, {}, {}, {}
    cores = os.cpu_count()
    plain = at_bits(student, "32")
    packed = to_lce(student, size)
    files["LCE"] = files["LCE, its defaults"] = packed
    files["LCE, int8 weights"] = with_int8_weights(packed)
    files["TFLite, float"] = to_tflite(plain, size)
    files["TFLite, int8"] = to_int8(plain, size, representative)
    for alpha in flags.FLAGS.rivals:
        rival = students.mobilenet_v2(10, size, alpha=float(alpha))
        files[f"MobileNetV2 {alpha}, int8, untrained"] = to_int8(rival, size, representative)
    for path in flags.FLAGS.trained_rivals:
        files[path] = Path(path).read_bytes()
    with tempfile.TemporaryDirectory() as directory:
        for bits in (32, 16, 8):
            path = Path(directory) / str(bits) / "student"
            export_c(student, path, size, weight_bits=bits)
            names, _, _, run = load_c(path)
            one[f"C, {bits}-bit stem"] = lambda x, run=run: run(x.astype(np.uint8))
            kilobytes[f"C, {bits}-bit stem"] = stripped_bytes(path.parent, "-O2")
            scratch[f"C, {bits}-bit stem"] = scratch_bytes(path)
    for name, flatbuffer in files.items():
        kilobytes[name] = len(flatbuffer)
        if name.startswith("LCE"):
            options = {} if "defaults" in name else {"use_indirect_bgemm": True}
            one[name] = lce(flatbuffer, 1, **options)
            every[name] = lce(flatbuffer, cores, **options)
        else:
            one[name], every[name] = tflite(flatbuffer, 1), tflite(flatbuffer, cores)
    single = medians(one, image, flags.FLAGS.seconds)
    several = medians(every, image, flags.FLAGS.seconds / 2)
    first = single["C, 32-bit stem"]
    columns = {
        "ms, one thread": {n: f"{v:.2f}" for n, v in single.items()},
        "times the C source": {n: f"{v / first:.1f}" for n, v in single.items()},
        f"ms, {cores} threads": {n: f"{v:.2f}" for n, v in several.items()},
        "kB": {n: f"{v / 1000:.0f}" for n, v in kilobytes.items()},
        "kB of scratch": {n: f"{v / 1000:.0f}" for n, v in scratch.items()},
    }
    if test is not None:
        images, labels = test
        columns["accuracy, %"] = {
            name: f"{100 * accuracy(run, images, labels):.1f}"
            for name, run in one.items()
            if "untrained" not in name and name not in ("TFLite, float", "TFLite, int8")
        }
    rows = list(single)
    body = [f"| {n} | " + " | ".join(c.get(n, "") for c in columns.values()) + " |" for n in rows]
    head = "|  | " + " | ".join(columns) + " |\n| --- |" + " ---: |" * len(columns)
    return "\n".join([head, *body])


def accuracy(run, images: np.ndarray, labels: np.ndarray) -> float:
    found = [np.argmax(run(image[None])) for image in images]
    return float(np.mean(np.array(found) == labels))


def bench():
    if flags.FLAGS.workdir:
        run = run_flags.run_of(flags.FLAGS.workdir, flags.FLAGS.data_dir)
        model, size = run.student, run.resolution.base
        parts = list(run.evaluation_batches(run.examples.test))
        images = np.rint(resize(np.concatenate([i for i, _ in parts]), size).numpy())
        test = images, np.concatenate([labels for _, labels in parts])
        print(f"\n{model.student.name}, {size} pixels, {flags.FLAGS.workdir}\n")
        print(compare(model.student, size, test, images[:100]))
        return
    default = [RECIPE, *(f"{n}:{s}" for s in (64, 224) for n in ("QuickNet", "reactnet_a"))]
    for spec in flags.FLAGS.networks or default:
        student, size = student_named(spec)
        print(
            f"\n{student.name}, {size} pixels, random weights\n\n{compare(student, size)}",
            flush=True,
        )


if __name__ == "__main__":
    run_flags.start(bench)
