"""Pretrained encoders, which other students start from."""

import candle_tf as ct
import numpy as np
import pytest
from candle_tf.students.weights import write_encoder

SMALL = "resnet_e:width=0.25,blocks=(1,1)"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A student with weights that no initializer gives, and the file of its encoder."""
    student = ct.students.create(SMALL, num_classes=4)
    generator = np.random.default_rng(0)
    student.set_weights([generator.uniform(0.1, 1.0, w.shape) for w in student.get_weights()])
    path = tmp_path_factory.mktemp("encoder") / "encoder.npz"
    write_encoder(student, path)
    return student, path


def test_the_encoder_starts_where_the_other_ended(made):
    before, path = made
    after = ct.students.create(f"{SMALL},weights={str(path)!r}", num_classes=7, image_size=64)
    *expected, kernel, bias = before.weights
    *found, own_kernel, own_bias = after.weights
    for a, b in zip(found, expected, strict=True):
        exact = len(b.shape) == 1  # kernels are rounded to half precision
        np.testing.assert_allclose(a, b, rtol=0 if exact else 2.0**-10)
    assert own_kernel.shape == (kernel.shape[0], 7) and not own_bias.numpy().any()


def test_empty_weights_are_random_ones():
    assert ct.students.create(SMALL, num_classes=4, weights="").count_params()


@pytest.mark.parametrize(
    "spec, problem",
    [
        ("resnet_e:width=0.5,blocks=(1,1)", "do not fit this resnet_e .*same arguments"),
        ("resnet_e", "do not fit this resnet_e .*arrays for"),
    ],
)
def test_weights_of_another_network_are_refused(made, spec, problem):
    with pytest.raises(ValueError, match=problem):
        ct.students.create(spec, num_classes=4, weights=str(made[1]))


def test_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.npz do not exist"):
        ct.students.create(SMALL, num_classes=4, weights="nowhere.npz")
    with pytest.raises(ValueError, match="mobilenet_v2 has no generic weights"):
        ct.students.create("mobilenet_v2", num_classes=4, weights="generic")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(ValueError, match="do not fit"):
        ct.students.create(SMALL, num_classes=4, weights=str(tmp_path / "text.npz"))
