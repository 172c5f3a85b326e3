"""Writing an answer: the image's tokens begin the decoder's text, question and answer follow."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.limits import check_counts
from mmtrain.models.connector import Connector, ConnectorConfig
from mmtrain.models.decoder import Decoder, real_tokens
from mmtrain.models.decoder_config import DecoderConfig
from mmtrain.models.slices import shallow_copy, slice_tower
from mmtrain.models.vision import VisionConfig
from mmtrain.nn import DecoderCache, Mask, TransformerConfig
from mmtrain.nn.front_door import FrontDoor, FrontDoorConfig
from mmtrain.nn.rope import RopeScaling
from mmtrain.peft.prompts import PromptConfig, given_prefix, learned_tokens


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """A decoder that answers. Its mask says what image and question see:

    causal: every token those before it. prefix: image and question see each other wholly, the
    answer all before it. block: the image sees itself wholly and no question, so that its keys
    serve all its questions; a question sees the image and itself causally.
    """

    transformer: TransformerConfig
    """The decoder's blocks; transformer.mask as above."""
    vocab_size: int | None = None
    """Entries of the token embedding. None: the tokenizer's."""
    text_length: int | None = None
    """Tokens of question and answer at most. None: the tokenizer's context and an answer."""
    context_length: int | None = None
    """Tokens of image, question and answer at most. None: as many as they can be."""
    learned_positions: bool = False
    """Learned positions instead of rotary ones."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """How they are slowed down for long texts. None: they are not."""
    local_rope_theta: float | None = None
    """Base of the local layers' frequencies, which are never slowed down. None: the others'."""
    embed_scale: bool = False
    """Multiply token vectors by sqrt(dim), as Gemma; images' are not."""
    final_norm: bool = True
    """A norm before the head; GPT-1 has none."""
    tied_head: bool = True
    """The logits' matrix is the token embedding."""
    logit_cap: float | None = None
    """Logits z become cap * tanh(z / cap) (arXiv:2408.00118). None: off."""
    prompt: PromptConfig | None = None
    """Learned tokens before the image's; [peft] sets it. None: there are none."""
    reads: Literal["questions", "dialogues"] = "questions"
    """questions: an image, a question, its answer. dialogues: turns, with images where they are
    shown, the lengths those of all; [vqa.dialogues] sets it."""

    def __post_init__(self) -> None:
        check_counts(self, "vocab_size", "text_length", "context_length", most=1 << 30)
        self.transformer.check_blocks()
        if self.prompt is not None and self.learned_positions:
            raise ValueError(
                "prompt: learned tokens shift the text, for which learned_positions leaves no "
                'room; use learned_positions = false, or an adapter of kind "lora"'
            )
        if self.transformer.mask == "full":
            raise ValueError(
                'transformer.mask = "full" shows the answer; use causal, prefix, block'
            )
        if self.reads == "dialogues":
            self._check_dialogues()

    def _check_dialogues(self) -> None:
        if self.transformer.mask != "causal":
            raise ValueError(
                f'transformer.mask = "{self.transformer.mask}" is of one question after its image, '
                'and a dialogue has several turns; use "causal"'
            )
        if self.prompt is not None:
            raise ValueError(
                "prompt: learned tokens stand before one question's image, and a dialogue's "
                'images stand within its turns; use an adapter of kind "lora"'
            )

    def decoder(self, num_before: int) -> DecoderConfig:
        """The decoder's shape.

        Args:
            num_before: tokens before the text: learned ones and the image's.

        Raises:
            ValueError: `context_length` is too short for them and the text.
        """
        assert self.vocab_size is not None, "the tokenizer gives the vocabulary"
        assert self.text_length is not None, "the tokenizer gives the length"
        needed = self.text_length + (0 if self.reads == "dialogues" else num_before)
        is_short = self.context_length is not None and self.context_length < needed
        if is_short and self.reads == "dialogues":
            raise ValueError(
                f"generate.context_length = {self.context_length} holds no dialogue of {needed} "
                "tokens; lower vqa.dialogues.max_length"
            )
        if is_short:
            raise ValueError(
                f"generate.context_length = {self.context_length} holds no {num_before} tokens "
                f"of an image and {self.text_length} of question and answer; shorten "
                "tokenizer.context_length, or make fewer tokens of an image by vqa.connector"
            )
        return DecoderConfig(
            transformer=self.transformer,
            vocab_size=self.vocab_size,
            context_length=self.context_length or needed,
            positions="learned" if self.learned_positions else "rope",
            rope_theta=self.rope_theta,
            rope_scaling=self.rope_scaling,
            local_rope_theta=self.local_rope_theta,
            embed_scale=self.embed_scale,
            final_norm=self.final_norm,
            tied_head=self.tied_head,
            logit_cap=self.logit_cap,
        )


