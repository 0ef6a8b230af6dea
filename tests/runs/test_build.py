import numpy as np
import pytest
import tensorflow as tf
from candle_tf.runs import job
from candle_tf.runs.run import Run
from tiny_runs import tiny


def compiled(**changes):
    """(model, student) as `run` builds them, not trained."""
    run = Run(tiny("x", **{"method": "cross_entropy", **changes}))
    student = run.build_student(10)
    return job.build_model(run, student, job.set_up(run)), student


def test_warm_up_rises_from_0_and_then_anneals_to_0():
    model, _ = compiled(epochs=4, warmup_epochs=1, learning_rate=0.1)
    rate = model.optimizer._learning_rate
    steps = np.arange(13)  # 3 an epoch
    annealed = 0.05 * (1 + np.cos(np.pi * (steps - 3) / 9))
    expected = np.where(steps < 3, 0.1 * steps / 3, annealed)
    np.testing.assert_allclose([rate(step) for step in steps], expected, atol=1e-7)


@pytest.mark.long
def test_bop_flips_the_binary_weights_and_adam_moves_the_others():
    model, student = compiled(binary_optimizer="bop:gamma=1.0,threshold=0.0")
    before = {v.name: v.numpy() for v in student.trainable_variables}
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (32, 16, 16, 3)).astype(np.float32)
    model.fit(images, np.arange(32) % 10, batch_size=16, verbose=0)
    for variable in student.trainable_variables:
        after, binary = variable.numpy(), "quant_conv2d" in variable.name
        assert (set(np.unique(after)) == {-1.0, 1.0}) == binary, variable.name
        assert (np.sign(after) != np.sign(before[variable.name])).any() or not binary
        assert not np.array_equal(after, before[variable.name]), variable.name


@pytest.mark.long
def test_a_student_for_a_checkpoint_needs_no_pretrained_weights():
    """Though it is the network that they are for: QuickNet has another stem below 50 pixels."""
    run = Run(tiny("x", student="larq_zoo:QuickNetSmall:weights='gone.h5'", image_size=32))
    with pytest.raises(FileNotFoundError, match="gone.h5"):
        run.build_student(10)
    student = run.build_student(10, pretrained=False)
    large = Run(tiny("x", student="larq_zoo:QuickNetSmall", image_size=224)).build_student(10)
    assert [w.shape for w in student.weights] == [w.shape for w in large.weights]
    begun = Run(tiny("x", student="larq_zoo:QuickNetSmall:weights='gone.npz'", image_size=32))
    student = begun.build_student(10, pretrained=False)
    small = Run(tiny("x", student="larq_zoo:QuickNetSmall", image_size=32)).build_student(10)
    assert [w.shape for w in student.weights] == [w.shape for w in small.weights]


def test_pretrained_weights_keep_their_own_scaling_of_pixels():
    cifar = {"dataset": "tfds:cifar10", "teacher": "keras:MobileNet", "teacher_image_size": 96}
    random = Run(tiny("x", **cifar))
    assert random.student_arguments()[1]["mean"] == random.student_arguments(False)[1]["mean"]
    begun = Run(tiny("x", **cifar, student="resnet_e:weights='generic'"))
    assert begun.student_arguments() == ("resnet_e", {"weights": "generic"})
    assert begun.student_arguments(pretrained=False) == ("resnet_e", {"weights": ""})


@pytest.mark.long
def test_precision_is_that_of_teacher_and_student(tmp_path):
    teacher = Run(tiny(tmp_path, precision="mixed_bfloat16")).teacher
    assert teacher.encoder.layers[-2].compute_dtype == "bfloat16"
    images = np.random.default_rng(0).uniform(0, 255, (4, 16, 16, 3)).astype(np.float32)
    exact = Run(tiny(tmp_path)).teacher.embed(images)
    features = teacher.embed(images)
    assert features.dtype == tf.float32
    other = Run(tiny(tmp_path, precision="mixed_float16")).teacher
    assert other.made_of() != teacher.made_of()
    np.testing.assert_allclose(features, exact, atol=0.02 * np.abs(exact).max())
    assert (features.numpy() != exact.numpy()).any()


def test_the_teacher_of_the_digits_is_for_no_other_images(tmp_path):
    sizes = {"dataset": "folder:photos", "teacher_image_size": 32}
    with pytest.raises(ValueError, match="knows handwritten digits only, .*folder:.*photos"):
        tiny(tmp_path, teacher="letters", **sizes).check()
    tiny(tmp_path, method="focal", **sizes).check()
    tiny(tmp_path, teacher="keras:MobileNet", **sizes).check()  # and by default
    tiny(tmp_path).check()


@pytest.mark.long
def test_few_updates_are_said_before_they_are_made(tmp_path, capsys):
    few = {"method": "cross_entropy", "steps_per_epoch": None, "epochs": 1}
    job.prepare(Run(tiny(tmp_path, **few)))
    assert "Only 18 updates in all, 18 per epoch. A student gets better" in capsys.readouterr().out
    job.prepare(Run(tiny(tmp_path, **few | {"epochs": 40})))
    assert "updates in all" not in capsys.readouterr().out


def test_settings_that_the_method_does_not_read_are_named(tmp_path, capsys):
    given = {"method": "cross_entropy", "teacher": "letters", "calibration_epochs": 30}
    job.say_unread(Run(tiny(tmp_path, **given, calibration_views=2)))
    assert capsys.readouterr().out == "Not read by cross_entropy: teacher, calibration_views\n"
    assert not Run(tiny(tmp_path, method="candle", calibration_views=2)).unread
