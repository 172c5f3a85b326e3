"""Where a model looks, with learned tokens before the image's."""

import pytest
import torch

from mmtrain.eval.questions.looking import look_at
from mmtrain.nn import TransformerConfig
from mmtrain.peft.prompts import PromptConfig
from tests.eval.questions.answerers import drawn, make_answerer

ONE_LAYER = TransformerConfig(dim=32, num_layers=1, num_heads=1)
LEARNED = {
    "prompt": PromptConfig(num_tokens=3),
    "p_tuning": PromptConfig(kind="p_tuning", num_tokens=5, network="mlp", hidden_dim=8),
    "prefix": PromptConfig(kind="prefix", num_tokens=3),
}


@pytest.mark.parametrize("mask", ["causal", "prefix", "block"])
def test_learned_tokens_leave_the_map_where_it_was(mask: str) -> None:
    """One layer of one head reads the tokens as they were embedded and turns them by their
    distances: learned ones before all take a share, and the others' ratios stay."""
    image = drawn([1])
    plain = make_answerer(mask, core=ONE_LAYER)
    for kind, prompt in LEARNED.items():
        learned = make_answerer(mask, core=ONE_LAYER, prompt=prompt)
        state = learned.model.state_dict()
        draw = torch.Generator().manual_seed(2)
        for name, x in state.items():  # as first drawn, it looks everywhere alike
            if name.startswith("generate.") and x.ndim == 2:
                x.normal_(0.0, 0.3, generator=draw)
        plain.model.load_state_dict({n: x for n, x in state.items() if ".prompt." not in n})
        wanted, got = (look_at(one, image, "is it red?").grid for one in (plain, learned))
        assert wanted is not None and wanted.std() > 0.01
        torch.testing.assert_close(got, wanted, msg=lambda text, kind=kind: f"{kind}: {text}")
