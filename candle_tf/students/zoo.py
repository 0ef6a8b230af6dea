"""The binary networks of larq-zoo as students."""

import tensorflow as tf
from candle_tf.networks.pretrained import build_encoder, zoo_networks
from candle_tf.students.inputs import standardize
from candle_tf.utils.names import lookup

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Inlined(tf.keras.layers.Lambda):
    """A Lambda whose TensorFlow calls become layers of the network, which can be saved."""

    def __call__(self, inputs, **kwargs):
        return self.function(inputs)


def larq_zoo(
    name: str, num_classes: int, image_size: int = 224, *, weights: str | None = None
) -> tf.keras.Model:
    """Builds a network of larq-zoo up to its last feature map, then pooling and a new classifier.

    Args:
        name: Name in `larq_zoo`, for instance "QuickNet".
        num_classes: Width of the classifier.
        image_size: Side of the input in pixels.
        weights: Weights to start from: "imagenet" (downloaded by larq-zoo), a weights file, or None
            for random ones. "" builds the network that pretrained weights fit, without them.

    Returns:
        A functional model (batch, image_size, image_size, 3) -> logits (batch, num_classes), with
        the pooled embedding in its layer `features`.

    Raises:
        ValueError: For an unknown name, weights that do not fit, or images too small.

    Example:
        >>> ct.students.larq_zoo("QuickNetSmall", num_classes=10, image_size=32).name
        'QuickNetSmall'
    """
    network = lookup("larq-zoo network", name, zoo_networks())
    # Pretrained weights are those of 224 pixels: some networks have another stem below 50.
    size = image_size if weights is None else 224
    try:
        encoder = build_encoder(network, weights or None, (size, size, 3), {})
        images = tf.keras.Input((image_size, image_size, 3), name="images")
        x = standardize(images, IMAGENET_MEAN, IMAGENET_STD)
        for layer in encoder.layers:
            if isinstance(layer, tf.keras.layers.Lambda):
                layer.__class__ = _Inlined
        x = encoder.call(x)  # not encoder(x): its layers, not itself, are to be the student's
    except ValueError as error:
        if "egative dimension" not in str(error) and "output is <= 0" not in str(error):
            raise
        raise ValueError(
            f"larq-zoo's {name} cannot work at {image_size} pixels: give larger images."
        ) from error
    if name.startswith("QuickNet"):
        x = tf.keras.layers.Activation("relu")(x)  # which larq-zoo counts as part of the top
    x = tf.keras.layers.GlobalAveragePooling2D(name="features")(x)
    logits = tf.keras.layers.Dense(num_classes, name="logits", dtype="float32")(x)
    return tf.keras.Model(images, logits, name=name)
