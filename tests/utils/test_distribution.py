"""Several workers, real processes on the loopback, against one."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from candle_tf import CandleModel, Teacher, TeacherStore, data
from candle_tf.classifiers import feature_record, linear
from candle_tf.data.entrance import Entrance
from candle_tf.networks.surgery import synchronizes, with_synchronized_batch_norm
from candle_tf.runs import job
from candle_tf.runs.build import calibrate_for_all, named_teacher
from candle_tf.runs.checkpoints import INTERRUPTED
from candle_tf.runs.run import Run
from candle_tf.runs.settings import Settings
from candle_tf.students import resnet_e
from candle_tf.teacher_store import record_of
from candle_tf.utils.distribution import WORKER_LOST, build_strategy, distributed, share_of
from candle_tf.utils.files import Rows
from tiny_runs import tiny

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
TRAIN = [sys.executable, str(ROOT / "scripts" / "train.py")]
SIZE, BATCH = 16, 32
PAD = data.Augmentation("pad")
layers = tf.keras.layers


def real_student():
    return tf.keras.Sequential(
        [
            tf.keras.Input((SIZE, SIZE, 3)),
            layers.Rescaling(1 / 127.5, -1.0),
            layers.Conv2D(8, 3, 2, use_bias=False),
            layers.BatchNormalization(),
            layers.Activation("tanh"),
            layers.GlobalAveragePooling2D(name="features"),
            layers.Dense(10),
        ]
    )


def make_candle(binary: bool) -> CandleModel:
    tf.keras.utils.set_random_seed(0)
    encoder = tf.keras.Sequential(
        [tf.keras.Input((None, None, 3)), layers.Conv2D(12, 3, 2, activation="relu")]
    )
    teacher = Teacher(encoder, SIZE)
    teacher.classifier = linear(12, 10)
    teacher.class_counts = [1] * 10
    student = resnet_e(10, SIZE, width=0.25) if binary else real_student()
    return CandleModel(teacher, with_synchronized_batch_norm(student))


class Record(tf.keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.logs = []

    def on_train_batch_end(self, batch, logs=None):
        self.logs.append(dict(logs))


def train(strategy_name: str, output: str, kind: str):
    """Ten updates of a real-valued student in float64, or one of a binary one, saved to `output`.

    Run in a process of its own: a strategy is there before TensorFlow has run anything.
    """
    strategy = build_strategy(strategy_name or None)
    updates, rate = (1, 1.0) if kind == "binary" else (10, 0.1)
    if kind == "float64":
        tf.keras.backend.set_floatx("float64")
    with strategy.scope():
        model = make_candle(kind == "binary")
        before = [w.numpy() for w in model.descending_variables() + model.ascending_variables()]
        sgd = tf.keras.optimizers.SGD
        model.compile(sgd(rate), metrics=["accuracy"], balancer_optimizer=sgd(rate))
    digits = data.load("digits", imbalance_ratio=10).train

    def stream(share):
        how = {"augmentation": data.Augmentation("pad", flip=False), "share": share}
        return data.training_batches(digits, SIZE, BATCH, updates * BATCH, **how)

    record = Record()
    batches = distributed(strategy, stream)
    model.fit(batches, steps_per_epoch=updates, callbacks=[record], verbose=0)
    values = {f"log {i} {k}": v for i, logs in enumerate(record.logs) for k, v in logs.items()}
    trained = model.descending_variables() + model.ascending_variables()
    values |= {f"change {i}": w.numpy() - b for i, (w, b) in enumerate(zip(trained, before))}
    values |= {f"state {i}": w.numpy() for i, w in enumerate(model.student.non_trainable_weights)}
    if share_of(strategy).worker == 0:
        np.savez(output, **values)


def slurm_step(tasks: int, task: int) -> dict[str, str]:
    """What SLURM tells a task of a step on one machine."""
    values = {"NODELIST": "localhost", "NUM_TASKS": str(tasks), "TASKS_PER_NODE": str(tasks)}
    return {f"SLURM_STEP_{name}": value for name, value in values.items()} | {
        "SLURM_PROCID": str(task)
    }


def start(workers: int, command, log=subprocess.PIPE, slurm=False) -> list[subprocess.Popen]:
    """A process a worker, on free ports of the loopback, or on those of SLURM's resolver."""
    sockets = [socket.socket() for _ in range(workers)]
    for each in sockets:
        each.bind(("localhost", 0))
    cluster = {"worker": [f"localhost:{each.getsockname()[1]}" for each in sockets]}
    for each in sockets:
        each.close()
    processes = []
    for index in range(workers):
        task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        told = slurm_step(workers, index) if slurm else {"TF_CONFIG": json.dumps(task)}
        environment = {**os.environ, **told}
        processes.append(
            subprocess.Popen(
                command, cwd=HERE, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True
            )
        )
    return processes


