"""What weights are, in a word."""

import hashlib

import torch
from torch import nn


def weights_fingerprint(model: object) -> str | None:
    """Of all parameters and buffers; None for a model that has no such. Collective if sharded."""
    if not isinstance(model, nn.Module):
        return None
    hashed = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        hashed.update(f"{name} {whole.dtype} {list(whole.shape)}\n".encode())
        hashed.update(whole.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return hashed.hexdigest()
