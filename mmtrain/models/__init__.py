"""The models: towers made of the shared core. They know nothing of how they are parallelised."""

from mmtrain.models.clip import Clip, ClipConfig, ClipStage
from mmtrain.models.decoder import Decoder, DecoderStage
from mmtrain.models.decoder_config import DecoderConfig
from mmtrain.models.named import MODEL_NAMES, named_model
from mmtrain.models.parameters import ParameterNames, parameter_names
from mmtrain.models.text import TextConfig, TextTower
from mmtrain.models.vision import VisionConfig, VisionTower

__all__ = [
    "MODEL_NAMES",
    "Clip",
    "ClipConfig",
    "ClipStage",
    "Decoder",
    "DecoderConfig",
    "DecoderStage",
    "ParameterNames",
    "TextConfig",
    "TextTower",
    "VisionConfig",
    "VisionTower",
    "named_model",
    "parameter_names",
]
