"""Random resolution: each batch gets one input size, at no extra expected cost."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def cost_neutral_probabilities(sizes: Sequence[int], base: int) -> np.ndarray:
    """The maximum-entropy distribution over `sizes` whose expected pixel count is base^2.

    p_i is proportional to exp(-beta s_i^2), with the one beta that meets E[s^2] = base^2.

    Returns:
        float64 (sizes,).

    Raises:
        ValueError: unless base lies strictly inside the range of `sizes`, or is the only size.
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

    The draw depends on (seed, step) alone: every replica of a step draws the same, and a resumed
    run goes on with the same sizes.

    Args:
        sizes: input sizes in pixels.
        base: the size whose pixel count the expected one equals.
        seed: of the draws.

    Raises:
        ValueError: if the sizes are not positive, or cannot be cost-neutral.
    """

    def __init__(self, sizes: Sequence[int], base: int, seed: int = 0):
        self.sizes = tuple(sorted({int(size) for size in sizes}))
        if not self.sizes or self.sizes[0] < 1:
            raise ValueError(f"resolutions must be positive sizes in pixels, not {tuple(sizes)}.")
        self.base, self.seed = int(base), int(seed)
        self.probabilities = cost_neutral_probabilities(self.sizes, self.base)

    def draw(self, step: tf.Tensor) -> tf.Tensor | int:
        """The size of `step`: an int32 scalar, or a plain int where there is one size only.

        A scalar tensor keeps the training step at one trace, whatever the number of sizes.
        """
        if len(self.sizes) == 1:
            return self.base
        seed = tf.stack([tf.constant(self.seed, tf.int64), tf.cast(step, tf.int64)])
        u = tf.random.stateless_uniform([], seed, dtype=tf.float64)
        bounds = tf.constant(np.cumsum(self.probabilities)[:-1])
        return tf.gather(tf.constant(self.sizes), tf.searchsorted(bounds, u[None], side="right")[0])

    def draws(self, steps: int) -> np.ndarray:
        """The sizes of steps 0 to `steps` - 1: int32 (steps,)."""
        if len(self.sizes) == 1:
            return np.full(steps, self.base, np.int32)
        draw_all = tf.function(lambda: tf.map_fn(self.draw, tf.range(steps)))
        return draw_all().numpy()

    def get_config(self) -> dict:
        return {"sizes": self.sizes, "base": self.base, "seed": self.seed}

    @classmethod
    def from_config(cls, config: dict) -> "RandomResolution":
        return cls(**config)


def resize(images: tf.Tensor, size: tf.Tensor | int) -> tf.Tensor:
    """Images (batch, h, w, 3) to (batch, size, size, 3), bilinear, antialiased when shrinking.

    Whole numbers become float32.
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
