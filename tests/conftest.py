import os
import pathlib

import candle_tf  # noqa: F401  before tensorflow: it sets the switch to Keras 2
import pytest
import tensorflow as tf

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The directory of real data beside the repository: `tfds/` and `weights/`."""
    if not SHARED.is_dir():
        message = f"needs {SHARED}: a prepared CIFAR-10 in tfds/, MobileNet files in weights/"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return SHARED


@pytest.fixture(autouse=True)
def seeded():
    tf.keras.utils.set_random_seed(0)
