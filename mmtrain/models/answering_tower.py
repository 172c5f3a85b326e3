"""The image tower of a model that answers, for what searches or classifies images by features."""

from torch import Tensor, nn

from mmtrain.models.connector import Connector
from mmtrain.models.vqa import Vqa


class AnsweringTower(nn.Module):
    """Images as the answering head reads them: the mean over the patches of what its connector
    norms. The space is the image tower's own; no text is in it.

    Args:
        model: whole; its classifier's connector is taken where it has both heads.
    """

    def __init__(self, model: Vqa) -> None:
        super().__init__()
        head = model.generate if model.classify is None else model.classify
        assert head is not None and isinstance(head.connector, Connector), "a whole model"
        self.vision, self.norm = model.vision, head.connector.norm

    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, D]."""
        patches_BPD = self.vision(images_BCHW)[:, self.vision.config.num_prefix :]
        return self.norm(patches_BPD).mean(1)

    def encode_text(self, tokens_BT: Tensor) -> Tensor:
        """None can be given.

        Raises:
            ValueError: always.
        """
        raise ValueError("a model that answers has no features of texts")
