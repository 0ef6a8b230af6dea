"""Exports of the student alone: files that run without Keras, Larq or this library."""

from candle_tf.export.c_library import load_c
from candle_tf.export.c_source import export_c
from candle_tf.export.flatbuffer import export_flatbuffer
from candle_tf.export.integer_flatbuffer import export_int8, export_lce_int8
from candle_tf.export.loaded import Exported, agreement
from candle_tf.export.saved_model import export_saved_model

__all__ = [
    "Exported",
    "agreement",
    "export_c",
    "export_flatbuffer",
    "export_int8",
    "export_lce_int8",
    "export_saved_model",
    "load_c",
]
