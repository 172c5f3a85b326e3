"""Towers as graphs that run without mmtrain: traced by torch.export, and held against torch."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.nn import functional as F

from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.interop.package import ModelPackage
from mmtrain.models import Clip
from mmtrain.models.slices import shallow_copy
from mmtrain.models.text import TextConfig, TextTower
from mmtrain.models.vision import PatchEmbed, VisionEmbed, VisionTower
from mmtrain.models.vision_config import VisionConfig
from mmtrain.nn import unit_norm

TOLERANCE = 1e-4
"""How far features of fp32 weights may be from torch's, of vectors of length 1."""
BATCHES = (1, 3)
"""Sizes at which a graph is held against torch; it is traced at another one, 2."""
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class ImageGraph(nn.Module):
    """uint8 [B, 3, H, W] -> unit-norm [B, E], as `Clip.encode_image`."""

    def __init__(self, vision: VisionTower) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, images: Tensor) -> Tensor:
        """The features of images; the pixels are normalised here."""
        return unit_norm(self.vision(images))


class TextGraph(nn.Module):
    """int64 [B, T] -> unit-norm [B, E], as `Clip.encode_text`.

    Padding is not cut away, which would make the tokens a number that only the values tell; where
    it could be it does not reach the result.
    """

    def __init__(self, text: TextTower) -> None:
        super().__init__()
        self.text = text

    def forward(self, input_ids: Tensor) -> Tensor:
        """The features of texts, padded to the context."""
        return unit_norm(self.text(input_ids, length_B=self.text.text_length(input_ids)))


