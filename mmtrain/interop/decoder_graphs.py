"""A decoder as two graphs: prefill reads the prompts, step writes on, a token a call.

What was read travels between the calls, a row's slots filled from the right: where each slot's
token stands in its row (-1: padding), then every layer's keys and values. A step gives all of it
back with a slot more.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.interop.graphs import Graph, Port
from mmtrain.models.answer_cache import rows_together
from mmtrain.models.decoder import Decoder
from mmtrain.models.decoder_config import DecoderConfig
from mmtrain.models.generate_answers import AnswerGenerator
from mmtrain.models.prefill import to_the_left
from mmtrain.nn import DecoderCache
from mmtrain.peft.prompts import prefix_layers

BATCH, LENGTH, SLOTS, PIECES = "batch", "length", "slots", "pieces"
"""The sizes that stay open: rows, tokens of the longest prompt, tokens read so far, pieces of all
images of dialogues."""
PAST = "past_"
"""Before the name of what a step is given back."""
IMAGE_TOKENS = "generate_image_tokens"
"""What the head that writes reads of images."""


class _GrowingLayer:
    """Keys and values of one layer by joining, so that nothing has a size beforehand."""

    def __init__(self, k_BKSH: Tensor, v_BKSH: Tensor) -> None:
        self.k_BKSH, self.v_BKSH = k_BKSH, v_BKSH

    def update(self, k_BTKH: Tensor, v_BTKH: Tensor) -> tuple[Tensor, Tensor]:
        """Append T tokens -> all so far, each [B, S, K, H]."""
        self.k_BKSH = torch.cat([self.k_BKSH, k_BTKH.transpose(1, 2)], dim=2)
        self.v_BKSH = torch.cat([self.v_BKSH, v_BTKH.transpose(1, 2)], dim=2)
        return self.k_BKSH.transpose(1, 2), self.v_BKSH.transpose(1, 2)


class _GrowingCache(DecoderCache):
    """A cache of such layers.

    Args:
        position_BS: of the slots so far, -1 for padding.
        layers: keys and values [B, K, S, H], of one layer after the other.
    """

    def __init__(self, position_BS: Tensor, layers: Sequence[Tensor]) -> None:
        self.growing = [_GrowingLayer(k, v) for k, v in zip(layers[::2], layers[1::2], strict=True)]
        super().__init__(self.growing, batch_size=1, max_length=1, device=position_BS.device)
        self.position_BS = position_BS
        self.length_B = (position_BS >= 0).sum(1)
        self.num_slots = position_BS.size(1)
        self.is_padded = True

    @property
    def positions(self) -> Tensor:
        """Positions of all slots [B, S], -1 for padding."""
        return self.position_BS

    def append(
        self,
        num_tokens: int,
        *,
        real_BT: Tensor | None = None,
        position_BT: Tensor | None = None,
    ) -> Tensor:
        """Take new slots -> positions of their tokens [B, T], 0 where they are padding."""
        if real_BT is None:
            assert num_tokens == 1, "a step"
            real_BT = torch.ones_like(self.length_B[:, None], dtype=torch.bool)
        if position_BT is None:
            position_BT = self.length_B[:, None] + real_BT.cumsum(1) - 1
        taken_BT = position_BT.masked_fill(~real_BT, -1)
        self.position_BS = torch.cat([self.position_BS, taken_BT], dim=1)
        self.num_slots = self.position_BS.size(1)
        self.length_B = self.length_B + real_BT.sum(1)
        return position_BT.masked_fill(~real_BT, 0)

    def tensors(self) -> list[Tensor]:
        """What the next call is given."""
        return [
            self.position_BS,
            *(x for layer in self.growing for x in (layer.k_BKSH, layer.v_BKSH)),
        ]


class PromptGraph(nn.Module):
    """int64 [B, T], padding behind, and lengths [B] -> logits [B, V] of the next token, and the
    cache."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Read prompts."""
        assert self.decoder.embed is not None
        return _read(self.decoder, self.decoder.embed.token(input_ids), lengths)

    def ports(self, example: tuple[Tensor, ...]) -> tuple[Port, ...]:
        """The inputs in order, of such sizes."""
        del example
        return _text_ports(self.decoder.config)


class QuestionGraph(nn.Module):
    """The same of questions, each behind its image's tokens [B, P, D]."""

    def __init__(self, generator: AnswerGenerator) -> None:
        super().__init__()
        self.generator = generator

    @property
    def decoder(self) -> Decoder:
        """What writes."""
        return self.generator.decoder

    def forward(
        self, image_tokens: Tensor, input_ids: Tensor, lengths: Tensor
    ) -> tuple[Tensor, ...]:
        """Read images and questions."""
        generator, decoder = self.generator, self.generator.decoder
        assert decoder.embed is not None
        prompt = generator.prompt
        is_prefix = prompt is not None and prompt.config.kind == "prefix"
        cache = _begun(decoder.config, image_tokens, prompt() if prompt and is_prefix else None)
        rows = rows_together(
            generator,
            image_tokens,
            decoder.embed.token(input_ids),
            lengths,
            num_before=cache.num_slots,
        )
        logits_B1V = decoder(**rows, cache=cache, num_logits=1)
        return logits_B1V[:, 0], *cache.tensors()

    def ports(self, example: tuple[Tensor, ...]) -> tuple[Port, ...]:
        """The inputs in order, of such sizes."""
        shape = example[0].shape[1:]
        image = Port(IMAGE_TOKENS, (BATCH, *shape))
        return image, *_text_ports(self.decoder.config, num_before=shape[0])


