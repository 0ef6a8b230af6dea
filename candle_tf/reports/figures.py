"""Figures of a finished run, from arrays; they need matplotlib, the extra `report`.

Classes stand from head to tail, by their training images; an axis names them where names fit.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from candle_tf import metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart, and a marker for each.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = ("o", "s", "^", "D", "v", "P")
GROUP_COLORS = dict(zip(("head", "medium", "tail"), COLORS))
MOST_NAMES = 20  # classes that an axis has room to name
MOST_CELLS = 200  # rows and columns of a matrix that can still be seen


def new_figure(width: float = 7.0, height: float = 4.5) -> "Figure":
    """Returns an empty figure of a size in inches, apart from pyplot and its state.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is not installed: pip install matplotlib.") from error
    return Figure((width, height), dpi=110, layout="constrained")


def class_distribution(
    class_counts: Sequence[int],
    class_names: Sequence[str],
    bounds: tuple[int, int] | None = None,
) -> "Figure":
    """Returns a figure of the training images per class, coloured by head, medium and tail.

    Args:
        class_counts: Training images per class, (classes,).
        class_names: Names of the classes, in class order.
        bounds: Bounds of head, medium and tail, as in `candle_tf.metrics.rank_groups`.
    """
    counts, order = np.asarray(class_counts), metrics.head_to_tail(class_counts)
    rank = np.argsort(order)
    figure = new_figure()
    axes = figure.subplots()
    for group, members in metrics.rank_groups(counts, bounds).items():
        label = f"{group}: {len(members)} classes, {counts[members].sum():,} images"
        width = 0.8 if len(counts) <= MOST_NAMES else 1.0
        axes.bar(rank[members], counts[members], width, color=GROUP_COLORS[group], label=label)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.8)  # a class of one image still has a bar
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylabel("training images (log scale)")
    show_classes(axes.xaxis, [class_names[c] for c in order])
    legend_below(figure)
    return figure


def accuracy_by_count(
    accuracies: Mapping[str, Sequence[float | None]],
    class_counts: Sequence[int],
    class_names: Sequence[str],
) -> "Figure":
    """Returns a figure of each class's accuracy against its number of training images.

    Args:
        accuracies: Accuracies per class by network, (classes,); None for a class without examples.
        class_counts: Training images per class, (classes,).
        class_names: Names of the classes, in class order.
    """
    figure = new_figure(height=5.0)
    axes = figure.subplots()
    percent = {name: 100 * np.array(row, np.float64) for name, row in accuracies.items()}
    note = plot_by_class(axes, np.asarray(class_counts), percent)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("training images of the class (log scale)")
    axes.set_ylabel("test accuracy of the class (%)")
    axes.set_ylim(-3, 103)
    axes.grid(alpha=0.3)
    places = np.sort(np.log(class_counts))
    if len(places) <= MOST_NAMES and (np.diff(places) > np.ptp(places) / 35).all():
        names = axes.secondary_xaxis("top")
        labels = [short(name) for name in class_names]
        names.set_xticks(class_counts, labels, rotation=45, ha="left", rotation_mode="anchor")
        names.tick_params(which="minor", length=0)
    legend_below(figure, note)
    return figure


