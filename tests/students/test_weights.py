"""Pretrained encoders, which other students start from."""

import candle_tf as ct
import numpy as np
import pytest
from candle_tf.students.weights import GENERIC, write_encoder

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


def test_the_generic_encoder_fits_the_default_student():
    spec = "resnet_e:halvings=2,weights='generic'"
    student = ct.students.create(spec, num_classes=3, image_size=64)
    with np.load(GENERIC) as arrays:
        np.testing.assert_array_equal(student.get_weights()[0], arrays["000"].astype(np.float32))
    with pytest.raises(ValueError, match="'generic' fits resnet_e with its default"):
        ct.students.create("resnet_e", num_classes=3, image_size=64, width=0.5, weights="generic")


def test_empty_weights_are_random_ones():
    assert ct.students.create(SMALL, num_classes=4, weights="").count_params()


@pytest.mark.parametrize("spec", ["resnet_e:width=0.5,blocks=(1,1)", "resnet_e"])
def test_weights_of_another_network_are_refused(made, spec):
    with pytest.raises(ValueError, match="no weights for this resnet_e .*same arguments"):
        ct.students.create(spec, num_classes=4, weights=made[1])


def test_weights_that_are_not_there_are_named():
    with pytest.raises(FileNotFoundError, match="nowhere.npz do not exist"):
        ct.students.create(SMALL, num_classes=4, weights="nowhere.npz")
    with pytest.raises(ValueError, match="weights is True"):
        ct.students.create(SMALL, num_classes=4, weights=True)


def transposed(arrays):
    return {name: array.T for name, array in arrays.items()}


def as_text(arrays):
    return {name: array.astype(str) for name, array in arrays.items()}


@pytest.mark.parametrize("spoil", [transposed, as_text])
def test_arrays_of_another_kind_are_refused(made, tmp_path, spoil):
    with np.load(made[1]) as arrays:
        np.savez(tmp_path / "spoiled.npz", **spoil(arrays))
    with pytest.raises(ValueError, match="not float"):
        ct.students.create(SMALL, num_classes=4, weights=tmp_path / "spoiled.npz")


def test_files_of_another_kind_are_refused(made, tmp_path):
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "cut.npz").write_bytes(made[1].read_bytes()[:1000])
    (tmp_path / "folder.npz").mkdir()
    np.save(tmp_path / "array.npy", np.zeros(3))
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=f"{path.name} has no weights for this"):
            ct.students.create(SMALL, num_classes=4, weights=path)


@pytest.mark.long
def test_a_network_of_larq_zoo_starts_from_one_too(tmp_path):
    name = "larq_zoo:QuickNetSmall"
    student = ct.students.create(name, num_classes=4, image_size=32)
    write_encoder(student, tmp_path / "encoder.npz")
    again = ct.students.create(
        name, num_classes=9, image_size=32, weights=str(tmp_path / "encoder.npz")
    )
    for a, b in zip(again.get_weights()[:-2], student.get_weights()):
        np.testing.assert_allclose(a, b, rtol=2.0**-10, atol=1e-7)