class DialogueGraph(nn.Module):
    """The same of texts among which images stand.

    Of all their pieces the tokens [N, P, D]; ids; which of the N * P tokens stands at each place
    [B, T], -1 for a text's; lengths.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, image_tokens: Tensor, input_ids: Tensor, image_places: Tensor, lengths: Tensor
    ) -> tuple[Tensor, ...]:
        """Read dialogues."""
        assert self.decoder.embed is not None
        image_BTD = F.embedding(image_places.clamp(min=0), image_tokens.flatten(0, 1))
        text_BTD = self.decoder.embed.token(input_ids)
        x_BTD = torch.where((image_places >= 0)[..., None], image_BTD, text_BTD)
        return _read(self.decoder, x_BTD, lengths)

    def ports(self, example: tuple[Tensor, ...]) -> tuple[Port, ...]:
        """The inputs in order, of such sizes."""
        ids, lengths = _text_ports(self.decoder.config)
        image = Port(IMAGE_TOKENS, (PIECES, *example[0].shape[1:]))
        return image, ids, Port("image_places", ids.dims), lengths


class StepGraph(nn.Module):
    """A token id of each row [B] and the cache -> logits [B, V] of the next one, and the cache."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, token_ids: Tensor, position_BS: Tensor, *layers: Tensor
    ) -> tuple[Tensor, ...]:
        """Write on."""
        cache = _GrowingCache(position_BS, layers)
        logits_B1V = self.decoder(token_ids[:, None], cache=cache)
        return logits_B1V[:, 0], *cache.tensors()


def _read(decoder: Decoder, x_BTD: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    """Rows with padding behind -> logits of the next token, and the cache."""
    x_BTD, real_BT, _ = to_the_left(x_BTD, lengths)
    cache = _begun(decoder.config, x_BTD, None)
    logits_B1V = decoder(x_BTD, real_BT=real_BT, cache=cache, num_logits=1)
    return logits_B1V[:, 0], *cache.tensors()


def _begun(config: DecoderConfig, x_BTD: Tensor, prefix_nF: Tensor | None) -> _GrowingCache:
    """A cache that holds a learned prefix, or nothing."""
    blocks, num_rows = config.transformer, x_BTD.size(0)
    if prefix_nF is None:
        empty = x_BTD.new_zeros(num_rows, blocks.kv_heads, 0, blocks.head_size)
        position_BS = torch.zeros(num_rows, 0, dtype=torch.int64, device=x_BTD.device)
        return _GrowingCache(position_BS, [empty] * (2 * blocks.num_layers))
    pairs = prefix_layers(prefix_nF, blocks)
    layers = [x.transpose(1, 2).expand(num_rows, -1, -1, -1) for pair in pairs for x in pair]
    place_n = torch.arange(prefix_nF.size(0), device=x_BTD.device)
    cache = _GrowingCache(place_n.expand(num_rows, -1), layers)
    if blocks.mask == "block":
        cache.append_segments(torch.zeros_like(cache.positions))
    return cache


Reader = PromptGraph | QuestionGraph | DialogueGraph


def prefill_graph(network: Reader, example: tuple[Tensor, ...]) -> Graph:
    """The graph that reads; it is traced with `example`."""
    config = network.decoder.config
    return Graph(
        name="prefill",
        told="the decoder",
        network=network,
        example=example,
        inputs=network.ports(example),
        outputs=(Port("logits", (BATCH, config.vocab_size)), *_cache_ports(config)),
    )


def step_graph(decoder: Decoder, given: Sequence[Tensor]) -> Graph:
    """The graph that writes on; `given` is what reading gave, for the trace."""
    config = decoder.config
    state = _cache_ports(config)
    return Graph(
        name="step",
        told="the decoder",
        network=StepGraph(decoder),
        example=(given[0].argmax(-1), *given[1:]),
        inputs=(
            Port("token_ids", (BATCH,)),
            *(Port(PAST + port.name, port.dims) for port in state),
        ),
        outputs=(
            Port("logits", (BATCH, config.vocab_size)),
            *(
                Port(port.name, tuple(f"{SLOTS} + 1" if d == SLOTS else d for d in port.dims))
                for port in state
            ),
        ),
    )


def _text_ports(config: DecoderConfig, *, num_before: int = 0) -> tuple[Port, Port]:
    """Ids, of as many as there is room for behind others, and lengths."""
    most = {LENGTH: config.context_length - num_before}
    return Port("input_ids", (BATCH, LENGTH), most=most), Port("lengths", (BATCH,))


def _cache_ports(config: DecoderConfig) -> tuple[Port, ...]:
    blocks = config.transformer
    shape = (BATCH, blocks.kv_heads, SLOTS, blocks.head_size)
    names = [f"{kind}_{layer}" for layer in range(blocks.num_layers) for kind in ("keys", "values")]
    return Port("positions", (BATCH, SLOTS)), *(Port(name, shape) for name in names)
