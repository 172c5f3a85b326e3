"""Modules that train in full beside LoRA's terms, as peft's `modules_to_save`, both ways.

peft replaces whole modules: it saves all tensors below one, and finds it by the end of its name.
"""

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor, equal, nn

from mmtrain.errors import UsageError
from mmtrain.interop.hf_decoder import HEAD
from mmtrain.interop.tensor_links import Link, Tensors, same
from mmtrain.models.decoder import Decoder

EMBEDDING = "embed.token.weight"
"""Of a decoder's, by our name."""


def completed(
    names: Collection[str], tensors: Mapping[str, Tensor], links: list[Link], terms: Iterable[str]
) -> tuple[Tensors, list[str]]:
    """All tensors of the modules that hold some -> (they, the names that peft has no place for).

    A parameter of the whole model, of a module with a term of LoRA's, or of one whose name is also
    the end of another's, has none.

    Args:
        names: our parameters that trained in full.
        tensors: the plain model's, by our names.
        links: of the model's tensors and transformers'.
        terms: the names of our layers with a term.
    """
    every = _every(links, tensors)
    theirs = {name: link.theirs for link in every for name in link.ours}
    wanted = {_module(one) for name in names for one in theirs[name]}
    modules = {part for link in every for one in link.theirs for part in _above(one)}
    adapted = {_module(one) for name in terms for one in theirs[f"{name}.weight"]}
    taken = {
        path
        for path in wanted
        if path
        and not any(_is_in(one, path) for one in adapted)
        and not any(other != path and other.endswith(path) for other in modules)
    }
    kept = [link for link in every if all(_is_below(one, taken) for one in link.theirs)]
    whole = {name: tensors[name] for link in kept for name in link.ours}
    return whole, sorted(set(names) - whole.keys())


def modules_to(whole: Tensors, links: list[Link]) -> tuple[list[str], Tensors]:
    """What `completed` gave -> (the modules' names, their tensors by their names)."""
    found: Tensors = {}
    for link in _every(links, whole):
        if link.ours[0] in whole:
            parts = link.to_theirs(*(whole[name] for name in link.ours))
            found |= {name: x.contiguous() for name, x in zip(link.theirs, parts, strict=True)}
    paths = {_module(name) for name in found}
    return sorted(path for path in paths if not any(_is_in(path, p) for p in paths - {path})), found


def modules_from(
    modules: list[str], left: Tensors, shapes: Mapping[str, Tensor], links: list[Link]
) -> tuple[Tensors, list[str]]:
    """Our tensors of the named modules, taken out of a file's -> (they, names that do not fit).

    Args:
        modules: ends of their names; of what the model has not, there may be some.
        left: what the file holds by their names; what is used is taken out.
        shapes: our model's state dict.
        links: of its tensors and transformers'.
    """
    whole: Tensors = {}
    wrong: list[str] = []
    for link in _every(links, shapes):
        named = [
            one for one in link.theirs if any(p.endswith(m) for p in _above(one) for m in modules)
        ]
        if not named:
            continue
        if missing := [one for one in link.theirs if one not in left]:
            wrong += missing
            continue
        parts = link.to_ours(*(left.pop(one) for one in link.theirs))
        pairs = list(zip(link.ours, parts, strict=True))
        wrong += [name for name, x in pairs if x.shape != shapes[name].shape]
        whole |= {name: x.contiguous() for name, x in pairs}
    return whole, wrong


def refuse_tied(
    model: nn.Module, links: list[Link], saved: Tensors, modules: Tensors, source: str
) -> None:
    """Refuse the embedding, or the head, of a decoder that has one matrix for both: peft trains a
    copy of the one beside the other as it was, so that there are two.

    Args:
        model: what the adapter is for.
        links: of its tensors and transformers'; what stands there by our name is no copy of peft's.
        saved: of the adapter's modules, by our names; what is the model's own is no other.
        modules: what else the file holds of modules, by their names.
        source: for the message.

    Raises:
        UsageError: it holds another one than the model.
    """
    theirs = {name: link.theirs[0] for link in links for name in link.ours}
    for path, part in model.named_modules():
        name = f"{path}.{EMBEDDING}".removeprefix(".")
        if not isinstance(part, Decoder) or not part.config.tied_head or name not in theirs:
            continue
        own = model.get_parameter(name).detach()
        held = {theirs[name]: saved.get(name), HEAD: modules.get(HEAD)}
        for key, other in held.items():
            if other is not None and not equal(own.to(other), other):
                raise UsageError(
                    f"{source}: modules_to_save holds a {key} of its own, and the model has one "
                    "matrix for its embedding and its head; train such an adapter on a model with "
                    "tie_word_embeddings = false"
                )


def _every(links: list[Link], tensors: Mapping[str, Tensor]) -> list[Link]:
    """Links of all tensors: one that none ties stands there by our name."""
    linked = {name for link in links for name in link.ours}
    return [*links, *(same(name, name) for name in tensors if name not in linked)]


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _above(name: str) -> list[str]:
    """The modules that a tensor is in, the innermost first."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _is_in(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def _is_below(name: str, modules: Collection[str]) -> bool:
    return any(one in modules for one in _above(name))
