"""mmtrain as a model of lmms-eval: its tasks and its runner, our models that answer.

    python tools/lmms_eval_mmtrain.py --model mmtrain --model_args model=runs/vqa_decoder \
        --tasks pope,mmstar --output_path out

Run this file in the place of `python -m lmms_eval`, with all of that program's words: it adds the
model `mmtrain` to lmms-eval's (0.7) and hands over. A package of one's own may name `MANIFEST` as
an entry point of the group `lmms_eval.models` instead. `--model_args`: model=FOLDER (a run or an
export), head=classify or generate, precision, device.

Requests are answered one by one, so that nothing else in a batch changes a bit. Answers are written
greedily; a task that wants sampling, beams or several images to a question is refused. A request
without an image is asked with a black one.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from lmms_eval.api.instance import GenerationResult  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]
from PIL import Image

from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.questions.asking import answer_texts
from mmtrain.eval.questions.choosing import Likelihood, likelihoods
from mmtrain.eval.questions.seeing import Seen, see
from mmtrain.loading.vqa import load_vqa
from mmtrain.models.vqa import Head
from mmtrain.parallel.mesh import ParallelConfig, build_layout, pick_device
from mmtrain.parallel.precision import Precision

MANIFEST = ModelManifest(model_id="mmtrain", simple_class_path="lmms_eval_mmtrain.Mmtrain")
"""What lmms-eval is told of the model."""
_BLACK = (64, 64)


class Mmtrain(lmms):
    """A model of ours that answers questions.

    Args:
        model: a run's folder or an export.
        head: classify or generate. None: what the model has, classify first.
        precision: number format of the forward passes.
        device: such as cuda; auto: what there is.
        batch_size: requests are answered one by one; another number is refused.

    Raises:
        ValueError: a setting that cannot be honoured.
    """

    def __init__(
        self,
        model: str,
        head: Head | None = None,
        precision: Precision = "fp32",
        device: str = "auto",
        batch_size: int | str = 1,
        **others: Any,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("head", head, (None, *get_args(Head))),
            ("precision", precision, get_args(Precision)),
            ("batch_size", str(batch_size), ("1",)),
        ):
            if value not in known:
                raise ValueError(f"{name} = {value} cannot be had; use one of {known}")
        if unknown := {name: value for name, value in others.items() if name != "max_batch_size"}:
            raise ValueError(f"model_args: {', '.join(unknown)} are unknown; leave them out")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("mmtrain answers in one process; start lmms-eval in one")
        layout = build_layout(ParallelConfig(), pick_device(device, key="device"))
        saved = load_vqa(Path(model), device=layout.device)
        self._answerer = Answerer(
            model=saved.model,
            tokenizer=saved.tokenizer,
            preprocess=saved.preprocess,
            vocabulary=saved.vocabulary,
            answer_length=saved.answer_length,
            head=head,
            device=layout.device,
            precision=precision,
        )
        self._shorter: dict[int, Answerer] = {}

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer to each, cut before the first of the task's `until`."""
        answers = []
        for request in requests:
            context, options, to_visual, doc_id, task, split = request.args
            answerer = self._limited(_tokens(options))
            seen = self._see(to_visual(self.task_dict[task][split][doc_id]))
            (reply,) = answer_texts(answerer, seen, [(0, context)])
            answers.append(_before(reply.answer, options.get("until", [])))
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """The mean negative log-likelihood of each continuation's tokens and end token, and whether
        it would be written.

        Negative and a mean, as the models have it that lmms-eval brings: its runner takes the
        *smallest* of a question's for the answer, whatever the method's name says.
        """
        found = []
        for request in requests:
            context, target, to_visual, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            text = target if isinstance(target, str) else target(doc)
            one = self._likelihood(context, text, self._see(to_visual(doc)))
            # The runner (0.7.3) makes a text of a bare pair, and then cannot take it apart.
            found.append(GenerationResult((-one.log_prob / one.num_tokens, one.is_greedy)))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused: a question stands by itself."""
        raise NotImplementedError("mmtrain answers one question at a time, not rounds of them")

    def _likelihood(self, context: str, text: str, seen: Seen) -> Likelihood:
        answerer = self._limited(None)
        if answerer.chosen_head != "generate":
            raise ValueError("likelihoods need head=generate, and the model chooses")
        tokenizer = answerer.tokenizer
        if tokenizer.is_cut(text):
            raise ValueError(f"{text[:40]!r} is longer than any text of the model")
        assert tokenizer.eot_id is not None, "a model that writes has one"
        ids = [*tokenizer.reply_ids(text.strip()), tokenizer.eot_id]

        return likelihoods(answerer, seen, context, [ids])[0]

    def _see(self, visuals: Sequence[Any] | None) -> Seen:
        """A request's only image."""
        images = [one for one in visuals or [] if one is not None]
        if len(images) > 1:
            raise ValueError(f"a question has {len(images)} images, and the model sees one")
        image = images[0] if images else Image.new("RGB", _BLACK)
        if not isinstance(image, Image.Image):
            raise ValueError(f"a {type(image).__name__} is no image, and the model sees no other")
        return see(self._answerer, image.convert("RGB"))

    def _limited(self, length: int | None) -> Answerer:
        """The model that writes so many tokens at most, and no more than it was trained to."""
        most = self._answerer.answer_length
        length = most if length is None else min(length, most)
        if length not in self._shorter:
            self._shorter[length] = replace(self._answerer, answer_length=length)
        return self._shorter[length]


def _tokens(options: dict[str, Any]) -> int | None:
    """How many tokens a task wants at most; refuses what greedy writing cannot be."""
    for name, plain in (("temperature", (None, 0)), ("do_sample", (None, False))):
        if options.get(name) not in plain:
            raise ValueError(f"{name} = {options[name]}: mmtrain writes greedily; set it to 0")
    if options.get("num_beams") not in (None, 1):
        raise ValueError(f"num_beams = {options['num_beams']}: mmtrain has no beams; set it to 1")
    return options.get("max_new_tokens")


def _before(answer: str, until: str | Sequence[str]) -> str:
    """The answer up to the first of the texts that end it."""
    for end in [until] if isinstance(until, str) else until:
        answer = answer.partition(end)[0] if end else answer
    return answer


def main() -> None:
    """lmms-eval's own program, which knows the model."""
    from lmms_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]
    from lmms_eval.models import MODEL_REGISTRY_V2  # pyright: ignore[reportMissingImports]

    MODEL_REGISTRY_V2.register_manifest(MANIFEST)
    cli_evaluate()


if __name__ == "__main__":
    main()
