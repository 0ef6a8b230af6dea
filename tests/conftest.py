import os
import pathlib

import candle_tf  # noqa: F401  before tensorflow: it sets the switch to Keras 2
import numpy as np
import pytest
import tensorflow as tf
from candle_tf.reports import report
from candle_tf.runs import job
from tiny_runs import tiny

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What is found out about data is not written to the user's cache, nor taken from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The directory of real data beside the repository: `tfds/` and `weights/`."""
    if not SHARED.is_dir():
        message = f"needs {SHARED}: a prepared CIFAR-10 in tfds/, MobileNet files in weights/"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return SHARED


@pytest.fixture(scope="session")
def cifar10(shared_data):
    """Reads a split of the real CIFAR-10: images uint8 (n, 32, 32, 3) and labels int64 (n,)."""

    def read(split: str):
        import tensorflow_datasets as tfds

        images, labels = tfds.load(
            "cifar10",
            split=split,
            data_dir=shared_data / "tfds",
            download=False,
            batch_size=-1,
            as_supervised=True,
        )
        return images.numpy(), labels.numpy()

    return read


@pytest.fixture(scope="module")
def no_report():
    """Every run but `finished` goes without its seconds of drawing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "write_report", lambda *a, **k: "no report")
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A whole run of CANDLE: (its workdir, its results)."""
    workdir = tmp_path_factory.mktemp("runs") / "candle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "write_report", report.write_report)
        return workdir, job.run(tiny(workdir, resolutions=(12, 16, 20)))


@pytest.fixture
def assert_descends():
    """Checks that a step of SGD(1.0) logs `loss` and moves by its gradients."""

    def check(model, images, labels, loss, gradients):
        theta = model.student.trainable_variables
        before = [v.numpy() for v in theta]
        logs = model.train_on_batch(images, labels, return_dict=True)
        np.testing.assert_allclose(logs["loss"], loss, rtol=1e-5)
        for variable, old, gradient in zip(theta, before, gradients):
            np.testing.assert_allclose(old - variable, gradient, rtol=1e-3, atol=1e-5)

    return check


@pytest.fixture(autouse=True)
def seeded():
    tf.keras.utils.set_random_seed(0)
