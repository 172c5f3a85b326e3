"""What a tokenizer fixes of the text tower that reads its ids."""

from collections.abc import Mapping

from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError


def text_sizes(tokenizer: Tokenizer, *, num_context: int, add_eot: bool) -> dict[str, int | None]:
    """Fields of [model.text] by their names.

    Args:
        tokenizer: of the run.
        num_context: learned vectors, which take places of the tower's context.
        add_eot: whether texts end with the end token.
    """
    return {
        "vocab_size": tokenizer.vocab_size,
        "context_length": tokenizer.context_length + num_context,
        "end_token_id": tokenizer.eot_id if add_eot else None,
    }


def refuse_other_sizes(asked: Mapping[str, object], sizes: Mapping[str, int | None]) -> None:
    """Refuse a tower that asks for what its tokenizer has not.

    Args:
        asked: what a recipe says of the tower.
        sizes: from `text_sizes`.

    Raises:
        UsageError: one differs.
    """
    for name, value in sizes.items():
        if asked.get(name, value) != value:
            raise UsageError(
                f"model.text.{name} = {asked[name]}, but the tokenizer has {value}; leave it out, "
                "the [tokenizer] section decides"
            )