class AnswerGenerator(nn.Module):
    """connector -> front door -> decoder over image, question and answer.

    A pipeline stage holds None for what another stage has.
    """

    connector: Connector | None

    def __init__(
        self,
        config: GenerateConfig,
        *,
        vision: VisionConfig,
        connector: ConnectorConfig,
        front_door: FrontDoorConfig | None,
    ) -> None:
        super().__init__()
        blocks = config.transformer
        self.connector = connected = Connector(connector, vision, dim=blocks.dim)
        self.front_door = (
            FrontDoor(front_door, dim=blocks.dim, num_heads=blocks.num_heads)
            if front_door is not None and "image" in front_door.places
            else None
        )
        prompt = config.prompt
        self.prompt = None if prompt is None else learned_tokens(prompt, blocks)
        num_learned = 0 if prompt is None else prompt.num_tokens
        self.decoder = Decoder(config.decoder(num_learned + connected.num_tokens))

    def slice(self, index: int, num_stages: int) -> "AnswerGenerator":
        """Stage `index` of it, over the same parts."""
        part = shallow_copy(self)
        part.decoder = slice_tower(self.decoder, index, num_stages)
        if index > 0:
            part.connector = part.front_door = None
        return part

    @property
    def num_learned(self) -> int:
        """Learned tokens that stand before an image's in a row; those of a prefix are none."""
        prompt = self.prompt
        return 0 if prompt is None or prompt.config.kind == "prefix" else prompt.config.num_tokens

    def image_tokens(self, image_BTD: Tensor) -> Tensor:
        """The vision tower's tokens -> those that begin the decoder's text, [B, P, D], learned
        ones before the image's."""
        assert self.connector is not None
        image_BPD = self.connector(image_BTD)
        if self.front_door is not None:
            image_BPD = self.front_door(image_BPD, Mask())
        if self.prompt is None or self.prompt.config.kind == "prefix":
            return image_BPD
        learned_BnD = self.prompt().expand(image_BPD.size(0), -1, -1)
        return torch.cat([learned_BnD.to(image_BPD.dtype), image_BPD], dim=1)

    def _prefix(self, *, batch_size: int, num_tokens: int) -> DecoderCache | None:
        """Learned keys and values of every layer, as the cache that a text of training follows."""
        if self.prompt is None or self.prompt.config.kind != "prefix":
            return None
        blocks = self.decoder.config.transformer
        cache = given_prefix(self.prompt(), blocks, batch_size=batch_size, num_tokens=num_tokens)
        if blocks.mask == "block":
            cache.append_segments(torch.zeros_like(cache.positions))
        return cache

    def forward(
        self,
        x: Tensor,
        tokens_QT: Tensor,
        question_length_Q: Tensor,
        length_Q: Tensor,
        *,
        tied_VD: Tensor | None = None,
    ) -> Tensor:
        """The vision tower's tokens (or the decoder's from the stage before) -> next-token logits
        [Q, T, V] of the text, those at t being of the token at t + 1 (or the decoder's tokens).

        `tied_VD` is as the decoder takes it.
        """
        x = x if self.connector is None else self._rows(x, tokens_QT)
        if self.decoder.config.transformer.mask == "block":
            return self._in_one_row(x, tokens_QT, length_Q, tied_VD)
        num_tokens = tokens_QT.size(1)
        num_patches = x.size(1) - num_tokens
        cache = self._prefix(batch_size=x.size(0), num_tokens=x.size(1))
        seen_Q = num_patches + question_length_Q + (0 if cache is None else cache.num_slots)
        blocks = self.decoder.config.transformer
        prefix = blocks.mask == "prefix"
        return self.decoder(
            x,
            real_BT=real_tokens(blocks, num_patches + length_Q, x.size(1)),
            prefix_length_B=seen_Q if prefix else None,
            cache=cache,
            num_logits=num_tokens,
            tied_VD=tied_VD,
        )

    def _rows(self, image_BTD: Tensor, tokens_QT: Tensor) -> Tensor:
        """What the decoder reads: under `block` all questions of an image behind it, [B, S, D];
        else each question behind its image, [Q, S, D]."""
        assert self.decoder.embed is not None
        image_BPD = self.image_tokens(image_BTD)
        text_QTD = self.decoder.embed.token(tokens_QT)
        num_images, num_slots = image_BPD.size(0), text_QTD.size(0) // image_BPD.size(0)
        if self.decoder.config.transformer.mask == "block":
            text_BSD = text_QTD.reshape(num_images, num_slots * tokens_QT.size(1), -1)
            return torch.cat([image_BPD, text_BSD], dim=1)
        return torch.cat([image_BPD.repeat_interleave(num_slots, dim=0), text_QTD], dim=1)

    def _in_one_row(
        self, x_BSD: Tensor, tokens_QT: Tensor, length_Q: Tensor, tied_VD: Tensor | None
    ) -> Tensor:
        """All questions of an image behind it, none seeing another."""
        num_images, (num_questions, num_tokens) = x_BSD.size(0), tokens_QT.shape
        num_slots = num_questions // num_images
        num_patches = x_BSD.size(1) - num_slots * num_tokens
        place_T = torch.arange(num_tokens, device=x_BSD.device)
        slot_Q1 = torch.arange(num_slots, device=x_BSD.device).repeat(num_images)[:, None] + 1
        segment_QT = torch.where(place_T < length_Q[:, None], slot_Q1, -1)
        segment_BS = F.pad(segment_QT.reshape(num_images, -1), (num_patches, 0), value=0)
        out = self.decoder(
            x_BSD,
            segment_BT=segment_BS,
            cache=self._prefix(batch_size=num_images, num_tokens=segment_BS.size(1)),
            num_logits=num_slots * num_tokens,
            tied_VD=tied_VD,
        )
        if self.decoder.head is None:
            return out
        return out.reshape(num_questions, num_tokens, -1)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights by the parts' own tables."""
        assert self.connector is not None, "a slice cannot be initialised"
        self.connector.init_weights(generator)
        self.decoder.init_weights(generator)
        if self.front_door is not None:
            self.front_door.init_weights(generator)
        if self.prompt is not None:
            self.prompt.init_weights(generator)
