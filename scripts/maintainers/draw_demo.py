"""Draws the README's picture: class counts, and the accuracy per class of two methods.

python scripts/benchmark.py --flagfile=configs/benchmark/digits.cfg
python scripts/maintainers/draw_demo.py --runs=runs/benchmark/digits --output=docs/demo.png

The bars at the points are standard deviations over the seeds.
"""

import json
from pathlib import Path

import matplotlib
import numpy as np
from absl import app, flags

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

FLAGS = flags.FLAGS
NAMES = {"cross_entropy": "student alone", "candle": "CANDLE"}
COLORS = {"cross_entropy": "#c44e52", "candle": "#4c72b0"}


def accuracies(directory: Path) -> tuple[list[int], dict[str, np.ndarray]]:
    """Returns the class counts, and by method the accuracy in % of each seed and class.

    Args:
        directory: Output of the benchmark: one directory per finished run.
    """
    counts, found = [], {}
    for path in sorted(directory.glob("*/metrics.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        counts = results["class_counts"]
        found.setdefault(results["method"], []).append(results["student"]["test"]["per_class"])
    return counts, {method: 100 * np.array(values) for method, values in found.items()}


def draw(counts: list[int], measured: dict[str, np.ndarray]) -> plt.Figure:
    """Returns the picture, classes sorted from head to tail.

    Args:
        counts: Training images per class.
        measured: By method the accuracy in %, (seeds, classes).
    """
    order = np.argsort(-np.array(counts), kind="stable")
    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    places = np.arange(len(counts))
    axes.bar(places, np.array(counts)[order], color="#dddddd", label="training images")
    axes.set_xticks(places, [f"digit {k}" for k in order], fontsize=8)
    axes.set_ylabel("training images")
    right = axes.twinx()
    for method, name in NAMES.items():
        values = measured[method][:, order]
        right.errorbar(
            places,
            values.mean(0),
            values.std(0, ddof=1),
            color=COLORS[method],
            capsize=2,
            marker="o",
            markersize=4,
            label=f"{name}: {values.mean():.1f} %, mean of {len(values)} seeds",
        )
    right.set_ylabel("test accuracy in %")
    right.set_ylim(None, 101)
    right.legend(loc="lower center", fontsize=8)
    axes.set_title("The same binary network on long-tailed digits", fontsize=10)
    return figure


def main(_):
    """Writes the picture."""
    draw(*accuracies(Path(FLAGS.runs))).savefig(FLAGS.output, dpi=110)


if __name__ == "__main__":
    flags.DEFINE_string("runs", "runs/benchmark/digits", "Output of the benchmark.")
    flags.DEFINE_string("output", "docs/demo.png", "File of the picture.")
    app.run(main)
