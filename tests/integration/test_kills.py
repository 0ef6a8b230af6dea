"""A run on CIFAR-10-LT that is killed again and again ends as one that is not.

    python -m pytest -n 0 -s -m slow tests/integration/test_kills.py

SIGKILL at 18 random moments, and within the write of a checkpoint and of the export. What it prints
stands in docs/reliability.md.
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from test_scripts import ROOT

pytestmark = pytest.mark.slow
RANDOM_KILLS = 18
IN_ALL = {  # phase -> what lies in the workdir by then, the latest first
    "done": "metrics.json",
    "export": "saved_model",
    "evaluation": "predictions.npz",
    "training": "checkpoints",
    "teacher store": "teacher_store",
    "between": "teacher_classifier.keras",
    "calibration": "calibration",
    "begun": "flags.cfg",
}


def weights(workdir) -> dict[str, np.ndarray]:
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(workdir / "checkpoints"))
    names = reader.get_variable_to_shape_map()
    numbers = (n for n in names if "seconds" not in n and not n.startswith("_CHECKPOINTABLE"))
    return {name: reader.get_tensor(name) for name in numbers}


def phase_of(workdir) -> str:
    there = (phase for phase, name in IN_ALL.items() if (workdir / name).exists())
    return next(there, "start")


def writes_a_checkpoint(workdir) -> bool:
    try:
        names = os.listdir(workdir / "checkpoints")
    except FileNotFoundError:
        return False
    return any("temp" in name for name in names)


def test_a_run_killed_twenty_times_ends_bit_equal(shared_data, tmp_path):
    command = [
        *(sys.executable, "scripts/train.py", "--flagfile=configs/cifar10_lt_100.cfg"),
        *(f"--data_dir={shared_data}/tfds", "--n_max=500", "--student=resnet_e:width=0.25"),
        *("--teacher=keras:MobileNet:alpha=0.25", "--teacher_image_size=64", "--teacher_views=20"),
        f"--teacher_weights={shared_data}/weights/mobilenet_2_5_224_tf_no_top.h5",
        *("--epochs=9", "--steps_per_epoch=40", "--batch_size=64", "--checkpoint_every=9"),
        *("--resolutions=24,32,40", "--mixup=0.5", "--calibration_epochs=5"),
    ]

    def start(workdir):
        log = open(tmp_path / "log.txt", "a")
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )

    began = time.monotonic()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0, (tmp_path / "log.txt").read_text()[-3000:]
    seconds = time.monotonic() - began
    print(f"\n| kill | after s | in |\n| ---: | ---: | --- |\n| none | {seconds:.0f} | done |")
    moments = list(np.random.default_rng(0).uniform(0.1, 0.6, RANDOM_KILLS) * seconds)
    moments.insert(9, writes_a_checkpoint)
    moments.append(lambda workdir: phase_of(workdir) == "export")
    kills = runs = 0
    while moments:
        process, began = start(killed), time.monotonic()
        while process.poll() is None:
            moment = moments[0]
            if moment(killed) if callable(moment) else time.monotonic() - began > moment:
                break
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:  # it was faster: the moments that are left are of another run
            assert_equal(whole, killed)
            runs, killed = runs + 1, tmp_path / f"killed_{runs}"
            print(f"| none | {time.monotonic() - began:.1f} | done, and equal |", flush=True)
            continue
        assert process.returncode == -signal.SIGKILL, (tmp_path / "log.txt").read_text()[-3000:]
        kills += 1
        phase = "writing a checkpoint" if moment is writes_a_checkpoint else phase_of(killed)
        print(f"| {kills} | {time.monotonic() - began:.1f} | {phase} |", flush=True)
        moments.pop(0)
    assert start(killed).wait() == 0, (tmp_path / "log.txt").read_text()[-3000:]
    assert_equal(whole, killed)
    print(f"{kills} kills in {runs + 1} runs: each ended as the one that was not killed.")


def assert_equal(whole, killed):
    """All tensors of the last checkpoint, and the predictions."""
    expected, found = weights(whole), weights(killed)
    assert expected.keys() == found.keys() and len(expected) > 100
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    a, b = (np.load(each / "predictions.npz") for each in (whole, killed))
    np.testing.assert_array_equal(a["true_probability"], b["true_probability"])
    assert (killed / "metrics.json").exists() and (killed / "saved_model").exists()
