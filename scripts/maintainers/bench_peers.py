"""Times the distillation step of one library on request: the worker of `bench_speed.py`.

    python scripts/maintainers/bench_peers.py --peer=candle --images=FILE.npz --teacher=FILE.h5

Each peer trains a student of the same shape (resnet_e at 32 px) by its own `fit`. All use the same
images and the same frozen teacher: the pooled encoder at 96 px and a linear classifier.

    candle     CandleModel: KL and feature term, lambda adversarial          binary student
    larq_zoo   TeacherStudentModelFactory: KL and cross-entropy              binary student
    keras3     keras.distillation.Distiller: KL and feature term             float student

After its warm-up the process prints {"ready": true, "peer": ..., "version": ...}. For each integer
k on a line of its input it trains k steps. It answers {"seconds": wall time, "cpu_seconds": time of
all threads, "peak_rss_mb": peak memory so far}. Each peer has its own process, because Larq needs
Keras 2 and `keras.distillation` Keras 3.
"""

import importlib.metadata
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
from absl import app, flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow is imported later

CLASSES, SIZE, TEACHER_SIZE, BATCH, TEMPERATURE = 10, 32, 96, 128, 2.0
WARM_UP = 3


def candle(teacher_file: str):
    """Returns (compiled model, version); each peer does."""
    import candle_tf as ct

    teacher = ct.Teacher.from_file(teacher_file, TEACHER_SIZE)
    # A classifier without calibration takes the same time.
    teacher.classifier = ct.classifiers.linear(teacher.width, CLASSES)
    teacher.class_counts = [1] * CLASSES
    student = ct.students.resnet_e(CLASSES, SIZE)
    model = ct.CandleModel(teacher, student, temperature=TEMPERATURE)
    model.compile("adam")
    return model, ct.__version__


def larq_zoo(teacher_file: str):
    from candle_tf.students import resnet_e  # isort: skip  before larq_zoo, as it sets Keras 2
    import tensorflow as tf
    from larq_zoo.training.knowledge_distillation import knowledge_distillation
    from zookeeper.core import configure

    factory = knowledge_distillation.TeacherStudentModelFactory()
    student = resnet_e(CLASSES, SIZE, input_quantizer="approx_sign")  # Larq's own
    images, _, logits = teacher_of(
        tf.keras, tf.keras.models.load_model(teacher_file, compile=False)
    )
    settings = {
        "teacher_model": tf.keras.Model(images, logits),
        # Its cross-entropy takes probabilities, its KL the layer named logits.
        "student_model": tf.keras.Model(student.input, tf.keras.layers.Softmax()(student.output)),
        "allow_missing_teacher_weights": True,  # they are loaded already
        "num_classes": CLASSES,
        "input_shape": (SIZE, SIZE, 3),
        "classification_weight": 1.0,
        "attention_matching_weight": 0.0,  # no feature maps of the two have one shape
        "attention_matching_train_teacher": False,
        "output_matching_weight": 1.0,
        "output_matching_softmax_temperature": TEMPERATURE,
        "output_matching_train_teacher": False,
    }
    configure(factory, settings)
    model = factory.build()
    model.compile("adam", factory.classification_loss)
    return model, importlib.metadata.version("larq-zoo")


def keras3(teacher_file: str):
    os.environ.pop("TF_USE_LEGACY_KERAS", None)
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    if not hasattr(keras, "distillation"):
        sys.exit(f"Keras {keras.__version__} of {sys.executable} has no keras.distillation.")

    class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
        """Accepts the config of Keras 2, where `groups` is always 1."""

        def __init__(self, groups=1, **kwargs):
            super().__init__(**kwargs)

    replaced = {"DepthwiseConv2D": DepthwiseConv2D}
    encoder = keras.models.load_model(teacher_file, replaced, compile=False)
    encoder = keras.Model(encoder.inputs[0], encoder.outputs[0])  # its output comes as a list
    images, *outputs = teacher_of(keras, encoder)
    losses, distillation = keras.losses, keras.distillation
    model = distillation.Distiller(
        keras.Model(images, outputs),
        float_student(keras, adapter_width=encoder.output_shape[-1]),
        # Both terms on outputs: on layers by name, it would run the student twice a step.
        [
            distillation.FeatureDistillation([losses.CosineSimilarity(), None]),
            # With the name "kl_divergence", it would apply the loss to raw logits.
            distillation.LogitsDistillation(TEMPERATURE, [None, losses.KLDivergence()]),
        ],
        student_loss_weight=0.0,  # without labels, as CandleModel
    )
    model.compile("adam", loss="mse")  # never computed, but required
    return model, keras.__version__


