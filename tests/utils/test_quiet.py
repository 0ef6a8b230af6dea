"""TensorFlow's start-up noise is kept back, other messages and errors are not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from candle_tf.utils.quiet import without_noise

ROOT = Path(__file__).parents[2]


def test_known_noise_is_left_out_and_the_rest_passed_on(capfd):
    with without_noise():
        os.write(2, b"E0000 cuda_dnn.cc:8579] Unable to register cuDNN factory: again\n")
        os.write(2, b"E0000 real.cc:1] the disk is full\n")
        print("from Python", file=sys.stderr)
    after = capfd.readouterr().err
    assert "the disk is full\n" in after and "from Python\n" in after
    assert "cuDNN" not in after


def test_errors_pass_with_what_was_written_before(capfd):
    try:
        with without_noise():
            os.write(2, b"why it failed\n")
            raise RuntimeError("failed")
    except RuntimeError as error:
        assert str(error) == "failed"
    assert "why it failed" in capfd.readouterr().err


@pytest.mark.long
def test_an_import_is_quiet():
    code = "import candle_tf, tensorflow; print(tensorflow.keras.Model.__module__)"
    env = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.startswith("tf_keras") and done.stderr == ""
