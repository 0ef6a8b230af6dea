"""The commands of the README, as a user types them, on a run of seconds."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image
from sklearn.datasets import load_digits

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENT = str(ROOT / "README.md")
DIGIT = np.repeat(load_digits().images[0][..., None] * 255 / 16, 3, axis=-1)
TINY = (
    "--imbalance_ratio=20 --student=resnet_e:width=0.125 --image_size=24 --epochs=1 "
    "--steps_per_epoch=3 --calibration_epochs=2 --validation_split=0.2"
).split()


def script(name: str, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, f"scripts/{name}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "candle"
    done = script("train", "--flagfile=configs/digits_lt.cfg", *TINY, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir, done.stdout


@pytest.mark.long
def test_describe(tmp_path):
    done = script("describe", "--dataset=digits", "--imbalance_ratio=20", f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "10 classes" in done.stdout and "imbalance ratio 20" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"distribution.png", "images.png"}
    unknown = script("describe", "--dataset=folder:/nowhere")
    assert unknown.returncode == 1
    assert unknown.stderr.splitlines()[-1].endswith("give the path of the directory.")


@pytest.mark.long
def test_train_ends_with_the_table(run):
    workdir, printed = run
    overall = json.loads((workdir / "metrics.json").read_text())["student"]["test"]["overall"]
    assert f"| candle (candle) | {100 * overall:.1f} |" in printed
    assert "| calibrated teacher |" in printed


@pytest.mark.long
def test_evaluate_prints_the_same_accuracy(run):
    workdir, _ = run
    student = json.loads((workdir / "metrics.json").read_text())["student"]
    done = script("evaluate", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr[-3000:]
    for split in ("test", "validation"):
        assert f"| candle | {100 * student[split]['overall']:.1f} |" in done.stdout


@pytest.mark.long
def test_export_writes_the_same_student(run, tmp_path):
    workdir, _ = run
    done = script("export", f"--workdir={workdir}", f"--output={tmp_path}/student")
    assert done.returncode == 0, done.stderr[-3000:]
    images = tf.random.uniform((4, 24, 24, 3), maxval=255.0, seed=0)
    mine, theirs = (
        tf.saved_model.load(str(path)).signatures["serving_default"](images=images)
        for path in (tmp_path / "student", workdir / "saved_model")
    )
    tf.debugging.assert_near(mine["probabilities"], theirs["probabilities"], atol=1e-6)


@pytest.mark.long
def test_an_export_lies_in_the_run_that_a_home_directory_names(run, monkeypatch):
    workdir, _ = run
    monkeypatch.setenv("HOME", str(workdir.parent))
    done = script("export", f"--workdir=~/{workdir.name}", "--format=tflite")
    assert f"Wrote {workdir}/tflite.tflite" in done.stdout, done.stderr[-3000:]
    assert (workdir / "tflite.tflite").exists() and not done.stderr


@pytest.mark.long
def test_predict_prints_the_same_from_every_export(run, tmp_path):
    workdir, _ = run
    tf.io.write_file(f"{tmp_path}/a.png", tf.io.encode_png(tf.cast(DIGIT, tf.uint8)))
    tf.io.write_file(f"{tmp_path}/b.jpg", tf.io.encode_jpeg(tf.cast(255 - DIGIT, tf.uint8)))
    lying = Image.fromarray(np.rot90(DIGIT).astype(np.uint8))
    turn = Image.Exif()
    turn[ExifTags.Base.Orientation] = 6  # to be shown a quarter turn clockwise, as in training
    lying.save(tmp_path / "c.png", exif=turn)
    printed = []
    for format, output in (("saved_model", tmp_path / "model"), ("lce", tmp_path / "lce.tflite")):
        done = script("export", f"--workdir={workdir}", f"--format={format}", f"--output={output}")
        assert done.returncode == 0, done.stderr[-3000:]
        names = (f"{tmp_path}/{name}" for name in ("a.png", "b.jpg", "c.png"))
        done = script("predict", f"--model={output}", *names)
        assert done.returncode == 0, done.stderr[-3000:]
        printed.append(re.findall(r"(\d) (\d+\.\d) %", done.stdout))
    saved, binary = (np.array(lines, float) for lines in printed)  # (class, percent), best first
    assert saved.shape == (9, 2)
    np.testing.assert_array_equal(saved[:3], saved[6:])
    np.testing.assert_allclose(saved, binary, atol=0.2)
    done = script("evaluate", f"--workdir={workdir}", f"--exported={tmp_path}/lce.tflite")
    same, images = map(int, re.search(r"(\d+) of (\d+) classes equal", done.stdout).groups())
    assert same >= 0.99 * images > 300
    report = (tmp_path / "lce.md").read_text()
    assert "LCE's optimised kernels are for 64-bit ARM" in report and "quant_conv2d" in report


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("cc"), reason="needs cc: apt-get install gcc")
def test_three_documented_commands_lead_to_a_program_that_names_digits(run, tmp_path):
    page = (ROOT / "docs" / "device.md").read_text()
    picture = re.search(r"^\.venv/bin/python - <<'PYTHON'\n.*?^PYTHON$", page, re.M | re.S)[0]
    commands = re.search(r"three commands give.*?```bash\n(.*?)```", page, re.S)[1].splitlines()
    assert len(commands) == 3
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "runs/demo/candle").symlink_to(run[0])
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    path = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for command in (picture, *commands):
        done = subprocess.run(
            ["bash", "-ec", command], cwd=tmp_path, env=path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert re.fullmatch(r"\d \d+\.\d %\n", done.stdout)
    predicted = script("predict", f"--model={tmp_path}/export/digits_c", tmp_path / "digit.png")
    assert re.search(rf"\b{done.stdout[0]} \d+\.\d %", predicted.stdout), predicted.stderr[-3000:]


@pytest.mark.long
def test_compare(run):
    done = script("compare", run[0], "--split=validation")
    assert done.stdout.count("| candle (candle) |") == 1, done.stderr[-3000:]


@pytest.mark.long
def test_report_is_written_again(run):
    page = run[0] / "report" / "report.html"
    first = page.read_text()
    page.unlink()
    done = script("report", f"--workdir={run[0]}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Wrote {page}" in done.stdout and page.read_text() == first
    done = script("report", f"--workdir={run[0]}", f"--from_scratch={run[0]}")
    assert done.returncode == 1 and "had a teacher, by candle" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_benchmark_goes_on(end, tmp_path):
    flags = [*TINY, "--epochs=3", "--datasets=digits", "--methods=cross_entropy", "--methods=ncm"]
    command = [sys.executable, "scripts/benchmark.py", *flags, f"--output={tmp_path}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as benchmark:
        lines = []
        while len(lines) < 2:
            assert benchmark.poll() is None
            time.sleep(0.1)
            for history in tmp_path.glob("cross_entropy_*/history.csv"):
                lines = history.read_text().splitlines()
        benchmark.send_signal(end)
        said = benchmark.stdout.read()
    assert ("the same command continues" in said) == (end == signal.SIGTERM)
    assert not (history.parent / "metrics.json").exists()
    done = script("benchmark", *flags, f"--output={tmp_path}")
    for _ in range(30):  # nobody could tell the cell's process of a SIGKILL: it is still at work
        if end == signal.SIGKILL and "Another process is at work" in done.stdout:
            time.sleep(1.0)
            done = script("benchmark", *flags, f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| cross_entropy | " in done.stdout and "| ncm | " in done.stdout
    assert [line.partition(",")[0] for line in history.read_text().splitlines()] == [
        "epoch",
        "0",
        "1",
        "2",
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("train", ["--workdir=/tmp/x", "--method=candel"], "did you mean 'candle'"),
        ("train", ["--workdir=/tmp/x", "digits"], "Not a flag: 'digits'"),
        (
            "train",
            ["--workdir=/tmp/x", "--resolutions=a,b"],
            "--resolutions is a,b but must be whole numbers",
        ),
        ("evaluate", ["--workdir=/nowhere"], "names no run of train.py"),
        ("report", ["--workdir=/nowhere"], "names no run of train.py"),
        ("compare", ["/nowhere"], "/nowhere holds no finished run"),
        ("predict", ["--model=/nowhere"], "give IMAGE... after the flags"),
        ("predict", ["--model=/nowhere", DOCUMENT], "No exported model at /nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(name, arguments, message):
    done = script(name, *arguments)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "name, flag",
    [
        ("train", "--teacher_preprocessing:"),
        ("benchmark", "--datasets:"),
        ("export", "--format:"),
        ("predict", "--model:"),
    ],
)
def test_help(name, flag):
    done = script(name, "--help")
    assert flag in done.stdout and f"candle-tf {name} " in done.stdout


@pytest.mark.slow
def test_bench_speed_prints_a_ratio_of_every_pair(shared_data):
    """Whatever the ratios are: how long something takes is no test."""
    teacher = shared_data / "weights" / "mobilenet_1_0_conv_pw_12.h5"
    given = [f"--data_dir={shared_data / 'tfds'}", f"--teacher={teacher}", "--rounds=1"]
    # The calibration takes minutes.
    parts = ("teacher", "store", "step", "input", "reading", "peers")
    given.append(f"--images={shared_data / 'images' / 'caltech101'}")
    done = script("maintainers/bench_speed", *given, *(f"--parts={part}" for part in parts))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line for line in done.stdout.splitlines() if re.search(r"\| \d+\.\d\d \|", line)]
    assert all(("holds" in row or "missed" in row) == ("≤" in row or "≥" in row) for row in rows)
    assert len(rows) == 1 + 3 + 6 + 1 + 3 + 4
