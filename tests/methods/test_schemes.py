"""What every scheme owes as a Keras model."""

import json

import numpy as np
import pytest
import tensorflow as tf
from candle_tf.methods import BbnModel, DiveModel, MixupModel, TadeModel, branch
from candle_tf.students import at_bits, resnet_e

SIZE, COUNTS = 12, [40, 20, 10, 5]
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 255, (8, 1, 1, 3)) * RNG.uniform(0.5, 1, (8, SIZE, SIZE, 3))
IMAGES = IMAGES.astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 0])


def student():
    return resnet_e(4, SIZE, width=0.25, blocks=(1,))


SCHEMES = {
    "mixup": lambda **kwargs: MixupModel(student(), alpha=0.3, **kwargs),
    "tade": lambda **kwargs: TadeModel(branch(student(), 3), COUNTS, **kwargs),
    "bbn": lambda **kwargs: BbnModel(branch(student(), 2), total_steps=40, **kwargs),
    "dive": lambda **kwargs: DiveModel(at_bits(student(), "32"), student(), 2.0, 0.7, **kwargs),
}
pytestmark = pytest.mark.parametrize("name", SCHEMES)


def batch(name):
    return ((IMAGES, IMAGES), (LABELS, LABELS)) if name == "bbn" else (IMAGES, LABELS)


def make(name, eagerly=True, **kwargs):
    model = SCHEMES[name](seed=5, **kwargs)
    model.compile(tf.keras.optimizers.Adam(1e-2), metrics=["accuracy"], run_eagerly=eagerly)
    return model


@pytest.mark.long
def test_training_lowers_the_loss_at_random_resolutions(name):
    model = make(name, eagerly=False, resolutions=(8, 12, 16))
    data = tf.data.Dataset.from_tensors(batch(name)).repeat(30)
    before = model.evaluate(IMAGES, LABELS, verbose=0)[0]
    history = model.fit(data, verbose=0).history
    assert set(history) == {"loss", "accuracy"} and np.isfinite(history["loss"]).all()
    # With the batch's own statistics, as the moving averages of 30 steps lag behind.
    logits = model.student(IMAGES, training=True)
    after = tf.keras.losses.sparse_categorical_crossentropy(LABELS, logits, from_logits=True)
    assert np.mean(after) < 0.7 * before


@pytest.mark.long
def test_a_saved_model_goes_on_as_if_never_saved(name, tmp_path):
    model = make(name, resolutions=(8, 12, 16))
    model.train_on_batch(*batch(name))
    model.save(tmp_path / "model.keras")
    loaded = tf.keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model) and arguments(loaded) == arguments(model)
    np.testing.assert_array_equal(loaded(IMAGES), model(IMAGES))
    logs = [m.train_on_batch(*batch(name), return_dict=True) for m in (model, loaded)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)


def arguments(model):
    config = json.loads(json.dumps(model.get_config()))
    return {
        key: value for key, value in config.items() if key not in ("name", "student", "teacher")
    }