def finish(processes, timeout=400) -> list[str]:
    """Their outputs, once all have ended well."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs):
        assert process.returncode == 0, output[-3000:]
    return outputs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(kind, workers) -> what `train` saves."""
    directory, found = tmp_path_factory.mktemp("trained"), {}

    def of(kind, workers):
        if (kind, workers) not in found:
            output = str(directory / f"{kind}_{workers}.npz")
            name = "multiworker" if workers > 1 else ""
            finish(start(workers, call("train", name, output, kind)))
            found[kind, workers] = dict(np.load(output))
        return found[kind, workers]

    return of


@pytest.mark.long
@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_workers_at_parts_of_the_batch_train_as_one_at_the_whole(workers, trained):
    one, several = trained("float64", 1), trained("float64", workers)
    assert one.keys() == several.keys() and "log 9 lambda" in one
    assert all(np.abs(one[name]).max() > 1e-3 for name in one if name.startswith("change 0"))
    for name in one:
        np.testing.assert_allclose(several[name], one[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.long
def test_a_binary_students_first_step_is_that_of_one_worker(trained):
    """But for rounding, which may flip a sign: 1e-4 of losses, 1 % of the gradient's length."""
    one, two = trained("binary", 1), trained("binary", 2)
    for name in ("loss", "kl", "feature", "lambda"):
        np.testing.assert_allclose(two[f"log 0 {name}"], one[f"log 0 {name}"], rtol=1e-4)
    gradients = [np.concatenate([v.ravel() for k, v in each.items() if "change" in k])
                 for each in (one, two)]  # fmt: skip
    difference = np.linalg.norm(gradients[0] - gradients[1])
    assert difference < 0.01 * np.linalg.norm(gradients[0])


def flags(workdir, **others):
    given = {
        "flagfile": ROOT / "configs" / "digits_lt.cfg",
        "workdir": workdir,
        "strategy": "multiworker",
        "student": "resnet_e:width=0.125",
        "epochs": 2,
        "steps_per_epoch": 12,
        "calibration_epochs": 2,
        "teacher_views": 2,
        **others,
    }
    return [*TRAIN, *(f"--{name}={value}" for name, value in given.items())]


@pytest.mark.long
@pytest.mark.parametrize("slurm", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_workers_run_the_main_job_and_the_first_writes(slurm, tmp_path):
    first, second = finish(start(2, flags(tmp_path / "run", sync_batch_norm=True), slurm=slurm))
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert results["updates"] == 24 and 0 <= results["student"]["test"]["overall"] <= 1
    assert "run (candle)" in first and "run (candle)" not in second
    rows = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert len(rows) == 3
    assert float(rows[1].split(",")[rows[0].split(",").index("lambda")]) <= 1
    assert not list((tmp_path / "run").glob("checkpoints/*temp*"))


def split_cpu():
    """Before TensorFlow starts."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def train_on_two_cpus(workdir: str):
    """The main job under --strategy=mirrored."""
    split_cpu()
    given = {"dataset": "digits", "imbalance_ratio": 10, "student": "resnet_e:width=0.125"}
    given |= {"image_size": 16, "epochs": 2, "steps_per_epoch": 5, "calibration_epochs": 2}
    settings = Settings(workdir=workdir, strategy="mirrored", two_step=True, **given)
    job.write_report = lambda *a, **k: "no report"
    assert job.run(settings)["updates"] == 10
    assert share_of(build_strategy("mirrored")) == data.Share(replicas=2)


@pytest.mark.long
def test_all_devices_of_a_machine_run_the_main_job(tmp_path):
    finish(start(1, call("train_on_two_cpus", str(tmp_path / "run"))))
    assert (tmp_path / "run" / "saved_model").exists()


def show(strategy_name: str, directory: str):
    """Shows images to a teacher in every way there is; of the last batch not all replicas get any.

    Takes up the calibration's features and the store that are there. Each worker saves its
    classifier.
    """
    if strategy_name == "mirrored":
        split_cpu()
    strategy, directory = build_strategy(strategy_name or None), pathlib.Path(directory)
    run = Run(Settings(workdir=str(directory), dataset="digits", image_size=SIZE, batch_size=8))
    examples = data.load("digits", imbalance_ratio=10)
    few = examples.train.take(range(117))
    model = make_candle(binary=False)

    def batches(share):
        size = 8 * strategy.num_replicas_in_sync
        return data.training_batches(few, SIZE, size, augmentation=PAD, share=share)

    calibrate_for_all(
        model.teacher,
        distributed(strategy, batches),
        np.bincount(few.labels),
        2,
        directory / "calibration",
        strategy,
    )
    store = TeacherStore(
        directory / "store", model, few, image_size=SIZE, views=3, augmentation=PAD
    )
    store.complete(8, 0, strategy)
    run.examples = dataclasses.replace(examples, test=few)
    predictions = directory / f"predictions_{share_of(strategy).worker}.npz"
    run.measure(lambda x: model.teacher(x)[1], predictions, strategy)
    np.savez(
        directory / f"classifier_{share_of(strategy).worker}.npz",
        *model.teacher.classifier.get_weights(),
    )


def call(function: str, *arguments):
    code = f"import sys; sys.path.append('..'); import test_distribution as t; t.{function}"
    return [sys.executable, "-c", f"{code}{arguments!r}"]


def rows_in(directory, width=12) -> np.ndarray:
    kind = feature_record(12) if directory.name == "calibration" else record_of(width, 10)
    return Rows(directory, kind, {}).read()


def assert_same_rows(found, expected):
    """But for the rounding of what the teacher makes."""
    assert len(found) == len(expected)
    for name in set(found.dtype.names) - {"checksum"}:
        a, b = (rows[name].astype(float) for rows in (found, expected))
        loose = {"rtol": 1e-3, "atol": 1e-4} if name in ("features", "logits") else {"rtol": 0}
        np.testing.assert_allclose(a, b, **loose, err_msg=name)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shown")
    finish(start(1, call("show", "", str(directory))))
    return directory


@pytest.mark.long
@pytest.mark.parametrize(
    "strategy, workers",
    [pytest.param("mirrored", 1, marks=pytest.mark.slow), ("multiworker", 2)],
)
def test_all_replicas_show_their_part_to_the_teacher(strategy, workers, shown, tmp_path):
    """Here they go on from what one alone had done of it."""
    done = {"calibration": 50, "store": 130}
    for name, count in done.items():
        shutil.copytree(shown / name, tmp_path / name)
        rows = rows_in(tmp_path / name)
        with open(tmp_path / name / "rows.bin", "r+b") as file:
            file.truncate(count * rows.itemsize + 5)  # and torn
    finish(start(workers, call("show", strategy, str(tmp_path))))
    for name, count in done.items():
        assert len(rows_in(shown / name)) > count + 32
        assert_same_rows(rows_in(tmp_path / name), rows_in(shown / name))
    for kind in ("classifier", "predictions"):
        expected = np.load(shown / f"{kind}_0.npz")
        for worker in range(workers):
            found = np.load(tmp_path / f"{kind}_{worker}.npz")
            for name in expected:
                np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6)


def train_with_nan(workdir: str):
    """The main job, where what the last worker reads of the batches 4 and 5 is NaN."""
    ours = data.training_batches

    def batches(*examples, share=data.Share(), **stream):
        first = stream.get("first_example", 0) // BATCH * share.replicas
        bad = [4, 5] if share.worker == share.workers - 1 else []

        def spoil(n, batch):
            spoilt = tf.reduce_any(n // share.replicas == tf.constant(bad, tf.int64))
            return tf.where(spoilt, np.nan, batch[0]), batch[1]

        return ours(*examples, share=share, **stream).enumerate(first).map(spoil)

    data.training_batches = batches
    Entrance.checked = lambda self, x, y=None: x  # as in tests/runs/test_fit.py
    job.write_report = lambda *a, **k: "no report"
    job.run(tiny(workdir, method="cross_entropy", epochs=3, on_nan="skip", strategy="multiworker"))


@pytest.mark.slow
def test_workers_leave_out_a_batch_that_is_not_finite_for_one(tmp_path):
    first, second = finish(start(2, call("train_with_nan", str(tmp_path))))
    for output in (first, second):
        assert output.count("it is left out.\nContinuing from update") == 2
    assert json.loads((tmp_path / "skipped_batches.json").read_text()) == [4, 5]
    assert json.loads((tmp_path / "not_finite" / "batch_5" / "batch.json").read_text())
    assert list((tmp_path / "not_finite" / "batch_4").glob("state*"))
    assert json.loads((tmp_path / "metrics.json").read_text())["updates"] == 9
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == list("012") and "nan" not in str(rows)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_store_that_one_worker_is_killed_in_is_completed_by_another_number(victim, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    many = {"teacher_views": 60, "epochs": 1}
    finish(start(1, flags(whole, **many)))
    with open(tmp_path / "log", "w") as log:
        processes = start(2, flags(run, **many), log)
        while not (run / "teacher_store" / "rows.bin").exists():
            assert all(p.poll() is None for p in processes), (tmp_path / "log").read_text()
            time.sleep(0.01)
        processes[victim].kill()
        assert processes[1 - victim].wait(timeout=200) == WORKER_LOST
    width = named_teacher("letters", 32, "", None).width
    whole, part = (rows_in(each / "teacher_store", width) for each in (whole, run))
    assert 0 < len(part) < len(whole)
    finish(start(1, flags(run, **many)))
    assert_same_rows(rows_in(run / "teacher_store", width), whole)
    assert (run / "metrics.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    "end, code", [(signal.SIGKILL, WORKER_LOST), (signal.SIGTERM, INTERRUPTED)]
)
def test_what_ends_one_worker_ends_all_and_all_resume(end, code, victim, tmp_path):
    run = tmp_path / "run"
    command = flags(run, epochs=6, checkpoint_every=5)
    with open(tmp_path / "log", "w") as log:
        processes = start(2, command, log)
        while not list(run.glob("checkpoints/ckpt-*.index")):
            assert all(p.poll() is None for p in processes), (tmp_path / "log").read_text()
            time.sleep(0.2)
        processes[victim].send_signal(end)
        assert processes[1 - victim].wait(timeout=200) == code
        assert processes[victim].wait(timeout=200) == (-end if end == signal.SIGKILL else code)
    said = "Another worker was lost" if end == signal.SIGKILL else "Stopped after update"
    assert said in (tmp_path / "log").read_text()
    assert not (run / "metrics.json").exists()
    finish(start(2, command))
    rows = (run / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == list("012345")


def test_every_worker_has_its_part_of_each_batch():
    digits = data.load("digits", imbalance_ratio=10).train

    def batches(**share):
        share = data.Share(**share)
        return list(data.training_batches(digits, SIZE, BATCH, 96, "class_balanced", share=share))

    whole = batches()
    parts = [batches(worker=worker, workers=2, replicas=2) for worker in (0, 1)]
    assert [len(part) for part in parts] == [6, 6]
    for i, (images, labels) in enumerate(whole):
        mine = [part[2 * i + replica] for part in parts for replica in (0, 1)]
        np.testing.assert_array_equal(np.concatenate([x for x, _ in mine]), images)
        np.testing.assert_array_equal(np.concatenate([y for _, y in mine]), labels)


def test_of_a_last_batch_that_is_not_whole_workers_have_what_there_is():
    digits = data.load("digits", imbalance_ratio=10).train.take(range(29))
    for workers in (2, 3, 6):
        shares = [data.Share(worker, workers) for worker in range(workers)]
        parts = [list(data.evaluation_batches(digits, SIZE, 12, PAD, share)) for share in shares]
        labels = [part[i][1] for i in range(3) for part in parts if i < len(part)]
        assert max(len(part) for part in labels) == 12 // workers
        np.testing.assert_array_equal(np.concatenate(labels), digits.labels)


def test_parts_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="batch_size is 32, over all replicas, .* number, 6"):
        data.Share(workers=3, replicas=2).batch_size(32)


def test_without_a_cluster_the_remedy_is_named(monkeypatch):
    for name in ("TF_CONFIG", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="set TF_CONFIG, or start the command by srun"):
        build_strategy("multiworker")
    with pytest.raises(ValueError, match="did you mean 'mirrored'"):
        build_strategy("mirrord")


def test_one_device_has_the_whole_batch():
    assert share_of(build_strategy(None)) == data.Share()
    assert not synchronizes(real_student())
    assert synchronizes(with_synchronized_batch_norm(real_student()))
