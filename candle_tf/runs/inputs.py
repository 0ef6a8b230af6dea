"""What a run reads: its images, and the batches that it makes of them."""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf
from candle_tf import data
from candle_tf.data.pipeline import training_places
from candle_tf.resolution import RandomResolution
from candle_tf.runs.settings import OF_VIEWS, Settings, method_of
from candle_tf.teacher_store import TeacherStore


def load_data(settings: Settings) -> data.LongTailedData:
    examples = data.load(
        settings.dataset,
        settings.data_dir,
        settings.imbalance_ratio,
        settings.profile,
        settings.n_max,
        settings.validation_split,
        settings.seed,
        settings.download,
        settings.on_bad_image,
    )
    smoothing = settings.label_smoothing or examples.label_smoothing
    return dataclasses.replace(examples, label_smoothing=smoothing)


def steps_per_epoch(settings: Settings, examples: data.LongTailedData) -> int:
    return settings.steps_per_epoch or max(1, len(examples.train) // settings.batch_size)


def resolution_of(settings: Settings) -> RandomResolution:
    sizes = settings.resolutions or (settings.image_size,)
    return RandomResolution(sizes, settings.image_size, settings.seed)


def teacher_size(settings: Settings, size: int) -> int:
    """The teacher's input size where the student's is `size`, as `CandleModel` has it."""
    return round(settings.teacher_image_size / settings.image_size * size)


def view_size(settings: Settings, examples: data.LongTailedData) -> int:
    """The largest size that student or teacher needs, never above the source's own."""
    largest = max(settings.resolutions or (settings.image_size,))
    needed = max(largest, settings.image_size, teacher_size(settings, largest))
    return min(needed, examples.image_size or needed)


def augmentation(settings: Settings, examples: data.LongTailedData) -> data.Augmentation:
    """Returns how training images vary: the set's way, with what the settings change of it."""
    return dataclasses.replace(examples.info.augmentation, **settings.given(OF_VIEWS))


def centre_square(settings: Settings) -> float:
    """Returns the part of an image that is measured, as a share of its shorter side."""
    own = data.info_of(settings.dataset).augmentation
    return dataclasses.replace(own, **settings.given(OF_VIEWS)).centre_square


def training_batches(
    settings: Settings, examples: data.LongTailedData, **stream
) -> tf.data.Dataset:
    """Augmented training images; `stream` as in `candle_tf.data.training_batches`."""
    return data.training_batches(
        examples.train,
        view_size(settings, examples),
        settings.batch_size,
        **{"augmentation": augmentation(settings, examples), **stream},
    )


def evaluation_batches(
    settings: Settings,
    examples: data.LongTailedData,
    part: data.Examples,
    share: data.Share = data.Share(),
) -> tf.data.Dataset:
    """A split of the data as the run's student sees it, in batches of (images, labels)."""
    return data.evaluation_batches(
        part,
        view_size(settings, examples),
        settings.batch_size,
        augmentation(settings, examples),
        share,
    )


def training_stream(
    settings: Settings,
    examples: data.LongTailedData,
    first_update: int = 0,
    store: TeacherStore | None = None,
    skipped: Sequence[int] = (),
    share: data.Share = data.Share(),
) -> tf.data.Dataset:
    """The batches of all updates from `first_update` on, in pairs for a method of two samplers.

    Args:
        store: what the teacher made of the views, for a run with `--teacher_views`.
        skipped: places of batches that are left out; what follows moves up.
        share: what of it is read here, as in `candle_tf.data.training_batches`.
    """
    method, place = method_of(settings), place_of(first_update, skipped)
    span = {
        "share": share,
        "num_examples": examples_seen(settings, examples, skipped),
        "first_example": place * settings.batch_size,
    }
    if store:
        stream = store.training_batches(
            settings.batch_size, sampler=method.sampler, seed=settings.seed, **span
        )
    else:
        main, *partner = (
            training_batches(settings, examples, sampler=sampler, seed=seed, **span, **views)
            for (sampler, seed), views in zip(
                streams(settings),
                ({"views": method.views}, {}),
            )
        )
        stream = main
        for second in partner:
            pairs = tf.data.Dataset.zip((main, second))
            stream = pairs.map(lambda a, b: ((a[0], b[0]), (a[1], b[1])))
    if not skipped:
        return stream
    numbered = stream.enumerate(place * share.replicas)
    left = numbered.filter(lambda n, _: ~tf.reduce_any(n // share.replicas == list(skipped)))
    return left.map(lambda _, x: x)


def check_sampler(settings: Settings, examples: data.LongTailedData):
    """Refuses a progressive sampler without a second pass."""
    if settings.epochs and not method_of(settings).second_stage:
        training_stream(settings, examples)


def streams(settings: Settings) -> list[tuple[str, int]]:
    """Sampler and seed of each stream that a method's batches come from."""
    method = method_of(settings)
    second = [(method.partner_sampler, settings.seed + 3)] if method.partner_sampler else []
    return [(method.sampler, settings.seed), *second]


def examples_seen(settings: Settings, examples: data.LongTailedData, skipped: Sequence[int]) -> int:
    """How many draws all epochs take, and the batches that are left out."""
    updates = settings.epochs * steps_per_epoch(settings, examples)
    return (updates + len(skipped)) * settings.batch_size


def place_of(update: int, skipped: Sequence[int]) -> int:
    """Where the batch of an update lies in a stream from which some are left out."""
    for place in sorted(skipped):
        update += place <= update
    return update


def indices_of(
    settings: Settings, examples: data.LongTailedData, place: int, skipped: Sequence[int]
) -> list[int]:
    """The training images of the batch at a place of the stream, partners after them."""
    indices = []
    for sampler, seed in streams(settings):
        places = training_places(
            examples.train.labels,
            sampler,
            seed,
            lambda order, key, number: {},
            examples_seen(settings, examples, skipped),
            place * settings.batch_size,
        )
        indices += [int(at["index"]) for at in places.take(settings.batch_size)]
    return indices


def widened(settings: Settings, strategy: tf.distribute.Strategy) -> Settings:
    """With a whole batch for each replica, where nothing is trained on it."""
    batch_size = settings.batch_size * strategy.num_replicas_in_sync
    return dataclasses.replace(settings, batch_size=batch_size)
