"""The student alone, as files that run without Keras, Larq or this library, and loaded again."""

from candle_tf.export.flatbuffer import export_flatbuffer
from candle_tf.export.loaded import Exported, agreement
from candle_tf.export.saved_model import export_saved_model

__all__ = ["Exported", "agreement", "export_flatbuffer", "export_saved_model"]
