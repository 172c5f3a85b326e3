"""The section [model] of a recipe: an architecture, and the weights that it starts from."""

from dataclasses import dataclass, fields

from mmtrain.models import ClipConfig
from mmtrain.settings.paths import ModelText


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ClipConfig):
    """Both towers. With `name` or `init` only what differs need be given."""

    name: str | None = None
    """An architecture by name, such as ViT-B-32 (`mmtrain models` lists them); every other key of
    the section overrides one of its fields."""
    init: ModelText | None = None
    """Start from these weights: a run, an export, a folder in another tool's form, or a weights'
    file of the architecture `name`, or hf://OWNER/NAME[@REVISION] or open_clip:NAME/TAG, fetched
    from Hugging Face's hub. It brings its architecture and, where the recipe says nothing
    else, its tokenizer, data.resize_mode, data.interpolation and loss.kind; another image_size
    interpolates the learned positions."""
    init_training: bool = False
    """`init` is a checkpoint of open_clip's training that this run goes on with: AdamW's moments
    and the epoch are taken up too, as far as they fit, and it is said what was not."""
    vision_init: ModelText | None = None
    """Start the image tower from a folder that timm wrote (config.json, model.safetensors). It
    brings [model.vision] with a projection to embed_dim; [lock] may freeze it (LiT)."""

    @property
    def clip(self) -> ClipConfig:
        """The architecture alone."""
        return ClipConfig(**{f.name: getattr(self, f.name) for f in fields(ClipConfig)})
