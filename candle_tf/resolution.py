"""Random resolution: each batch gets one input size, at no extra expected cost."""

from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf


def cost_neutral_probabilities(sizes: Sequence[int], base: int) -> np.ndarray:
    """Returns p_i ~ exp(-beta s_i^2), with the one beta for which E[s^2] = base^2.

    That is the maximum-entropy distribution whose expected pixel count is that of the base.

    Args:
        sizes: Sizes s in pixels.
        base: Base size in pixels.

    Returns:
        Probabilities, float64 (sizes,).

    Raises:
        ValueError: Unless the base is strictly inside the range of `sizes`, or the only size.

    Example:
        >>> p = cost_neutral_probabilities([24, 32, 40], 32)
        >>> round(float(p @ np.square([24, 32, 40])), 6)
        1024.0
    """
    if list(sizes) == [base]:
        return np.ones(1)
    if not min(sizes) < base < max(sizes):
        raise ValueError(
            f"resolutions {tuple(sizes)} cannot cost the same as image_size {base} on average: "
            f"give sizes both below and above {base}, or {base} alone."
        )
    pixels = (np.asarray(sizes, np.float64) / base) ** 2  # in units of the base's pixel count

    def probabilities(beta: float) -> np.ndarray:
        weight = np.exp(-beta * pixels - np.max(-beta * pixels))
        return weight / weight.sum()

    # E[pixels] falls monotonically in beta from max(pixels) to min(pixels): widen, then bisect.
    low, high = -1.0, 1.0
    while probabilities(low) @ pixels < 1.0:
        low *= 2.0
    while probabilities(high) @ pixels > 1.0:
        high *= 2.0
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if probabilities(middle) @ pixels > 1.0 else (low, middle)
    return probabilities(low)


class RandomResolution:
    """Draws an input size for each step, cost-neutral on average.

    The draw depends on (seed, step) alone: all replicas draw the same size at a step, and a resumed
    run draws the sizes that it would have drawn.

    Args:
        sizes: Input sizes in pixels.
        base: Size in pixels whose pixel count is the expected one.
        seed: Seed of the draws.

    Raises:
        ValueError: If the sizes are not positive, or cannot be cost-neutral.

    Example:
        >>> resolution = ct.RandomResolution((24, 32, 40), 32)
        >>> set(resolution.draws(20).tolist()) <= {24, 32, 40}
        True
    """

    def __init__(self, sizes: Sequence[int], base: int, seed: int = 0):
        if not isinstance(sizes, Iterable):
            raise ValueError(
                f"sizes is {sizes!r}: give the sizes first, such as ({sizes!r},), then the base."
            )
        self.sizes = tuple(sorted({int(size) for size in sizes}))
        if not self.sizes or self.sizes[0] < 1:
            raise ValueError(f"resolutions must be positive sizes in pixels, not {tuple(sizes)}.")
        self.base, self.seed = int(base), int(seed)
        self.probabilities = cost_neutral_probabilities(self.sizes, self.base)

    def draw(self, step: tf.Tensor) -> tf.Tensor | int:
        """Returns the size of a step: int32 (), or a plain int if there is one size only.

        A scalar tensor keeps the training step at one trace, whatever the number of sizes.

        Args:
            step: Number of the update, from 0.
        """
        if len(self.sizes) == 1:
            return self.base
        seed = tf.stack([tf.constant(self.seed, tf.int64), tf.cast(step, tf.int64)])
        u = tf.random.stateless_uniform([], seed, dtype=tf.float64)
        bounds = tf.constant(np.cumsum(self.probabilities)[:-1])
        return tf.gather(tf.constant(self.sizes), tf.searchsorted(bounds, u[None], side="right")[0])

    def draws(self, steps: int) -> np.ndarray:
        """Returns the sizes of steps 0 to `steps` - 1, int32 (steps,)."""
        if len(self.sizes) == 1:
            return np.full(steps, self.base, np.int32)
        draw_all = tf.function(lambda: tf.map_fn(self.draw, tf.range(steps)))
        return draw_all().numpy()


def resize(images: tf.Tensor, size: tf.Tensor | int) -> tf.Tensor:
    """Resizes images (batch, h, w, 3) to (batch, size, size, 3), bilinear.

    Shrinking is antialiased. Integer images become float32.

    Example:
        >>> resize(np.zeros((2, 28, 20, 3), np.uint8), 32).shape
        TensorShape([2, 32, 32, 3])
    """
    images = tf.convert_to_tensor(images)
    height, width = images.shape[1:3]
    images = tf.cast(images, tf.float32) if images.dtype.is_integer else images

    def to_size(antialias: bool) -> tf.Tensor:
        return tf.image.resize(images, [size, size], antialias=antialias)

    if height is None or width is None:
        return to_size(antialias=True)
    # Enlarging needs no antialiasing, which would only make it three times as slow.
    if not isinstance(size, int):
        return tf.cond(size >= max(height, width), lambda: to_size(False), lambda: to_size(True))
    return images if height == width == size else to_size(size < max(height, width))


def in_proportion(size: tf.Tensor | int, base: int, other: int) -> tf.Tensor | int:
    """Returns the size that is to `other` as `size` is to `base`, rounded, in the type of `size`.

    Args:
        size: Side in pixels, such as the student's in a batch.
        base: Base size of the same network.
        other: Base size of the other network, such as the teacher's.

    Example:
        >>> in_proportion(24, base=32, other=128)
        96
    """
    return (2 * size * other + base) // (2 * base)  # exact, so that both types round alike
