import sys

import numpy as np
import pytest
from candle_tf.reports import figures
from matplotlib.backends.backend_agg import FigureCanvasAgg

RNG = np.random.default_rng(0)
SIZES = pytest.mark.parametrize("classes", [2, 10, 20, 100, 1000])


def tail(classes):
    """Counts of 1280 to 5 in no order, and names that are long."""
    counts = np.round(1280 * 256.0 ** (-np.arange(classes) / (classes - 1))).astype(int)
    return RNG.permutation(counts), [f"a_class_with_long_name_{c}" for c in range(classes)]


def drawn(figure):
    """The figure, refused if any of its artists leaves the page."""
    FigureCanvasAgg(figure).draw()
    width, height = figure.get_size_inches()
    box = figure.get_tightbbox()
    assert box.x0 > -0.01 and box.y0 > -0.01, box
    assert box.x1 < width + 0.01 and box.y1 < height + 0.01, box
    return figure


def legend_texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def labels_apart(axis):
    """Whether no two tick labels of an x axis touch; slanted ones need a line's height between."""
    labels = [label for label in axis.get_ticklabels() if label.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    if labels and labels[0].get_rotation():
        anchors = [x.get_transform().transform(x.get_position())[0] for x in labels]
        line = labels[0].get_fontsize() / 72 * axis.figure.dpi
        return (np.abs(np.diff(np.sort(anchors))) > line).all()
    boxes.sort(key=lambda box: box.x0)
    return all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:]))


@SIZES
def test_distribution_has_a_bar_a_class_from_head_to_tail(classes):
    counts, names = tail(classes)
    figure = drawn(figures.class_distribution(counts, names))
    (axes,) = figure.axes
    bars = sorted((bar.get_x(), bar.get_height()) for bar in axes.patches)
    assert [height for _, height in bars] == sorted(counts, reverse=True)
    assert labels_apart(axes.xaxis)
    named = [label.get_text().startswith("a_class") for label in axes.get_xticklabels()]
    assert all(named) if classes <= 20 else not any(named)


def test_distribution_follows_the_bounds():
    figure = figures.class_distribution([9, 1, 5, 3], list("abcd"), bounds=(1, 2))
    assert legend_texts(figure) == [
        "head: 1 classes, 9 images",
        "medium: 1 classes, 5 images",
        "tail: 2 classes, 4 images",
    ]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == list("acdb")


@SIZES
def test_accuracy_stands_at_the_training_count(classes):
    counts, names = tail(classes)
    accuracy = RNG.random(classes)
    figure = drawn(figures.accuracy_by_count({"a": accuracy, "b": accuracy / 2}, counts, names))
    points = figure.axes[0].lines[0].get_xydata()
    order = np.argsort(counts, kind="stable")
    np.testing.assert_allclose(points, np.stack([counts, 100 * accuracy], 1)[order])
    assert legend_texts(figure) == ["a", "b"]
    assert all(labels_apart(axes.xaxis) for axes in [figure.axes[0], *figure.axes[0].child_axes])


def test_of_many_classes_the_line_is_the_mean_of_groups():
    counts = np.arange(40, 0, -1)
    figure = figures.accuracy_by_count({"a": counts / 40}, counts, [""] * 40)
    line = figure.axes[0].lines[1].get_xydata()
    np.testing.assert_allclose(line[:, 0], np.arange(1.5, 40, 2))
    np.testing.assert_allclose(line[:, 1], 2.5 * np.arange(1.5, 40, 2))


def test_a_class_without_an_example_has_no_point():
    figure = figures.accuracy_by_count({"a": [0.5, None, 0.25]}, [9, 5, 1], list("xyz"))
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[1, 25], [9, 50]]


