"""Which Keras a process gets, by what it imports first. One fresh process a case."""

import os
import subprocess
import sys

import pytest

REPORT = """
print(tf.keras.Model.__module__.split(".")[0], tf.keras.layers.Dense(1).__module__.split(".")[0])
"""
USE_LARQ = """
import larq
layer = larq.layers.QuantDense(2, input_quantizer="ste_sign", kernel_quantizer="ste_sign")
print(sorted(set(abs(layer(tf.random.normal((4, 8)))).numpy().ravel() % 2)))
"""


def run(code, **switch):
    env = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    env.update(switch, TF_CPP_MIN_LOG_LEVEL="3")
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "imports, switch",
    [
        ("import candle_tf, tensorflow as tf", {}),
        ("import tensorflow as tf; tf.keras.Model; import candle_tf", {"TF_USE_LEGACY_KERAS": "1"}),
    ],
    ids=["candle_tf first", "the switch in the environment"],
)
def test_keras_2_and_larq_work(imports, switch):
    done = run(f"{imports}\n{REPORT}{USE_LARQ}", **switch)
    assert done.returncode == 0, done.stderr[-2000:]
    # Products of signs: even sums of eight of them.
    assert done.stdout.split("\n")[:2] == ["tf_keras tf_keras", "[0.0]"]


@pytest.mark.long
@pytest.mark.parametrize(
    "imports",
    [
        "import tensorflow as tf; tf.keras.Model",
        "import tensorflow as tf",
    ],
    ids=["keras touched", "keras untouched"],
)
def test_tensorflow_first_is_refused_in_one_sentence(imports):
    done = run(f"{imports}\nimport candle_tf")
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: candle_tf needs Keras 2"), message
    assert "import candle_tf before tensorflow" in message and "TF_USE_LEGACY_KERAS=1" in message
    assert message.count(". ") == 0 and message.endswith(".")


@pytest.mark.long
def test_a_switch_turned_off_is_named():
    done = run("import candle_tf", TF_USE_LEGACY_KERAS="0")
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: candle_tf needs Keras 2"), message
    assert "TF_USE_LEGACY_KERAS=1" in message


@pytest.mark.long
def test_the_import_leaves_the_devices_to_the_user():
    """Logical devices and strategies of several machines come before anything is computed."""
    code = "import candle_tf\nfrom tensorflow.python.eager import context\n"
    done = run(f"{code}print(context.context()._initialized)")
    assert done.stdout.split() == ["False"], done.stderr[-2000:]
