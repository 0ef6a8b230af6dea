import numpy as np
import pytest
import tensorflow as tf
from candle_tf.data import SAMPLERS, Augmentation, Examples, evaluation_batches, training_batches

PLAIN = Augmentation("pad", flip=False)


@pytest.fixture(scope="module")
def examples() -> Examples:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), np.uint8)
    images = tf.constant([tf.io.encode_png(image).numpy() for image in pixels])
    return Examples(images, np.arange(50) % 5)


def stream(examples, num_examples, **kwargs):
    batches = training_batches(examples, 16, 8, num_examples, augmentation=PLAIN, **kwargs)
    images, labels = zip(*batches.as_numpy_iterator())
    return np.concatenate(images), np.concatenate(labels)


def test_every_example_once_an_epoch(examples):
    _, labels = stream(examples, 150)
    for epoch in range(3):
        assert np.bincount(labels[50 * epoch : 50 * (epoch + 1)]).tolist() == [10] * 5
    assert (labels[:50] != labels[50:100]).any()


@pytest.mark.long
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_resumed_stream_goes_on_as_the_first_would(examples, sampler):
    images, labels = stream(examples, 136, sampler=sampler)
    resumed_images, resumed_labels = stream(examples, 136, sampler=sampler, first_example=72)
    np.testing.assert_array_equal(labels[72:], resumed_labels)
    np.testing.assert_array_equal(images[72:], resumed_images)


def test_without_an_end_each_reading_is_the_next_epoch(examples):
    batches = training_batches(examples, 16, 8, augmentation=PLAIN)
    assert int(batches.cardinality()) == 7
    read = [np.concatenate([y for _, y in batches]) for _ in range(2)]
    _, expected = stream(examples, 100)
    np.testing.assert_array_equal(np.concatenate(read), expected)


def test_the_seed_decides_order_and_views(examples):
    images, _ = stream(examples, 50, seed=3)
    same, _ = stream(examples, 50, seed=3)
    other, _ = stream(examples, 50, seed=4)
    np.testing.assert_array_equal(images, same)
    assert (images != other).any()


def test_class_balanced_batches():
    labels = np.repeat([0, 1], [900, 100])
    image = tf.io.encode_png(np.zeros((8, 8, 3), np.uint8))
    examples = Examples(tf.repeat(image, 1000), labels)
    _, drawn = stream(examples, 2000, sampler="class_balanced")
    assert abs(drawn.mean() - 0.5) < 0.05


@pytest.mark.parametrize("sampler, size", [("over_sampling", 20), ("under_sampling", 2)])
def test_an_even_epoch_has_its_own_length(examples, sampler, size):
    examples = Examples(examples.images[:42], np.repeat(range(5), [20, 10, 5, 5, 2]))
    _, labels = stream(examples, 15 * size, sampler=sampler)
    for epoch in labels.reshape(3, -1):
        assert np.bincount(epoch).tolist() == [size] * 5
    batches = training_batches(examples, 16, 8, sampler=sampler, augmentation=PLAIN)
    assert sum(len(y) for _, y in batches) == 5 * size


def test_progressively_balanced_ends_near_balance():
    labels = np.repeat([0, 1], [900, 100])
    image = tf.io.encode_png(np.zeros((8, 8, 3), np.uint8))
    examples = Examples(tf.repeat(image, 1000), labels)
    _, drawn = stream(examples, 4000, sampler="progressively_balanced")
    expected = 0.1 + 0.4 * np.arange(4) / 4
    np.testing.assert_allclose(drawn.reshape(4, -1).mean(1), expected, atol=0.05)


def test_two_views_are_aligned_and_augmented_independently(examples):
    how = {"augmentation": PLAIN, "seed": 5}
    (first, second), labels = next(iter(training_batches(examples, 16, 50, views=2, **how)))
    _, expected = next(iter(training_batches(examples, 16, 50, **how)))
    np.testing.assert_array_equal(labels, expected)
    first, second = first.numpy(), second.numpy()
    # 5 x 5 places of the crop: the same one twice in 25.
    assert 0.7 < (first != second).any(axis=(1, 2, 3)).mean() < 1.0
    middle = slice(4, 12)  # in a view whatever the crop's place
    for image, other in zip(first, second):
        patches = np.lib.stride_tricks.sliding_window_view(other, (8, 8, 3)).reshape(-1, 8, 8, 3)
        assert (patches == image[middle, middle]).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"views": 0}, "views is 0"),
        ({"sampler": "progressively_balanced"}, "give num_examples"),
        ({"sampler": "progressively_balanced", "num_examples": 40}, "for more updates"),
        ({"sampler": "class-balanced"}, "did you mean 'class_balanced'"),
        ({"first_example": 4}, "first_example is 4 but num_examples, .*, is None"),
        ({"first_example": 9, "num_examples": 8}, "first_example is 9 but num_examples, .*, is 8"),
        ({"batch_size": 0}, "batch_size is 0 but must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(examples, wrong, message):
    with pytest.raises(ValueError, match=message):
        training_batches(examples, 16, **{"batch_size": 8, **wrong})


def test_evaluation_is_in_order_and_untouched(examples):
    images, labels = zip(*evaluation_batches(examples, 16, 8, PLAIN).as_numpy_iterator())
    np.testing.assert_array_equal(np.concatenate(labels), examples.labels)
    first = tf.io.decode_png(examples.images[0]).numpy()
    np.testing.assert_array_equal(images[0][0], first.astype(np.float32))


def test_photographs_are_cropped_to_the_centre():
    image = np.zeros((80, 100, 3), np.uint8)
    image[5:75, 15:85] = 200  # the central 7/8 of the shorter side
    examples = Examples(tf.io.encode_png(image)[None], np.zeros(1, np.int64))
    batch, _ = next(iter(evaluation_batches(examples, 32, 1, Augmentation("resized"))))
    np.testing.assert_allclose(batch, 200.0, atol=1e-3)


def test_decoded_examples_give_the_same_batches(examples):
    decoded = examples.decoded()
    assert decoded.images.dtype == tf.uint8 and decoded.images.shape == (50, 16, 16, 3)
    for how in (PLAIN, Augmentation("resized", color_jitter=0.4)):
        both = [
            next(iter(training_batches(each, 24, 50, augmentation=how)))[0]
            for each in (examples, decoded)
        ]
        np.testing.assert_allclose(both[0], both[1], atol=1e-3)
    both = [next(iter(evaluation_batches(each, 24, 50)))[0] for each in (examples, decoded)]
    np.testing.assert_allclose(both[0], both[1], atol=1e-3)


def test_grey_images_become_rgb():
    grey = np.random.default_rng(0).integers(0, 256, (16, 16, 1), np.uint8)
    examples = Examples(tf.io.encode_png(grey)[None], np.zeros(1, np.int64))
    batch, _ = next(iter(evaluation_batches(examples, 16, 1, PLAIN)))
    np.testing.assert_array_equal(batch[0], np.repeat(grey, 3, axis=-1))
