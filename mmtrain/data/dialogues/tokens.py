"""A dialogue to tokens: where images stand, and what of it is learnt."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from mmtrain.data.dialogues.config import DialogueDataConfig
from mmtrain.data.dialogues.dialogue import IMAGE, Turn, with_first
from mmtrain.data.sample_error import SampleError
from mmtrain.data.text.said import SaidToken
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.limits import MOST

_ANSWER = "yes"
"""An answer, for the tokens before it."""

TOO_LONG = "dialogue too long"
"""Why one whose last question alone does not fit cannot be used."""


@dataclass(frozen=True, kw_only=True)
class DialogueTokens:
    """The tokens of one dialogue, its images' in their places."""

    ids: tuple[int, ...]
    """The pad token where an image's stand."""
    image: tuple[bool, ...]
    """Where images' tokens stand."""
    trained: tuple[bool, ...]
    """What is learnt: the assistant's words, and the end of what it says."""
    num_left_out: int = 0
    """Turns that were left out, so that the others fit."""


class DialogueText:
    """Turns dialogues into tokens.

    With a chat template they are those of the whole conversation as the template renders it.
    Without one the turns stand one after another behind a single start token: what is asked with
    the end token where questions have one, what is answered as a further word with the end token.

    Args:
        tokenizer: the model's.
        config: how long a dialogue may be.
        tokens_per_piece: tokens that an image's piece becomes.

    Raises:
        UsageError: an image alone is too long, the tokenizer has no end token, or the chat template
            hides what the assistant says.
    """

    def __init__(
        self, tokenizer: Tokenizer, config: DialogueDataConfig, *, tokens_per_piece: int
    ) -> None:
        most = config.max_length
        if tokens_per_piece >= most:
            raise UsageError(
                f"vqa.dialogues.max_length = {most} holds no image, which is {tokens_per_piece} "
                "tokens, and a word; raise it, or make fewer tokens of an image by vqa.connector"
            )
        if tokenizer.eot_id is None:
            raise UsageError("tokenizer: an answer needs an end token, which the model has not")
        self._end: int = tokenizer.eot_id
        self._tokenizer = tokenizer.at_length(MOST)  # so that it cuts nothing
        self._config, self.tokens_per_piece = config, tokens_per_piece
        self._refuse_endless()

    def ask(
        self, question: str, pieces: Sequence[int], *, earlier: Sequence[Turn] = ()
    ) -> DialogueTokens:
        """The tokens of a question up to where its answer begins; images come first of all.

        Args:
            question: what the user says.
            pieces: of each image.
            earlier: questions and answers before it.

        Raises:
            SampleError: the chat template refuses it, it has places of images of its own, or no
                word of it is left behind an earlier answer.
        """
        if any(IMAGE in text for text in (question, *(turn.text for turn in earlier))):
            raise SampleError(f"{IMAGE} stands for an image, which is shown already")
        if earlier and not self._tokenizer.reply_ids(question):
            raise SampleError("it has no words that the model reads")
        asked = with_first((*earlier, Turn("user", question)), IMAGE * len(pieces))
        found = self._tokens((*asked, Turn("assistant", _ANSWER)), len(pieces))
        end = max(number for number, one in enumerate(found) if one.is_said)
        while end and found[end - 1].is_said:
            end -= 1
        return self._spread(found[:end], pieces)

    def encode(self, turns: Sequence[Turn], pieces: Sequence[int]) -> DialogueTokens:
        """The tokens of a dialogue.

        Args:
            turns: with a place for each image.
            pieces: of each image.

        Raises:
            SampleError: it is too long, or the chat template refuses it.
        """
        taken = tuple(turns)
        found = self._tokens(taken, len(pieces))
        most, image_length = self._config.max_length, self.tokens_per_piece * sum(pieces)

        def length(tokens: list[SaidToken]) -> int:
            return len(tokens) - len(pieces) + image_length

        full = length(found)
        if full > most and self._config.too_long == "shorten":
            shorter = [_without(taken, first) for first in _firsts(taken)]
            fits = bisect_left(
                shorter, True, key=lambda left: length(self._tokens(left, len(pieces))) <= most
            )
            if fits < len(shorter):
                taken = shorter[fits]
                found = self._tokens(taken, len(pieces))
        if length(found) > most:
            told = f"{full:,} tokens, {image_length:,} of them its images', of at most {most:,}"
            raise SampleError(TOO_LONG, detail=told)
        return self._laid_out(found, pieces, num_left_out=len(turns) - len(taken))

    def _laid_out(
        self, found: list[SaidToken], pieces: Sequence[int], *, num_left_out: int
    ) -> DialogueTokens:
        """With the tokens of images in their places; something must be learnt."""
        if not any(one.is_said for one in found):
            raise SampleError("nothing of the dialogue is the assistant's")
        if found[0].is_said:
            raise SampleError("nothing stands before the answer")
        return self._spread(found, pieces, num_left_out=num_left_out)

    def _spread(
        self, found: Sequence[SaidToken], pieces: Sequence[int], *, num_left_out: int = 0
    ) -> DialogueTokens:
        """With as many tokens for an image as its pieces have."""
        ids: list[int] = []
        image: list[bool] = []
        trained: list[bool] = []
        left = iter(pieces)
        for token, is_said in found:
            num = 1 if token is not None else next(left) * self.tokens_per_piece
            ids += [self._tokenizer.pad_id if token is None else token] * num
            image += [token is None] * num
            trained += [is_said] * num
        return DialogueTokens(
            ids=tuple(ids), image=tuple(image), trained=tuple(trained), num_left_out=num_left_out
        )

    def _tokens(self, turns: Sequence[Turn], num_images: int) -> list[SaidToken]:
        """Each image is one token of no id."""
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        try:
            found = self._tokenizer.chat_tokens(messages, mark=IMAGE)
        except UsageError as error:
            told = str(error).removeprefix("chat template: ")
            raise SampleError("chat template refuses the dialogue", detail=told) from error
        found = self._plain(turns) if found is None else found
        if sum(token is None for token, _ in found) != num_images:
            raise SampleError("chat template shows another number of images")
        return found

    def _plain(self, turns: Sequence[Turn]) -> list[SaidToken]:
        before, after = self._tokenizer.turn_ends
        found = [SaidToken(token, False) for token in before]
        for turn in turns:
            if turn.role == "assistant":
                ids = [*self._tokenizer.reply_ids(turn.text), self._end]
                found += [SaidToken(token, True) for token in ids]
                continue
            for number, text in enumerate(turn.text.split(IMAGE)):
                found += [SaidToken(None, False)] if number else []
                found += [SaidToken(token, False) for token in self._tokenizer.turn_ids(text)]
            found += [SaidToken(token, False) for token in after]
        return found

    def _refuse_endless(self) -> None:
        """A chat template must show where an answer stands and how it ends."""
        turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")]
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        found = self._tokenizer.chat_tokens(messages, mark=IMAGE)
        if found is None:
            return
        said = [token for token, is_said in found if is_said]
        if not said or (said[-1] != self._end and self._end not in said):
            raise UsageError(
                "vqa.generate.init: its chat template puts no end token behind an answer, so that "
                "none would be learnt; leave it out by vqa.generate.chat = false"
            )


def _firsts(turns: Sequence[Turn]) -> list[int]:
    """The questions, from the second on, that the dialogue may begin with: an answer follows."""
    last = max(number for number, turn in enumerate(turns) if turn.role == "assistant")
    asked = [n for n, turn in enumerate(turns) if turn.role == "user" and n < last]
    return asked[1:]


def _without(turns: tuple[Turn, ...], first: int) -> tuple[Turn, ...]:
    """What the system says, then the turns from `first` on, which begin with the images of those
    that are left out."""
    system = turns[:1] if turns[0].role == "system" else ()
    left_out = turns[len(system) : first]
    images = sum(turn.text.count(IMAGE) for turn in left_out)
    return (*system, *with_first(turns[first:], IMAGE * images))
