"""The shared transformer core: single device, imports torch only.

Tensors carry a suffix that names their dims. One legend for the whole project; suffixes name
*logical* sizes, so they stay true when a dim is sharded:

    B batch        T query tokens   S key tokens    D width        N query heads   K key heads
    H head size    F feed-forward   P patches       C channels     E shared embedding
    L layers       V vocabulary     M dictionary entries           G query heads per key head
"""

from mmtrain.nn.attention import Attention, attend
from mmtrain.nn.block import TransformerBlock
from mmtrain.nn.config import TransformerConfig
from mmtrain.nn.feed_forward import FeedForward
from mmtrain.nn.host import HostLengths, Ragged, sent
from mmtrain.nn.kv_cache import DecoderCache, GivenKV, KVCache
from mmtrain.nn.masks import Mask
from mmtrain.nn.norm import build_norm, unit_norm
from mmtrain.nn.pooling import AttentionPool, pool_tokens
from mmtrain.nn.rope import apply_rope, rope_1d, rope_2d
from mmtrain.nn.transformer import Transformer

__all__ = [
    "Attention",
    "AttentionPool",
    "DecoderCache",
    "FeedForward",
    "GivenKV",
    "HostLengths",
    "KVCache",
    "Mask",
    "Ragged",
    "Transformer",
    "TransformerBlock",
    "TransformerConfig",
    "apply_rope",
    "attend",
    "build_norm",
    "pool_tokens",
    "rope_1d",
    "rope_2d",
    "sent",
    "unit_norm",
]