def confusion_matrix(
    labels: np.ndarray,
    predictions: np.ndarray,
    class_counts: Sequence[int],
    class_names: Sequence[str],
) -> "Figure":
    """Returns a figure of the fraction of each true class (row) predicted as a class (column).

    A row or column of many classes is that of a few neighbours by rank. The colours follow the
    root of the share, so that rare confusions are seen too.

    Args:
        labels: True classes, int (n,).
        predictions: Predicted classes, int (n,).
        class_counts: Training images per class, (classes,).
        class_names: Names of the classes, in class order.
    """
    from matplotlib.colors import PowerNorm

    classes, order = len(class_counts), metrics.head_to_tail(class_counts)
    together = -(-classes // MOST_CELLS)
    cells = -(-classes // together)
    cell = np.argsort(order) // together
    pairs = np.bincount(cell[labels] * cells + cell[predictions], minlength=cells**2)
    pairs = pairs.reshape(cells, cells)
    with np.errstate(invalid="ignore"):
        percent = 100 * pairs / pairs.sum(axis=1, keepdims=True)
    figure = new_figure(7.5, 6.0)
    axes = figure.subplots()
    axes.set_facecolor("lightgrey")  # a class without an example
    end = cells * together - 0.5
    image = axes.imshow(
        percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100), extent=(-0.5, end, end, -0.5)
    )
    ticks = (0, 5, 20, 40, 60, 80, 100)
    figure.colorbar(image, label="share of the row (%)", shrink=0.8, ticks=ticks)
    if classes <= 12:
        for (row, column), share in np.ndenumerate(percent):
            text = "" if np.isnan(share) else f"{share:.0f}"
            color = "white" if share > 30 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    names = [class_names[c] for c in order]
    show_classes(axes.xaxis, names, "predicted class")
    show_classes(axes.yaxis, names, "true class")
    if together > 1:
        axes.set_title(f"{together} neighbouring classes a cell", fontsize=10)
    return figure


def training_course(history: Mapping[str, np.ndarray], drawn: np.ndarray) -> "Figure":
    """Returns a figure of lambda, both loss terms and the drawn resolutions over the training.

    Args:
        history: Means per epoch, (epochs,), by name: "epoch" (from 0), "lambda", "kl", "feature".
        drawn: Size in pixels of the student's images at each update, int (updates,), with as many
            updates in every epoch. The figure shows resolutions where there are several.
    """
    epochs = np.asarray(history["epoch"]) + 1
    sizes = np.unique(drawn)
    rows = 3 if len(sizes) > 1 else 2
    figure = new_figure(height=1.0 + 2.0 * rows)
    balance, terms, *rest = figure.subplots(rows, sharex=True)
    balance.plot(epochs, history["lambda"], color=COLORS[0], marker=".")
    balance.set_ylabel("λ, weight of $L_{KL}$\n(epoch mean)")
    balance.set_ylim(-0.03, 1.03)
    labels = {"kl": "$L_{KL}$ ($T^2$ nats)", "feature": "$L_{FS}$ (0 to 4)"}
    for (term, label), color, marker in zip(labels.items(), COLORS, MARKERS):
        terms.plot(epochs, history[term], color=color, marker=marker, ms=3, label=label)
    terms.set_ylabel("loss (epoch mean)")
    terms.set_ylim(bottom=0)
    legend_right(terms)
    for axes in (balance, terms):
        axes.grid(alpha=0.3)
    for axes in rest:
        by_epoch = np.reshape(drawn, (int(epochs[-1]), -1))
        share = [100 * np.mean(by_epoch == size, axis=1) for size in sizes]
        edges = np.arange(len(by_epoch) + 1) + 0.5
        axes.stackplot(
            edges,
            [np.append(s, s[-1]) for s in share],
            step="post",
            labels=[f"{size} px" for size in sizes],
            colors=shades(len(sizes)),
        )
        axes.set_ylabel("drawn input size\n(% of updates)")
        axes.set_ylim(0, 100)
        legend_right(axes, reverse=True)
    last = (rest or [terms])[-1]
    last.set_xlabel("epoch")
    last.xaxis.get_major_locator().set_params(integer=True)
    last.set_xlim(0.5, epochs[-1] + 0.5)
    return figure


def weight_norms(
    norms: Mapping[str, Sequence[float]],
    class_counts: Sequence[int],
    class_names: Sequence[str],
    reference: str | None = None,
) -> "Figure":
    """Returns a figure of weight norms by class, relative to the largest (arXiv 2404.00285).

    The "Binary-FP gap" of a network is the mean absolute difference over the classes between its
    max-normalised norms and those of the full-precision reference (`metrics.norm_gap`).

    Args:
        norms: L2 norms of each class's weights by network, (classes,).
        class_counts: Training images per class, (classes,).
        class_names: Names of the classes, in class order.
        reference: Network in `norms` from which the gap of the others is measured.
    """
    order = metrics.head_to_tail(class_counts)
    curves = {}
    for name, values in norms.items():
        values = np.asarray(values)
        if reference and name != reference:
            name += f", gap {metrics.norm_gap(values, np.asarray(norms[reference])):.3f}"
        curves[name] = values[order] / values.max()
    figure = new_figure(height=5.0)
    axes = figure.subplots()
    notes = [plot_by_class(axes, np.arange(len(order)), curves, dashed=reference)]
    axes.set_ylabel("classifier weight norm / its maximum")
    axes.set_ylim(0, 1.03)
    axes.grid(alpha=0.3)
    show_classes(axes.xaxis, [class_names[c] for c in order])
    if reference:
        notes.append("gap (Binary-FP gap for a binary network): mean distance to the dashed curve")
    legend_below(figure, "\n".join(filter(None, notes)))
    return figure


def reliability_diagram(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> "Figure":
    """Returns a figure of accuracy and examples by confidence (Guo et al., ICML 2017, figure 1).

    Args:
        confidence: Probability of each prediction, (n,).
        correct: Whether each prediction is correct, bool (n,).
        bins: Number of bins of equal width.
    """
    count, accuracy, mean_confidence = metrics.calibration_bins(confidence, correct, bins)
    error = metrics.expected_calibration_error(confidence, correct, bins)
    centres, width = 100 * (np.arange(bins) + 0.5) / bins, 100 / bins
    figure = new_figure(5.5, 6.0)
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    top.bar(centres, 100 * accuracy, width, color=COLORS[0], edgecolor="white", label="accuracy")
    top.bar(
        centres,
        100 * (mean_confidence - accuracy),
        width,
        100 * accuracy,
        color="none",
        edgecolor=COLORS[5],
        hatch="///",
        label="gap to the confidence",
    )
    top.plot([0, 100], [0, 100], color="black", ls="--", lw=1, label="perfectly calibrated")
    top.set_ylabel("test accuracy (%)")
    top.set_ylim(0, 100)
    top.set_title(f"expected calibration error {100 * error:.1f} % ({bins} bins)", fontsize=11)
    bottom.bar(centres, 100 * count / count.sum(), width, color=COLORS[0], edgecolor="white")
    bottom.set_ylabel("test images (%)")
    bottom.set_xlabel("confidence, the largest probability (%)")
    bottom.set_xlim(0, 100)
    legend_below(figure)
    return figure


def image_grid(
    images: Sequence[np.ndarray], captions: Sequence[Sequence[str]], columns: int = 5
) -> "Figure":
    """Returns a figure of images, each under the lines of its caption.

    Args:
        images: At least one image, uint8 RGB (height, width, 3), of any size.
        captions: Lines of about 30 characters for each image.
        columns: Number of images per row.
    """
    rows = -(-len(images) // columns)
    figure = new_figure(1.9 * columns, 2.3 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, lines in zip(grid, images, captions):
        axes.imshow(image)
        axes.set_title("\n".join(lines), fontsize=8)
    return figure


def plot_by_class(
    axes: "Axes", x: np.ndarray, curves: Mapping[str, np.ndarray], dashed: str | None = None
) -> str | None:
    """Draws one curve per network over the classes, and leaves NaN out.

    Returns:
        A note on points and lines, where there are too many classes for one point on each line.
    """
    many = len(x) > MOST_NAMES
    for (name, y), color, marker in zip(curves.items(), COLORS, MARKERS):
        seen = np.argsort(x, kind="stable")
        seen = seen[~np.isnan(y[seen])]
        if many:
            axes.plot(x[seen], y[seen], ".", color=color, ms=5, mew=0, alpha=0.4)
        parts = np.array_split(seen, min(MOST_NAMES, len(seen)))
        axes.plot(
            [x[part].mean() for part in parts],
            [y[part].mean() for part in parts],
            color=color,
            marker=marker,
            ms=5,
            ls="--" if name == dashed else "-",
            label=name,
        )
    return f"Points: classes. Lines: means of {MOST_NAMES} groups of classes." if many else None


def show_classes(axis: "Axis", names: Sequence[str], what: str = "class"):
    """Labels an axis of ranks with the classes' names, from head to tail, as far as they fit."""
    if len(names) > MOST_NAMES:
        axis.set_label_text(f"{what}: rank by training images, 0 = most")
        return
    labels = [short(name) for name in names]
    axis.set_ticks(range(len(names)), labels)
    axis.set_label_text(f"{what}, head to tail")
    if axis.axis_name == "x" and max(map(len, labels)) > 3:
        axis.set_tick_params(rotation=45)
        for label in axis.get_ticklabels():
            label.set(ha="right", rotation_mode="anchor")


def short(name: str, most: int = 15) -> str:
    """Returns a name cut to a number of characters, none of which starts a formula."""
    name = name if len(name) <= most else name[: most - 1] + "…"
    return name.replace("$", r"\$")


def shades(number: int) -> np.ndarray:
    """Returns colours for an ordered series, from dark to light."""
    from matplotlib import colormaps

    return colormaps["cividis"](np.linspace(0.1, 0.95, number))


def legend_right(axes: "Axes", reverse: bool = False):
    """Draws the legend to the right of the axes."""
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=reverse, frameon=False)


def legend_below(figure: "Figure", title: str | None = None):
    """Draws the legend below the figure."""
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, title=title, frameon=False)
