"""Adapters: few trainable parameters beside a frozen model."""

from mmtrain.peft.config import PeftConfig, PeftKind
from mmtrain.peft.freeze import count_parameters, freeze_all_but, resting
from mmtrain.peft.lora import (
    LoraDropout,
    LoraLinear,
    add_terms,
    apply_lora,
    lora_lengths,
    lora_terms,
    merge_lora,
    merged_tensors,
    unmerge_lora,
)
from mmtrain.peft.lora_config import LoraConfig
from mmtrain.peft.prompts import (
    LearnedTokens,
    PromptConfig,
    baked,
    fill_prefix,
    given_prefix,
    learned_tokens,
)

__all__ = [
    "LearnedTokens",
    "LoraConfig",
    "LoraDropout",
    "LoraLinear",
    "PeftConfig",
    "PeftKind",
    "PromptConfig",
    "add_terms",
    "apply_lora",
    "baked",
    "count_parameters",
    "fill_prefix",
    "freeze_all_but",
    "given_prefix",
    "learned_tokens",
    "lora_lengths",
    "lora_terms",
    "merge_lora",
    "merged_tensors",
    "resting",
    "unmerge_lora",
]
