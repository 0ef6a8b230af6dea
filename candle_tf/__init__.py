"""Binary neural networks for long-tailed data: calibrate a pretrained teacher, distill it (CANDLE).

Import this package before TensorFlow: Larq runs on Keras 2, which TensorFlow 2.16 and later
serve from the `tf-keras` package only where `TF_USE_LEGACY_KERAS=1` was set before their import.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

from candle_tf.cli import quick_answers  # noqa: E402

if quick_answers.is_command():  # --help takes no import of TensorFlow
    quick_answers.answer()

from candle_tf.utils.quiet import start_quietly  # noqa: E402

start_quietly()

import tensorflow as tf  # noqa: E402

try:
    import larq  # noqa: E402, F401

    keras_2 = tf.keras.Model.__module__.startswith("tf_keras")
except AttributeError:  # parts of Keras 2 and 3 mixed
    keras_2 = False
if not keras_2:
    raise ImportError(
        "candle_tf needs Keras 2 but tf.keras is Keras 3: import candle_tf before tensorflow, or "
        "set TF_USE_LEGACY_KERAS=1 in the environment."
    )

from candle_tf import classifiers, data, export, losses, methods, metrics, students, zoo  # noqa: E402
from candle_tf.balancer import AdversarialBalancer  # noqa: E402
from candle_tf.model import CandleModel  # noqa: E402
from candle_tf.pretraining import pretrain  # noqa: E402
from candle_tf.resolution import RandomResolution  # noqa: E402
from candle_tf.runs import Run, train  # noqa: E402
from candle_tf.student_model import StudentModel  # noqa: E402
from candle_tf.teacher import Teacher  # noqa: E402
from candle_tf.teacher_store import TeacherStore  # noqa: E402

schemes = methods  # its name before

__version__ = "0.1.0"

__all__ = [
    "AdversarialBalancer",
    "CandleModel",
    "RandomResolution",
    "Run",
    "StudentModel",
    "Teacher",
    "TeacherStore",
    "classifiers",
    "data",
    "export",
    "losses",
    "methods",
    "metrics",
    "pretrain",
    "schemes",
    "students",
    "train",
    "zoo",
]
