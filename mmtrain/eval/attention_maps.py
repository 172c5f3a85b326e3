"""Where in an image a text is: the similarity of every patch with the text.

No tower is trained to say this; it follows from what pools the patches. What stands at a patch is
taken to be what the head would make of an image that is that patch alone.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain.models import Clip
from mmtrain.models.vision import VisionHead, VisionTower
from mmtrain.nn.attention import Mask


@torch.no_grad()
def encode_patches(model: Clip, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Unit-norm features of images, [B, E], and of each of their patches, [B, rows, columns, E].

    Both in fp32 and in the space of the texts, from one pass through the tower. A patch's own
    feature is the last block's with attention kept to the token itself, then the head's over it
    alone. For a class token or attention pooling this is MaskCLIP, Zhou et al. 2021,
    arXiv:2112.01071, section 3.2: what such a pool collects of a patch is its value, while the last
    block's usual output at the patches is read, and so trained, by nobody.

    Args:
        model: in eval mode.
        images_BCHW: uint8; height and width are multiples of the patch size.
    """
    vision = model.vision
    assert vision.embed is not None and vision.head is not None, "a slice has no features"
    size = vision.config.patch_size
    rows, columns = images_BCHW.size(-2) // size, images_BCHW.size(-1) // size
    x_BTD = vision.embed(images_BCHW)
    rope = vision.rope_table((rows, columns), None, x_BTD.device)
    mask = vision.transformer.build_mask(x_BTD.size(1), device=x_BTD.device)
    *blocks, last = vision.transformer.blocks.values()
    for block in blocks:
        x_BTD = block(x_BTD, mask=mask, rope=rope)
    whole_BTD = last(x_BTD, mask=mask, rope=rope)
    alone_BTD = whole_BTD
    if vision.config.pool != "mean":
        itself = torch.eye(x_BTD.size(1), dtype=torch.bool, device=x_BTD.device)
        alone_BTD = last(x_BTD, mask=Mask(allowed=itself[None]), rope=rope)
    patch_BPE = _pool_each(vision, vision.head, alone_BTD[:, vision.config.num_prefix :])
    image_BE = F.normalize(vision.head(whole_BTD).float(), dim=-1)
    return image_BE, F.normalize(patch_BPE.float(), dim=-1).unflatten(1, (rows, columns))


def _pool_each(vision: VisionTower, head: VisionHead, patch_BPD: Tensor) -> Tensor:
    """The head over every patch as if it were the only one: [B, P, D] -> [B, P, E]."""
    alone_N1D = patch_BPD.flatten(0, 1)[:, None]
    if vision.config.pool == "mean":  # which leaves out the tokens before the patches
        alone_N1D = F.pad(alone_N1D, (0, 0, vision.config.num_prefix, 0))
    return head(alone_N1D).unflatten(0, patch_BPD.shape[:2])


def similarity_maps(patch_RCE: Tensor, text_ME: Tensor) -> Tensor:
    """Cosines of one image's patches with texts: [M, rows, columns]; features are unit-norm."""
    return torch.einsum("rce,me->mrc", patch_RCE, text_ME)


def enlarge_maps(map_MRC: Tensor, height: int, width: int) -> Tensor:
    """Maps at the size of a picture, [M, height, width]: bilinear between the patches' centres."""
    shape = (height, width)
    return F.interpolate(map_MRC[:, None], shape, mode="bilinear", align_corners=False)[:, 0]
