"""The report beside a binary export: its figures are those of the files and of Larq."""

import re

import larq as lq
import pytest
from candle_tf.export.flatbuffer import export_flatbuffer, to_tflite
from candle_tf.reports import export_report as module
from candle_tf.students import BITS, requantize, resnet_e

pytestmark = pytest.mark.filterwarnings(
    r"ignore:\s*Warning. tf.lite.Interpreter is deprecated:UserWarning"
)


@pytest.fixture(scope="module")
def student():
    return resnet_e(10, 32, width=0.125)


@pytest.fixture(scope="module")
def path(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "student.tflite"
    export_flatbuffer(student, path, 32, binary=True)
    return path


@pytest.fixture(scope="module")
def measured():
    """The latencies that went into the report, not rounded."""
    return {}


@pytest.fixture(scope="module")
def report(student, path, measured):
    measure = module.latencies

    def latencies(*args):
        measured.update(measure(*args, seconds=0.5))
        return measured

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "latencies", latencies)
        return module.export_report(student, path, 32)


def rows(report):
    """{first cell: the others} of all its Markdown tables."""
    table = [line.strip("| ").split(" | ") for line in report.splitlines() if line[:2] == "| "]
    return {first: others for first, *others in table}


@pytest.mark.long
def test_sizes_are_those_of_the_files(report, student, path, tmp_path):
    student.save_weights(tmp_path / "student.weights.h5")
    sizes = {
        "LCE": path.stat().st_size,
        "TFLite, float32": len(to_tflite(requantize(student, **BITS["32"]), 32)),
        "Keras weights, float32": (tmp_path / "student.weights.h5").stat().st_size,
    }
    # LCE and TFLite come again, with their latencies.
    tables = report[: report.index("| ms an image |")]
    written = {name: others for name, others in rows(tables).items() if name in sizes}
    assert written == {
        name: [f"{size / 1000:.1f}", f"{size / sizes['LCE']:.1f}"] for name, size in sizes.items()
    }
    assert sizes["LCE"] < sizes["TFLite, float32"] / 2


@pytest.mark.long
@pytest.mark.parametrize("bits", [1, 32])
def test_operations_are_those_that_larq_counts(bits, report, student):
    (macs,) = rows(report)[f"{bits}-bit"]
    assert int(macs.replace(",", "")) == lq.models.ModelProfile(student).op_count("mac", bits) > 0


@pytest.mark.long
def test_every_layer_has_a_row(report, student):
    table = report[report.index("stats-") : report.index("summary-")]
    layers = [layer.name for layer in student.layers]
    assert re.findall(r"^\| (\w+) ", table, re.MULTILINE) == ["Layer", *layers, "Total"]


@pytest.mark.long
def test_latencies_and_their_ratio(report, measured):
    tables = report[report.index("| ms an image |") :]
    assert min(measured.values()) > 0 and list(measured) == ["LCE", "TFLite, float32"]
    assert {name: rows(tables)[name] for name in measured} == {
        name: [f"{milliseconds:.2f}"] for name, milliseconds in measured.items()
    }
    ratio = measured["LCE"] / measured["TFLite, float32"]
    assert f"LCE takes {ratio:.2f} times as long as TFLite" in report


@pytest.mark.long
def test_it_is_about_this_student_at_this_size(report):
    assert report.startswith("# resnet_e at 32 pixels\n")
