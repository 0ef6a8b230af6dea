"""All methods by name, and a file for each prior method that is more than a loss."""

from candle_tf.methods.auxiliary import AuxiliaryModel
from candle_tf.methods.bbn import BbnModel
from candle_tf.methods.dive import DiveModel
from candle_tf.methods.experts import Experts, branch
from candle_tf.methods.mixup import MixupModel
from candle_tf.methods.oltr import OltrModel, with_meta_embedding
from candle_tf.methods.paco import PacoModel
from candle_tf.methods.second_stages import SECOND_STAGES, FirstStage
from candle_tf.methods.table import METHODS, Method, Setup, training_loss
from candle_tf.methods.tade import TadeModel

__all__ = [
    "METHODS",
    "SECOND_STAGES",
    "AuxiliaryModel",
    "BbnModel",
    "DiveModel",
    "Experts",
    "FirstStage",
    "Method",
    "MixupModel",
    "OltrModel",
    "PacoModel",
    "Setup",
    "TadeModel",
    "branch",
    "training_loss",
    "with_meta_embedding",
]
