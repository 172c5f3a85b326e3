"""The models: towers made of the shared core. They know nothing of how they are parallelised."""

from mmtrain.models.clip import Clip, ClipConfig, ClipStage
from mmtrain.models.decoder import Decoder, DecoderStage
from mmtrain.models.decoder_config import DecoderConfig
from mmtrain.models.text import TextConfig, TextTower
from mmtrain.models.vision import VisionConfig, VisionTower

__all__ = [
    "Clip",
    "ClipConfig",
    "ClipStage",
    "Decoder",
    "DecoderConfig",
    "DecoderStage",
    "TextConfig",
    "TextTower",
    "VisionConfig",
    "VisionTower",
]