@SIZES
def test_rows_of_the_confusion_matrix_sum_to_100(classes):
    counts, names = tail(classes)
    labels = np.repeat(np.arange(classes), 5)
    predictions = RNG.integers(0, classes, len(labels))
    figure = drawn(figures.confusion_matrix(labels, predictions, counts, names))
    shown = figure.axes[0].images[0].get_array()
    rank = {c: r for r, c in enumerate(sorted(range(classes), key=lambda c: -counts[c]))}
    together = 5 if classes == 1000 else 1
    expected = np.zeros((classes // together, classes // together))
    for label, prediction in zip(labels, predictions):
        expected[rank[label] // together, rank[prediction] // together] += 100 / 5 / together
    np.testing.assert_allclose(shown, expected)
    assert labels_apart(figure.axes[0].xaxis)


def test_a_class_without_an_example_has_an_empty_row():
    labels, predictions = np.array([0, 0, 2]), np.array([0, 1, 1])
    figure = drawn(figures.confusion_matrix(labels, predictions, [9, 5, 1], list("xyz")))
    assert [text.get_text() for text in figure.axes[0].texts] == "50 50 0    0 100 0".split(" ")


def history(epochs):
    return {
        "epoch": np.arange(epochs),
        **{name: RNG.random(epochs) for name in ("lambda", "kl", "feature")},
    }


@pytest.mark.parametrize("epochs", [1, 2, 400])
def test_course_shows_the_share_of_each_resolution(epochs):
    sizes = RNG.choice([16, 24, 32], (epochs, 10), p=[0.2, 0.3, 0.5])
    means = history(epochs)
    balance, terms, resolution = drawn(figures.training_course(means, sizes.ravel())).axes
    shown = np.stack([np.arange(1, epochs + 1), means["lambda"]], 1)
    np.testing.assert_array_equal(balance.lines[0].get_xydata(), shown)
    np.testing.assert_array_equal(terms.lines[1].get_ydata(), means["feature"])
    smallest = resolution.collections[0].get_paths()[0].vertices[:, 1]
    assert smallest.max() == pytest.approx(100 * (sizes == 16).mean(axis=1).max())
    labels = [text.get_text() for text in resolution.get_legend().get_texts()]
    assert labels == ["32 px", "24 px", "16 px"]


def test_course_at_one_resolution_does_not_show_it():
    assert len(figures.training_course(history(3), np.full(12, 32)).axes) == 2


@SIZES
def test_weight_norms_are_normalised_by_their_maximum(classes):
    counts, names = tail(classes)
    norms = {"binary": RNG.random(classes) + 1, "full": RNG.random(classes) + 1}
    figure = drawn(figures.weight_norms(norms, counts, names, reference="full"))
    order = np.argsort(-counts, kind="stable")
    expected = (norms["binary"] / norms["binary"].max())[order]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), expected)
    difference = expected - (norms["full"] / norms["full"].max())[order]
    assert legend_texts(figure) == [f"binary, gap {np.mean(np.abs(difference)):.3f}", "full"]


def test_without_a_reference_there_is_no_gap():
    figure = drawn(figures.weight_norms({"binary": [1, 2]}, [9, 1], ["x", "y"]))
    assert legend_texts(figure) == ["binary"]


def test_reliability_shows_accuracy_by_confidence():
    confidence, correct = np.array([0.15, 0.2, 0.9]), np.array([True, False, True])
    figure = drawn(figures.reliability_diagram(confidence, correct, bins=5))
    accuracy, count = (axes.containers[0] for axes in figure.axes)
    heights = [bar.get_height() for bar in accuracy]
    np.testing.assert_allclose(heights, [50, np.nan, np.nan, np.nan, 100])
    np.testing.assert_allclose([bar.get_height() for bar in count], [200 / 3, 0, 0, 0, 100 / 3])
    # Two thirds of the images are 32.5 % off, one third 10 %.
    assert "25.0 %" in figure.axes[0].get_title()


def test_a_grid_of_images_of_any_size():
    images = [np.full((side, 2 * side, 3), side, np.uint8) for side in (4, 8, 300)]
    captions = [("true: a", f"predicted: {n}") for n in range(3)]
    figure = drawn(figures.image_grid(images, captions, columns=2))
    shown = [axes for axes in figure.axes if axes.images]
    for axes, image, caption in zip(shown, images, captions):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
        assert axes.get_title() == "\n".join(caption)
    assert len(shown) == 3


def test_a_dollar_in_a_name_is_no_formula():
    names = [r"a$\b$", "c$x", "d"]
    figure = drawn(figures.class_distribution([9, 5, 1], names))
    assert len(figure.axes[0].get_xticklabels()) == 3


def test_without_matplotlib_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="matplotlib is not installed: pip install matplotlib"):
        figures.class_distribution([9, 1], ["x", "y"])
