import dataclasses

import numpy as np
import pytest
from candle_tf.data import Augmentation, evaluation_batches
from candle_tf.runs.run import Run
from candle_tf.runs.settings import Settings

RUN = Settings(workdir="run", dataset="digits", image_size=16)
OTHER = {"crop": "resized", "flip": True, "color_jitter": 0.4}


@pytest.fixture(scope="module")
def digits():
    return of().examples


def of(**changes) -> Run:
    return Run(dataclasses.replace(RUN, **changes))


def test_views_are_those_of_the_set_unless_given(digits):
    assert of().augmentation == digits.info.augmentation
    assert of(flip=True).augmentation == Augmentation("pad", flip=True)
    assert of(**OTHER).augmentation == Augmentation("resized", True, 0.4)


def test_images_are_cropped_for_evaluation_as_in_training(digits):
    size = of().view_size

    def first(batches):
        return next(iter(batches))[0].numpy()

    seen = first(of(**OTHER).evaluation_batches(digits.test))
    cut = first(evaluation_batches(digits.test, size, 128, Augmentation("resized")))
    np.testing.assert_array_equal(seen, cut)
    assert (first(of().evaluation_batches(digits.test)) != cut).any()


def test_a_calibration_sees_such_views():
    def brightest(run):
        images, _ = next(iter(run.training_batches(seed=0)))
        return images.numpy().max(axis=(1, 2, 3))

    plain = brightest(of())
    assert plain.min() > 200  # few digits have no stroke of 255
    assert brightest(of(color_jitter=1.0)).min() < 100


def test_the_student_is_evaluated_on_images_that_are_resized_once(digits):
    wide = of(image_size=16, teacher_image_size=40, dataset="digits", crop="resized")
    wide.examples = dataclasses.replace(wide.examples, image_size=None)
    assert wide.view_size == 40
    images, _ = next(iter(wide.evaluation_batches(digits.test)))
    assert images.shape[1] == 16


def test_a_method_without_a_teacher_reads_images_of_the_students_size(digits):
    alone = of(image_size=16, teacher_image_size=40, method="cross_entropy")
    alone.examples = dataclasses.replace(digits, image_size=None)
    assert alone.view_size == 16


def test_branches_start_from_a_pretrained_block():
    pretrained = {"image_size": 32, "student": "resnet_e:weights='generic'"}
    student = of(**pretrained).build_student(10)
    branched = of(**pretrained, method="tade").build_student(10)
    own = [layer for layer in student.layers[:-1] if layer.weights]
    for number in range(3):
        copies = [
            layer
            for layer in branched.layers
            if layer.name.startswith(f"branch_{number}_") and layer.weights
        ]
        assert len(copies) >= 3
        for copy, layer in zip(copies, own[-len(copies) :]):
            for mine, its in zip(copy.get_weights(), layer.get_weights()):
                np.testing.assert_array_equal(mine, its)