def teacher_of(keras, encoder) -> tuple:
    """Returns symbolic (images in [0, 255] at 32 px, features, logits), in Keras 2 or 3."""
    images = keras.Input((SIZE, SIZE, 3), name="teacher_images")
    x = keras.layers.Resizing(TEACHER_SIZE, TEACHER_SIZE)(images)
    x = encoder(keras.layers.Rescaling(1 / 127.5, offset=-1.0)(x))
    features = keras.layers.GlobalAveragePooling2D()(x)
    return images, features, keras.layers.Dense(CLASSES, name="teacher_logits")(features)


def float_student(keras, adapter_width: int):
    """Returns resnet_e without quantizers in Keras 3, which gives [adapted features, logits]."""
    layers = keras.layers

    def norm(x):
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    def activation(x):
        return layers.PReLU(
            alpha_initializer=keras.initializers.Constant(0.25), shared_axes=[1, 2]
        )(x)

    same = {"padding": "same", "use_bias": False}

    def convolution(x, channels, strides):
        return norm(layers.Conv2D(channels, 3, strides, **same)(x))

    def block(x, channels, strides):
        shortcut = x
        if strides > 1:
            shortcut = layers.AveragePooling2D(strides, padding="same")(x)
            shortcut = layers.Concatenate()([shortcut, shortcut])
        return activation(layers.add([convolution(x, channels, strides), shortcut]))

    images = keras.Input((SIZE, SIZE, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(images)
    x = activation(convolution(x, 16, strides=1))
    x = norm(layers.DepthwiseConv2D(3, 2, **same)(x))
    x = activation(norm(layers.Conv2D(64, 1, **same)(x)))
    for channels, strides in ((64, 1), (128, 2), (256, 2)):
        x = block(x, channels, strides)
    features = layers.GlobalAveragePooling2D()(x)
    adapted = layers.BatchNormalization(momentum=0.9)(layers.Dense(adapter_width)(features))
    adapted = layers.LeakyReLU()(adapted)
    return keras.Model(images, [adapted, layers.Dense(CLASSES)(features)])


PEERS = {"candle": candle, "larq_zoo": larq_zoo, "keras3": keras3}
flags.DEFINE_enum("peer", None, list(PEERS), "Peer to time.", required=True)
flags.DEFINE_string(
    "images", None, ".npz of images, float32 (n, 32, 32, 3), and int labels (n,).", required=True
)
flags.DEFINE_string("teacher", None, "The encoder, an .h5 file of Keras 2.", required=True)


def batches(path: str):
    """Yields whole batches from memory, again and again."""
    import tensorflow as tf

    with np.load(path) as data:
        n = len(data["labels"]) // BATCH
        if not n:
            sys.exit(f"{path} has less than a batch of {BATCH} images.")
        shapes = {"images": (n, BATCH, SIZE, SIZE, 3), "labels": (n, BATCH)}
        arrays = [data[name][: n * BATCH].reshape(shape) for name, shape in shapes.items()]
    return tf.data.Dataset.from_tensor_slices(tuple(arrays)).repeat()


def peak_memory() -> float:
    """Returns the peak MB of this process; `getrusage` would include the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def main(_):
    # Only answers go to the output. The messages of libraries go to the log.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    peer = flags.FLAGS.peer
    model, version = PEERS[peer](flags.FLAGS.teacher)
    train = batches(flags.FLAGS.images)
    model.fit(train, steps_per_epoch=WARM_UP, verbose=0)
    answer(ready=True, peer=peer, version=version)
    for line in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        model.fit(train, steps_per_epoch=int(line), verbose=0)
        answer(
            seconds=time.perf_counter() - start,
            cpu_seconds=time.process_time() - cpu_start,
            peak_rss_mb=peak_memory(),
        )


if __name__ == "__main__":
    app.run(main)
