"""Whether a tokenizer is that of the text tower beside it: else features are wrong in silence."""

import torch

from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.interop.tokenizer_differences import PROBES
from mmtrain.models import TextConfig
from mmtrain.models.text import text_length
from mmtrain.models.trunks.config import TransformersTrunk

_PLAIN = PROBES["plain words"]
_TEXTS = [text for kind, text in PROBES.items() if kind != "spelled special tokens"]
_END_KEYS = "eos_token_id of Hugging Face's config, eos_id of open_clip's, end_token_id of ours"


def refuse_unfit_tokenizer(text: TextConfig, tokenizer: Tokenizer, *, source: str) -> None:
    """Encode some texts, and refuse a tower that would look for them where they are not.

    Args:
        text: the tower.
        tokenizer: beside it.
        source: where both came from, for messages.

    Raises:
        UsageError: an id has no embedding, a text has more tokens than positions, it is padded with
            what the tower takes for text, or is pooled elsewhere than at its end.
    """
    if told := _unfit(text, tokenizer):
        raise UsageError(f"{source}: {told}")


def _unfit(text: TextConfig, tokenizer: Tokenizer) -> str:
    if tokenizer.vocab_size > text.vocab_size:
        return (
            f"the tokenizer has {tokenizer.vocab_size} ids, but the model's vocab_size = "
            f"{text.vocab_size}; put the model's own tokenizer there"
        )
    num_tokens = tokenizer.context_length + text.num_context
    is_short = num_tokens < text.context_length and not text.cuts_padding
    if num_tokens > text.context_length or (is_short and text.trunk is None):
        learned = f" and the model adds {text.num_context}" if text.num_context else ""
        return (
            f"the tokenizer's texts have {tokenizer.context_length} tokens{learned}, but the "
            f"model's context_length = {text.context_length}; correct the tokenizer's"
        )
    if text.trunk is not None:
        return _unfit_padding(text.trunk, tokenizer)
    if text.pool == "end" or text.cuts_padding:
        return _unfit_ends(text, tokenizer)
    return ""


def _unfit_padding(trunk: TransformersTrunk, tokenizer: Tokenizer) -> str:
    from mmtrain.models.trunks.transformers_network import padding_of

    if (pad_id := padding_of(trunk)) in (None, tokenizer.pad_id):
        return ""
    return (
        f"the tokenizer fills texts with {tokenizer.pad_id}, which {trunk.name} takes for text: "
        f"its padding is {pad_id}; correct pad_token in tokenizer_config.json"
    )


def _unfit_ends(text: TextConfig, tokenizer: Tokenizer) -> str:
    """What is wrong where a text's end is looked for by its ids; empty: nothing."""
    probes = [*_TEXTS, " ".join([_PLAIN] * tokenizer.context_length)]
    tokens_BT, (ids_BT, length_B) = tokenizer(probes), tokenizer.encode(probes)
    end = text.end_token_id
    wrong_B = text_length(tokens_BT, end) != length_B
    if not bool(wrong_B.any()):
        return ""
    at = "" if tokenizer.eot_id is None else f": the tokenizer's end token is {tokenizer.eot_id}"
    remedy = f"correct the model's end token ({_END_KEYS}){at}"
    own_BT = torch.arange(ids_BT.size(1)) < length_B[:, None]
    if end is not None and not bool((own_BT & (ids_BT == end)).any()):
        return f"texts are pooled at the token {end}, which the tokenizer never writes; {remedy}"
    row = int(wrong_B.int().argmax())
    place, length = int(text_length(tokens_BT, end)[row]), int(length_B[row])
    pooled = "the largest id of a text" if end is None else f"the token {end}"
    return (
        f"texts are pooled at {pooled}, which in {probes[row][:40]!r} is token {place} and not the "
        f"last of its {length}; {remedy}"
    )
