import dataclasses

import numpy as np
import pytest
from candle_tf.data import Augmentation, evaluation_batches
from candle_tf.runs import inputs
from candle_tf.runs.settings import Settings

RUN = Settings(workdir="run", dataset="digits", image_size=16)
OTHER = {"crop": "resized", "flip": True, "color_jitter": 0.4}


@pytest.fixture(scope="module")
def digits():
    return inputs.load_data(RUN)


def of(**changes) -> Settings:
    return dataclasses.replace(RUN, **changes)


def test_views_are_those_of_the_set_unless_given(digits):
    assert inputs.augmentation(RUN, digits) == digits.info.augmentation
    assert inputs.augmentation(of(flip=True), digits) == Augmentation("pad", flip=True)
    assert inputs.augmentation(of(**OTHER), digits) == Augmentation("resized", True, 0.4)


def test_images_are_cropped_for_evaluation_as_in_training(digits):
    size = inputs.view_size(RUN, digits)

    def first(batches):
        return next(iter(batches))[0].numpy()

    seen = first(inputs.evaluation_batches(of(**OTHER), digits, digits.test))
    cut = first(evaluation_batches(digits.test, size, 128, Augmentation("resized")))
    np.testing.assert_array_equal(seen, cut)
    assert (first(inputs.evaluation_batches(RUN, digits, digits.test)) != cut).any()


def test_a_calibration_sees_such_views(digits):
    def brightest(settings):
        images, _ = next(iter(inputs.training_batches(settings, digits, seed=0)))
        return images.numpy().max(axis=(1, 2, 3))

    plain = brightest(RUN)
    assert plain.min() > 200  # few digits have no stroke of 255
    assert brightest(of(color_jitter=1.0)).min() < 100