class _PlainPatches(PatchEmbed):
    """The patches' map with the pixels' normalisation in its weights, which are then the file's."""

    def __init__(self, embed: PatchEmbed) -> None:
        nn.Module.__init__(self)
        self.patch_size = embed.patch_size
        self.weight, self.bias = (nn.Parameter(each, False) for each in embed.folded())

    def forward(self, images_BCHW: Tensor, kept_BP: Tensor | None = None) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, P, D]."""
        pixels = self.patches(images_BCHW).to(self.weight.dtype) - 128
        return F.linear(pixels, self.weight, self.bias)


class Named(Protocol):
    """A graph that messages tell of."""

    @property
    def told(self) -> str:
        """What it is of."""
        ...


@dataclass(frozen=True, kw_only=True)
class TowerGraph:
    """A tower, how its input and output are called, and inputs to try it on."""

    name: str
    """`image` or `text`: the file's."""
    network: nn.Module
    """What is traced, in eval mode."""
    reference: nn.Module
    """What it is held against: the tower as mmtrain runs it."""
    input_name: str
    """Of the graph's only input."""
    example: Tensor
    """Drawn inputs, as many as the largest batch and the smallest take together."""
    told: str
    """The tower, for messages."""

    @property
    def output_name(self) -> str:
        """Of the graph's only output."""
        return f"{self.name}_features"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A graph's features beside torch's, over drawn inputs of several batch sizes."""

    difference: float
    """The largest of a number."""
    cosine: float
    """The least of a sample."""


def tower_graphs(package: ModelPackage) -> tuple[TowerGraph, TowerGraph]:
    """The image tower and the text tower, on the CPU."""
    with torch.device("meta"):
        clip = Clip(package.config)
    clip.load_state_dict(package.tensors, assign=True)
    clip = clip.eval().requires_grad_(False)
    config = package.config
    return (
        TowerGraph(
            name="image",
            network=ImageGraph(with_plain_patches(clip.vision)),
            reference=ImageGraph(clip.vision),
            input_name="images",
            example=drawn_images(config.vision),
            told=_told("image", config.vision),
        ),
        TowerGraph(
            name="text",
            network=TextGraph(clip.text),
            reference=TextGraph(clip.text),
            input_name="input_ids",
            example=package.tokenizer(drawn_texts(package.tokenizer)),
            told=_told("text", config.text),
        ),
    )


def traced(graph: TowerGraph, *, form: str) -> ExportedProgram:
    """The operations of a tower, for any batch size.

    Raises:
        UsageError: the tower does something that cannot be traced.
    """
    with refusing(graph, form=form), quiet(), torch.no_grad():
        program = torch.export.export(
            graph.network, (graph.example[:2],), dynamic_shapes=({0: Dim("batch")},), strict=False
        )
    return without_paths(program)


def without_paths(program: ExportedProgram) -> ExportedProgram:
    """The same program, in which no path of this machine travels along."""
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def agreement(graph: TowerGraph, run: Callable[[Tensor], Tensor], *, form: str) -> Agreement:
    """Hold what was written against torch.

    Args:
        graph: the tower.
        run: what was written: inputs -> features.
        form: its name, for messages.

    Raises:
        UsageError: it does not run.
    """
    difference, cosine = 0.0, 1.0
    for inputs in graph.example.split(BATCHES):
        with torch.no_grad():
            wanted = graph.reference(inputs)
        with refusing(graph, form=form), quiet():
            found = run(inputs)
        off = (found - wanted).abs().max().nan_to_num(nan=torch.inf).item()
        similar = (found * wanted).sum(-1).min().nan_to_num(nan=-1.0).item()
        difference, cosine = max(difference, off), min(cosine, similar)
    return Agreement(difference=difference, cosine=cosine)


def check_agreement(graph: TowerGraph, found: Agreement, *, form: str) -> None:
    """Refuse a graph of fp32 weights that computes something else.

    Raises:
        UsageError: by how much.
    """
    if found.difference > TOLERANCE:
        raise UsageError(
            f"format = {form}: features of {graph.told} are {found.difference:.1g} from torch's, "
            f"more than {TOLERANCE:g}; nothing was written"
        )


@contextmanager
def refusing(graph: Named, *, form: str) -> Iterator[None]:
    """Say in one line what an exporter cannot take of a graph.

    Raises:
        UsageError: with the first line of the exporter's own words.
    """
    try:
        yield
    except (UsageError, OSError, MemoryError):
        raise
    except Exception as error:  # exporters raise nothing more precise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = f"{type(error).__name__}: {lines[0] if lines else 'no reason is given'}"
        raise UsageError(f"format = {form} cannot take {graph.told}: {why}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters tell of their own passes, for who develops them, and print a graph that failed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@torch.no_grad()
def with_plain_patches(tower: VisionTower) -> VisionTower:
    """The same tower, the pixels' normalisation in its weights."""
    if not isinstance(tower.embed, VisionEmbed) or not isinstance(tower.embed.patch, PatchEmbed):
        return tower
    twin = shallow_copy(tower)
    twin.embed = shallow_copy(tower.embed)
    twin.embed.patch = _PlainPatches(tower.embed.patch)
    return twin


def _told(name: str, config: VisionConfig | TextConfig) -> str:
    if config.trunk is None:
        return f"the {name} tower"
    title = getattr(config.trunk, "title", getattr(config.trunk, "name", config.trunk.kind))
    return f'the {name} tower (trunk.kind = "{config.trunk.kind}", {title})'


def drawn_images(vision: VisionConfig) -> Tensor:
    """Noise, uint8 [B, 3, H, W], as many as `drawn_texts`."""
    size = vision.image_size
    generator = torch.Generator().manual_seed(0)
    shape = (sum(BATCHES), 3, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def drawn_texts(tokenizer: Tokenizer) -> list[str]:
    """An empty one, one that is too long, and some between."""
    generator = torch.Generator().manual_seed(0)
    longest = tokenizer.context_length
    texts: list[str] = []
    for num_words in (3, 0, longest // 3, 2 * longest)[: sum(BATCHES)]:
        draws = torch.randint(0, len(_LETTERS), (num_words, 4), generator=generator).tolist()
        texts.append(" ".join("".join(_LETTERS[i] for i in word) for word in draws))
    return texts
