"""What the page asks of a model: the nearest images of a text, the labels of an image, and where in
it a label is."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmtrain.data.images.decode import open_image
from mmtrain.data.images.transforms import eval_transform
from mmtrain.data.sample_error import SampleError
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.eval.encode import Encoder, encode_texts
from mmtrain.eval.look.attention_maps import ReadImage, has_maps, read_images, text_maps
from mmtrain.eval.samples import decode_sample
from mmtrain.models import Clip
from mmtrain.serve.guard import Refusal
from mmtrain.serve.index import ImageIndex
from mmtrain.serve.kept import KeptImages, refusing

_MAX_TEXTS_KEPT = 8192


class Answers:
    """One model and one index of images, asked by any number of threads, one at a time: so what an
    image takes in memory is taken once, and PyTorch's own threads are not multiplied.

    Args:
        model: in eval mode.
        encoder: how to run it.
        name: what the page calls the model; no path.
        index: what can be searched; None: nothing.
    """

    def __init__(self, model: Clip, encoder: Encoder, *, name: str, index: ImageIndex | None):
        self._model, self._encoder, self._index = model, encoder, index
        self._transform = eval_transform(encoder.preprocess)
        self._name = name
        self._lock = threading.Lock()
        self._images: KeptImages[ReadImage] = KeptImages()
        self._texts: OrderedDict[str, Tensor] = OrderedDict()

    def about(self) -> dict[str, Any]:
        """What the page says of the model and of the index."""
        return {
            "name": self._name,
            "num_parameters": sum(x.numel() for x in self._model.parameters()),
            "image_size": self._encoder.preprocess.image_size,
            "num_images": 0 if self._index is None else self._index.num_images,
        }

    def search(self, text: str, count: int) -> list[dict[str, Any]]:
        """The images nearest to a text: number, cosine and caption of each, the nearest first."""
        with self._lock, refusing("the text"):
            index = self._needed_index()
            return self._found(index, self._text_features([text])[0], count)

    def similar(self, image_id: str, count: int) -> list[dict[str, Any]]:
        """The images nearest to an image that was added."""
        with self._lock:
            index = self._needed_index()
            return self._found(index, self._images[image_id].read.feature_BE[0], count)

    def thumbnail(self, number: int) -> bytes:
        """A small WebP of an image of the index."""
        with self._lock, refusing(f"picture {number}"):
            return self._index_with(number).thumbnail(number)

    def add_image(self, data: bytes) -> dict[str, Any]:
        """Take in an image file; what the page needs to ask about it.

        Raises:
            Refusal: it is no image of a kind that we read, damaged or too large.
        """
        with self._lock, refusing("the image"):
            return self._add(open_image(data, upright=True))

    def add_picture(self, number: int) -> dict[str, Any]:
        """Take in an image of the index, with the pixels that its features came from."""
        with self._lock, refusing(f"picture {number}"):
            return self._add(decode_sample(self._index_with(number).members(number)))

    def picture(self, image_id: str) -> bytes:
        """An added image as the page shows it, WebP."""
        with self._lock:
            return self._images[image_id].picture

    def classify(self, image_id: str, labels: Sequence[str], prompt: str) -> dict[str, Any]:
        """The probability of each label, the likeliest first.

        With a bias of the logits, as in SigLIP, each label has a probability of its own (Zhai et
        al. 2023, arXiv:2303.15343, Eq. 1); else they share 1 (arXiv:2103.00020, Sec. 3.1).

        Args:
            image_id: an added image.
            labels: no two the same.
            prompt: `{}` in it stands for the label.

        Raises:
            Refusal: there is no such image, a label has no words that the model reads, or it
                cannot tell two of them apart, which would then share what one has.
        """
        with self._lock, refusing("the labels"):
            image = self._images[image_id]
            texts = [prompt.replace("{}", label) for label in labels]
            _refuse_unread(self._encoder.tokenizer, labels)
            _refuse_same(self._encoder.tokenizer, labels, texts)
            text_ME = self._text_features(texts)
            cosine_M = (text_ME @ image.read.feature_BE[0]).double()
            logit_M = cosine_M * self._model.logit_scale.detach().double().exp()
            bias = self._model.logit_bias
            if bias is None:
                probability_M = logit_M.softmax(0)
            else:
                probability_M = (logit_M + bias.detach().double()).sigmoid()
            order = logit_M.argsort(descending=True, stable=True).tolist()
            rows = zip(probability_M.tolist(), cosine_M.tolist(), strict=True)
            told = [
                {"label": label, "probability": probability, "cosine": cosine}
                for label, (probability, cosine) in zip(labels, rows, strict=True)
            ]
            return {"independent": bias is not None, "labels": [told[place] for place in order]}

    def heat_map(self, image_id: str, text: str) -> list[list[float]]:
        """What each patch of an added image adds to its cosine with a text, by rows."""
        with self._lock, refusing("the text"):
            image = self._images[image_id]
            text_1E = self._text_features([text])
            if not has_maps(self._model):
                raise Refusal("this model's image tower has no patches that a map could be of")
            return text_maps(self._model, image.read, text_1E)[0].tolist()

    def _add(self, image: Image.Image) -> dict[str, Any]:
        """Take in a decoded image; forget the one that was not asked about for longest."""
        try:
            pixels_1CHW = self._transform(image)[None]
        except ValueError as error:
            raise SampleError("image too elongated") from error
        read = read_images(self._model, pixels_1CHW.to(self._encoder.device))
        if not bool(read.feature_BE.isfinite().all()):
            raise UsageError("the model's features are not finite: its weights overflow")
        return self._images.add(image, read, region=self._transform.seen_region(*image.size))

    def _needed_index(self) -> ImageIndex:
        if self._index is None:
            raise Refusal("there are no images to search; start with --index SHARDS", status=404)
        return self._index

    def _index_with(self, number: int) -> ImageIndex:
        index = self._needed_index()
        if not 0 <= number < index.num_images:
            raise Refusal(f"there is no picture {number}", status=404)
        return index

    def _found(self, index: ImageIndex, query_E: Tensor, count: int) -> list[dict[str, Any]]:
        return [
            {"number": number, "cosine": cosine, "caption": index.caption(number)}
            for number, cosine in index.nearest(query_E, count)
        ]

    def _text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm features [M, E]; kept, since labels are asked about again and again."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            _refuse_unread(self._encoder.tokenizer, new)
            self._texts.update(zip(new, encode_texts(self._encoder, new), strict=True))
        features_ME = torch.stack([self._texts[text] for text in texts])
        while len(self._texts) > _MAX_TEXTS_KEPT:
            self._texts.popitem(last=False)
        return features_ME


def _refuse_unread(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    for text in texts:
        if not tokenizer.reply_ids(text):
            raise Refusal(f"{text!r} has no words that the model reads; write another")


def _refuse_same(tokenizer: Tokenizer, labels: Sequence[str], texts: Sequence[str]) -> None:
    """Labels that come to the same tokens: by their letters' case, or where they are cut."""
    seen: dict[tuple[int, ...], str] = {}
    for label, text in zip(labels, texts, strict=True):
        other = seen.setdefault(tuple(tokenizer.turn_ids(text)), label)
        if other != label:
            raise Refusal(
                f"the labels {other[:40]!r} and {label[:40]!r} are the same to the model, which "
                f"reads {tokenizer.context_length} tokens of a text; leave one away"
            )
