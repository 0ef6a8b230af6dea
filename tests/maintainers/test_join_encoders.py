import candle_tf as ct
import join_encoders
import numpy as np
import pytest
import tensorflow as tf


def network(channels: int, pooled: bool) -> tf.keras.Model:
    layers = [
        tf.keras.Input((None, None, 3)),
        tf.keras.layers.Conv2D(channels, 3, 2, activation="relu"),
        tf.keras.layers.BatchNormalization(),
    ]
    if pooled:
        layers.append(tf.keras.layers.GlobalAveragePooling2D())
    return tf.keras.Sequential(layers, name="network")  # as those of one architecture are


def test_a_teacher_of_two_has_the_features_of_each_at_its_size(tmp_path):
    sizes = (24, 16)
    for name, channels in (("a", 5), ("b", 7)):
        network(channels, pooled=name == "a").save(tmp_path / f"{name}.keras")
    encoders = {
        ct.networks.safe_load.load_model(tmp_path / f"{n}.keras"): s for n, s in zip("ab", sizes)
    }
    join_encoders.joined(encoders).save(tmp_path / "joined.keras")
    teacher = ct.Teacher.from_file(tmp_path / "joined.keras", max(sizes))
    assert teacher.width == 12
    images = np.random.default_rng(0).uniform(0, 255, (3, 24, 24, 3)).astype(np.float32)
    each = []
    for name, size in zip("ab", sizes):
        alone = ct.Teacher.from_file(tmp_path / f"{name}.keras", size)
        each.append(alone.embed(tf.image.resize(images, (size, size))))
    np.testing.assert_allclose(teacher.embed(images), np.concatenate(each, axis=-1), atol=1e-5)


@pytest.mark.parametrize("given", ["network.keras", "network.keras:", ":192", "n.keras:0", "n:1.5"])
def test_an_encoder_without_its_size_is_refused(given):
    with pytest.raises(ValueError, match=f"--encoder={given} is not FILE:PIXELS"):
        join_encoders.parse(given)
