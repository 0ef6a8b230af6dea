"""Prior methods that are more than a loss: how a student is trained, or how it branches."""

from candle_tf.schemes.auxiliary import AuxiliaryModel
from candle_tf.schemes.bbn import BbnModel
from candle_tf.schemes.dive import DiveModel
from candle_tf.schemes.experts import Experts, branch
from candle_tf.schemes.mixup import MixupModel
from candle_tf.schemes.oltr import OltrModel, with_meta_embedding
from candle_tf.schemes.paco import PacoModel
from candle_tf.schemes.tade import TadeModel

__all__ = [
    "AuxiliaryModel",
    "BbnModel",
    "DiveModel",
    "Experts",
    "MixupModel",
    "OltrModel",
    "PacoModel",
    "TadeModel",
    "branch",
    "with_meta_embedding",
]
