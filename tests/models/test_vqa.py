"""VQA models: one encoding for an image's questions, nothing leaks, padding changes nothing."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmtrain.losses.answer import choice_loss, soft_targets, writing_loss
from mmtrain.models import Clip, ClipConfig, TextConfig, VisionConfig
from mmtrain.models.answer_cache import read_together
from mmtrain.models.classify_answers import ClassifyConfig
from mmtrain.models.connector import ConnectorConfig, shuffle_pixels
from mmtrain.models.fused import fused_vqa
from mmtrain.models.generate_answers import GenerateConfig
from mmtrain.models.vqa import Vqa, VqaConfig
from mmtrain.models.vqa_stage import Asked
from mmtrain.nn import Mask, TransformerBlock, TransformerConfig
from mmtrain.nn.front_door import FrontDoorBlock, FrontDoorConfig
from mmtrain.nn.fused import FusedTransformer
from mmtrain.peft.prompts import PromptConfig

CORE = TransformerConfig(dim=16, num_layers=2, num_heads=2)
MASKS = ("causal", "prefix", "block")


def build(mask: str = "block", connector: ConnectorConfig | None = None, **changes: object) -> Vqa:
    clip = ClipConfig(
        vision=VisionConfig(transformer=CORE, image_size=16, patch_size=4),
        text=TextConfig(transformer=replace(CORE, mask="causal"), vocab_size=30, context_length=8),
        embed_dim=16,
    )
    config = VqaConfig(
        connector=connector or ConnectorConfig(),
        front_door=FrontDoorConfig(entries=6),
        classify=ClassifyConfig(fusion=CORE, num_answers=5),
        generate=GenerateConfig(
            transformer=replace(CORE, mask=mask),  # pyright: ignore[reportArgumentType]
            vocab_size=30,
            text_length=12,
        ),
    )
    model = Vqa(clip, replace(config, **changes)).init_weights(0)
    towers = Clip(clip).init_weights(0)
    for mine, other in ((model.vision, towers.vision), (model.text, towers.text)):
        if mine is not None:
            state = other.state_dict().items()
            drawn = {k: v for k, v in state if not k.startswith("head.")}
            mine.load_state_dict(mine.state_dict() | drawn)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if hasattr(module, "fuse"):
            module.fuse.weight.data.normal_(0.0, 0.1, generator=generator)  # pyright: ignore
    return model.double().eval()


def images(num: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (num, 3, 16, 16), generator=generator, dtype=torch.uint8)


def asked(rows: list[tuple[list[int], list[int]]], width: int | None = None) -> Asked:
    longest = width or max(len(q) + len(a) for q, a in rows)
    tokens = [[*q, *a, *[0] * (longest - len(q) - len(a))] for q, a in rows]
    return Asked(
        tokens_QT=torch.tensor(tokens),
        question_length_Q=torch.tensor([len(q) for q, _ in rows]),
        length_Q=torch.tensor([len(q) + len(a) for q, a in rows]),
    )


def rows_of(model: Vqa, questions: Asked) -> tuple[Tensor, Tensor]:
    """What the decoder reads of each question's image, and of the question."""
    generator = model.generate
    assert generator is not None and generator.decoder.embed is not None
    image_BPD = generator.image_tokens(model.vision(images(2)))
    num_slots = questions.tokens_QT.size(0) // 2
    text_QTD = generator.decoder.embed.token(questions.tokens_QT)
    return image_BPD.repeat_interleave(num_slots, dim=0), text_QTD


ROWS = [([5, 6, 7], [8, 2]), ([9, 10], [11, 2]), ([5, 12, 13, 14], [2]), ([3], [4, 4, 2])]


