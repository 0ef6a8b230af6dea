"""Checks of pixels and labels where they enter: wrong ones are refused in one clear sentence."""

import numpy as np
from numpy.typing import ArrayLike

CHANNELS = 3
OVERSHOOT = 26  # sharp resizing and colour changes leave [0, 255] by so much
SCALED = 1.2  # images that end here were divided by 255
NORMALISED = 16  # images that begin below 0 and end here were normalised
WHAT = "images are RGB in [0, 255], float32 or uint8, (batch, height, width, 3)"


def check_pixels(images: ArrayLike, where: str, first: int = 0):
    """Refuses a batch that cannot be images in [0, 255].

    The range is judged over the whole batch, so one dark or black image does no harm.

    Args:
        images: The batch, as an array or a tensor.
        where: Name of the call that got the images, for the message.
        first: Index of the batch's first image in its stream.

    Raises:
        ValueError: For another shape, dtype or range, or for NaN. The message says what the images
            seem to be.

    Example:
        >>> check_pixels(np.full((1, 8, 8, 3), 0.5), "fit")
        Traceback (most recent call last):
        ValueError: fit: images are in [0, 255]; these end at 0.5, as if divided by 255: ...
    """
    check_image_shape(np.shape(images), where)
    images = np.asarray(images)
    if images.dtype.kind not in "uif" and images.dtype.name != "bfloat16":
        raise ValueError(f"{where}: {WHAT}; these are {images.dtype}: decode or cast them.")
    if not images.size:
        return
    if images.dtype.kind not in "ui":
        images = images.astype(np.float32) if images.dtype.itemsize < 4 else images
        finite = np.isfinite(images).all(axis=(1, 2, 3))
        if not finite.all():
            raise ValueError(
                f"{where}: image {first + int(np.argmin(finite))} of the stream holds NaN or Inf: "
                "images are finite; repair it or leave it out."
            )
    check_range(
        images.min(axis=(1, 2, 3)),
        images.max(axis=(1, 2, 3)),
        images.dtype.kind in "ui" or almost_black(images),
        where,
    )


def check_range(low: np.ndarray, high: np.ndarray, may_be_dark: ArrayLike, where: str):
    """Refuses images that are not in [0, 255], judged over the whole batch.

    Args:
        low: The smallest pixel of each image, (batch,).
        high: The largest pixel of each image, (batch,).
        may_be_dark: Whether an image with a maximum of 1 may be a dark one, as an image of integers
            may: one value for the batch or one per image.
        where: Name of the call that got the images, for the message.

    Raises:
        ValueError: If the images seem to be normalised, divided by 255 or out of range.
    """
    low, high = float(np.min(low)), float(np.max(high))
    if low < 0 and high < NORMALISED or low < -OVERSHOOT:
        raise ValueError(
            f"{where}: images are in [0, 255]; these go from {low:.4g} to {high:.4g}, as if "
            "normalised: leave the scaling out, as networks carry their own."
        )
    if high > 255 + OVERSHOOT:
        raise ValueError(
            f"{where}: images are in [0, 255]; these end at {high:.6g}: scale them to that range."
        )
    if 0 < high < SCALED and not np.all(may_be_dark):
        raise ValueError(
            f"{where}: images are in [0, 255]; these end at {high:.4g}, as if divided by 255: "
            "leave that out, as networks carry their own scaling."
        )


def almost_black(images: np.ndarray) -> bool:
    """Returns whether a few pixels are 1 and all others 0, as in a photograph taken at night."""
    return bool(((images == 0) | (images == 1)).all() and images.mean() < 0.02)


def check_image_shape(shape: tuple[int | None, ...], where: str):
    """Refuses a shape that is not (batch, height, width, 3), where None means any size.

    Raises:
        ValueError: For another shape. The message says how to convert the images.
    """
    shape = tuple(shape)
    if len(shape) == 4 and shape[-1] in (CHANNELS, None):
        return
    if len(shape) == 4 and shape[1] == CHANNELS:
        remedy = "the channels come first here, so transpose them: np.moveaxis(images, 1, -1)"
    elif len(shape) == 4 and shape[-1] == 1:
        remedy = "gray images need three channels: tf.image.grayscale_to_rgb(images)"
    elif len(shape) == 4 and shape[-1] == 4:
        remedy = "leave the fourth channel out: images[..., :3]"
    elif len(shape) == 3 and shape[-1] == CHANNELS:
        remedy = "a single image needs a batch around it: images[None]"
    elif len(shape) == 3:
        remedy = "gray images need three channels: tf.image.grayscale_to_rgb(images[..., None])"
    else:
        remedy = "reshape them"
    said = ", ".join("?" if n is None else str(n) for n in shape)
    raise ValueError(f"{where}: {WHAT}; these have the shape ({said}): {remedy}.")


def check_labels(labels: ArrayLike, num_classes: int, where: str, first: int = 0):
    """Refuses labels that are not class numbers in [0, num_classes), one per image.

    Args:
        labels: An array or a tensor, (batch,) or (batch, 1).
        num_classes: Number of classes.
        where: Name of the call that got the labels, for the message.
        first: Index of the batch's first label in its stream.

    Raises:
        ValueError: For wrong labels. The message names the first one by its index in the stream.
    """
    labels = np.asarray(labels)
    if labels.ndim > 1 and labels.shape[1:] != (1,):
        hot = labels.ndim == 2 and labels.shape[1] == num_classes
        raise ValueError(
            f"{where}: labels are class numbers, one per image, not "
            f"{'one-hot' if hot else 'of the shape ' + str(labels.shape)}: "
            f"{'pass labels.argmax(-1)' if hot else 'pass integers of shape (batch,)'}."
        )
    labels = labels.reshape(-1)
    if labels.dtype.kind not in "uif":
        raise ValueError(
            f"{where}: labels are class numbers, these are {labels.dtype}: number the classes from "
            "0."
        )
    if labels.dtype.kind == "f":
        broken = np.flatnonzero(labels != np.floor(labels))
        if len(broken):
            raise ValueError(
                f"{where}: labels are whole numbers, but example {first + broken[0]} has label "
                f"{labels[broken[0]]:g}: number the classes from 0."
            )
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        from_1 = labels.min() == 1 and labels.max() == num_classes
        hint = "they begin at 1, so subtract 1" if from_1 else "correct the labels or the classes"
        raise ValueError(
            f"{where}: example {first + bad[0]} has label {labels[bad[0]]:g}, but labels go from 0 "
            f"to {num_classes - 1} ({len(bad)} such examples): {hint}."
        )


def check_examples(examples, num_classes: int, where: str):
    """Refuses `Examples` with wrong labels, or with pixels in memory that are not in [0, 255].

    Raises:
        ValueError: Says what is wrong and how to correct it.
    """
    check_labels(examples.labels, num_classes, where)
    if not examples.on_disk and examples.images.dtype.name != "string":
        check_pixels(examples.images[:1024], where)
    if len(examples.images) != len(examples.labels):
        raise ValueError(
            f"{where}: {len(examples.images)} images have {len(examples.labels)} labels: give one "
            "per image."
        )


def check_views(views: int):
    """Refuses a number of views below 1.

    Raises:
        ValueError: For any such number.

    Example:
        >>> check_views(1)
    """
    if views < 1:
        raise ValueError(f"views is {views} but must be at least 1.")