@pytest.mark.parametrize("mask", MASKS)
def test_several_questions_of_an_image_are_answered_as_if_alone(mask: str):
    model = build(mask)
    together = model.logits(images(2), asked(ROWS))
    for row, (question, answer) in enumerate(ROWS):
        alone = model.logits(images(2)[row // 2 : row // 2 + 1], asked([(question, answer)]))
        length = len(question) + len(answer)
        torch.testing.assert_close(together.choice_QA[row], alone.choice_QA[0])  # pyright: ignore
        torch.testing.assert_close(
            together.next_QTV[row, :length],  # pyright: ignore[reportOptionalSubscript]
            alone.next_QTV[0],  # pyright: ignore[reportOptionalSubscript]
        )


@pytest.mark.parametrize("mask", MASKS)
def test_no_answer_token_reaches_an_earlier_logit(mask: str):
    model = build(mask)
    before = model.logits(images(2), asked(ROWS))
    changed = [(q, [*a[:-1], 20]) for q, a in ROWS]
    after = model.logits(images(2), asked(changed))
    torch.testing.assert_close(before.choice_QA, after.choice_QA, rtol=0, atol=0)
    assert before.next_QTV is not None and after.next_QTV is not None
    for row, (question, answer) in enumerate(ROWS):
        last = len(question) + len(answer) - 1
        torch.testing.assert_close(before.next_QTV[row, :last], after.next_QTV[row, :last])
        assert not torch.equal(before.next_QTV[row, last], after.next_QTV[row, last])


@pytest.mark.parametrize("mask", MASKS)
def test_padding_changes_nothing(mask: str):
    model = build(mask)
    narrow, wide = asked(ROWS), asked(ROWS, width=11)
    torch.testing.assert_close(
        model.logits(images(2), narrow).choice_QA, model.logits(images(2), wide).choice_QA
    )
    first, second = (model.logits(images(2), each).next_QTV for each in (narrow, wide))
    assert first is not None and second is not None
    for row, (question, answer) in enumerate(ROWS):
        real = len(question) + len(answer)
        torch.testing.assert_close(first[row, :real], second[row, :real])


@pytest.mark.parametrize("mask", MASKS)
def test_reading_into_the_cache_gives_the_logits_of_training(mask: str):
    model = build(mask)
    generator = model.generate
    assert generator is not None
    whole = model.logits(images(2), asked(ROWS)).next_QTV
    assert whole is not None
    questions = asked([(question, []) for question, _ in ROWS])
    with torch.no_grad():
        start = read_together(
            generator, *rows_of(model, questions), questions.question_length_Q, max_new_tokens=3
        )
        for row, (question, _) in enumerate(ROWS):
            torch.testing.assert_close(start.logits_BV[row], whole[row, len(question) - 1])
        # One answer token more, from the cache.
        first_Q1 = torch.tensor([[answer[0]] for _, answer in ROWS])
        next_QV = generator.decoder(first_Q1, cache=start.cache)[:, 0]
    for row, (question, answer) in enumerate(ROWS):
        if len(answer) > 1:
            torch.testing.assert_close(next_QV[row], whole[row, len(question)])


@pytest.mark.parametrize("prompt", [None, "prompt", "prefix"])
@pytest.mark.parametrize("mask", MASKS)
def test_fused_it_chooses_and_writes_the_same(mask: str, prompt: str | None):
    model = build(mask)
    if prompt is not None:
        generate = replace(
            model.config.generate,  # pyright: ignore[reportArgumentType]
            prompt=PromptConfig(kind=prompt, num_tokens=3),  # pyright: ignore[reportArgumentType]
        )
        model = build(mask, generate=generate)
    fused = fused_vqa(model)
    assert fused.generate is not None and model.generate is not None and fused.text is not None
    for part in (fused.vision, fused.text, fused.generate.decoder):
        assert isinstance(part.transformer, FusedTransformer)
    assert not isinstance(model.generate.decoder.transformer, FusedTransformer)
    questions = asked([(question, []) for question, _ in ROWS])
    with torch.no_grad():
        choices = [each.logits(images(2), questions).choice_QA for each in (model, fused)]
        said: list[Tensor] = []
        for each in (model, fused):
            assert each.generate is not None
            start = read_together(
                each.generate,
                *rows_of(each, questions),
                questions.question_length_Q,
                max_new_tokens=4,
            )
            steps = [start.logits_BV]
            for _ in range(3):
                best_Q1 = steps[-1].argmax(1)[:, None]
                steps.append(each.generate.decoder(best_Q1, cache=start.cache)[:, 0])
            said.append(torch.stack(steps))
    torch.testing.assert_close(*choices, rtol=0, atol=1e-12)
    torch.testing.assert_close(*said, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", MASKS)
def test_fused_in_bf16_it_is_as_near_as_autocast_is(mask: str):
    model = build(mask)
    questions = asked([(question, []) for question, _ in ROWS])

    def read(each: Vqa) -> Tensor:
        assert each.generate is not None
        length_Q = questions.question_length_Q
        start = read_together(each.generate, *rows_of(each, questions), length_Q, max_new_tokens=2)
        return start.logits_BV.double()

    with torch.no_grad():
        want = read(model)
        fused = fused_vqa(model.float(), dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            cast, ours = read(model), read(fused)
    assert 0 < (ours - want).abs().mean() < 1.3 * (cast - want).abs().mean()


def test_a_part_with_a_hook_is_not_fused():
    model = build()
    model.vision.transformer.blocks["0"].register_forward_hook(lambda *_: None)
    fused = fused_vqa(model)
    assert fused.vision is model.vision and fused.generate is not None
    assert isinstance(fused.generate.decoder.transformer, FusedTransformer)


WITHIN = FrontDoorConfig(entries=6, places=("image", "question", "vision"))


def test_a_front_door_that_is_added_changes_nothing():
    with_door = build(front_door=WITHIN)
    for module in with_door.modules():
        if hasattr(module, "fuse"):
            torch.nn.init.zeros_(module.fuse.weight)  # pyright: ignore
    without = build(front_door=None)
    without.load_state_dict(
        {k: v for k, v in with_door.state_dict().items() if "front_door" not in k}
    )
    for mine, other in zip(
        vars(with_door.logits(images(2), asked(ROWS))).values(),
        vars(without.logits(images(2), asked(ROWS))).values(),
        strict=True,
    ):
        assert torch.equal(mine, other)


def test_front_doors_in_the_tower_stand_behind_its_blocks():
    model, plain = build(front_door=WITHIN), build(front_door=None)
    own = dict(model.named_parameters())
    assert [name for name in own if "front_door" not in name] == [*dict(plain.named_parameters())]
    tower = model.vision
    assert tower.embed is not None
    x_BTD = tower.embed(images(2))
    for block in tower.transformer.blocks.values():
        assert isinstance(block, FrontDoorBlock)
        x_BTD = block.front_door(TransformerBlock.forward(block, x_BTD, mask=Mask()), Mask())
    assert torch.equal(model.vision(images(2)), x_BTD)
    # Inference fuses the other parts, and leaves out no door.
    fused = fused_vqa(model)
    assert fused.vision is tower and isinstance(fused.text.transformer, FusedTransformer)  # pyright: ignore


@pytest.mark.parametrize(
    ("connector", "tokens"),
    [
        (ConnectorConfig(kind="linear"), 16),
        (ConnectorConfig(kind="mlp"), 16),
        (ConnectorConfig(kind="pixel_shuffle", factor=2), 4),
        (ConnectorConfig(kind="queries", num_queries=3), 3),
    ],
)
def test_connectors(connector: ConnectorConfig, tokens: int):
    model = build(connector=connector)
    assert model.generate is not None
    image_BPD = model.generate.image_tokens(model.vision(images(2)))
    assert image_BPD.shape == (2, tokens, 16)
    assert model.generate.connector.num_tokens == tokens
    model.logits(images(2), asked(ROWS))


def test_pixel_shuffle_puts_neighbours_side_by_side():
    x_1PD = torch.arange(16.0).view(1, 16, 1)
    assert shuffle_pixels(x_1PD, 4, 2)[0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    with pytest.raises(ValueError, match="factor = 3"):
        build(connector=ConnectorConfig(kind="pixel_shuffle", factor=3))


def test_losses_by_their_formulas():
    logits_QA = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).double()
    ids, scores = torch.tensor([[1, 3], [2, -1]]), torch.tensor([[1.0, 0.3], [0.6, 9.0]])
    target = soft_targets(ids, scores, 4)
    assert target.tolist() == torch.tensor([[0, 1, 0, 0.3], [0, 0, 0.6, 0]]).tolist()
    p, t = logits_QA.sigmoid(), target.double()
    bce = -(t * p.log() + (1 - t) * (1 - p).log()).mean(1) * 4
    torch.testing.assert_close(choice_loss(logits_QA, target, kind="bce"), bce)
    ce = -(t / t.sum(1, keepdim=True) * logits_QA.softmax(1).log()).sum(1)
    torch.testing.assert_close(choice_loss(logits_QA, target, kind="ce"), ce)
    next_QTV = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(1)).double()
    tokens, mask = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[False, False, True, True]])
    log_p = next_QTV.log_softmax(-1)
    expected = -(log_p[0, 1, 3] + log_p[0, 2, 4])
    torch.testing.assert_close(writing_loss(next_QTV, tokens, mask)[0], expected)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ValueError, match="neither classify nor generate"):
        VqaConfig()
    with pytest.raises(ValueError, match="question"):
        VqaConfig(
            front_door=FrontDoorConfig(),
            generate=GenerateConfig(transformer=replace(CORE, mask="causal")),
        )
