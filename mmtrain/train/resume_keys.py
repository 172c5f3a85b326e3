"""Which keys of a recipe may change when a run is resumed.

Every key of a recipe is in one of three tables, by its own name or by that of a section above it.
A key that is new must be put into one of them; a test says so.
"""

import re
from typing import Literal

FREE = frozenset(
    {
        *("run.dir", "run.mirror", "run.mirror_minutes", "run.peak_tflops"),
        # Where the data lie; what they are is told by their fingerprint.
        *(
            "data.train",
            "data.mixture[].train",
            "data.join",
            "data.allow_pipe",
            "data.index_dir",
            "data.verify",
            "data.on_damage",
        ),
        *("data.cache_dir", "data.cache_gb"),
        *("vqa.data.questions", "vqa.data.annotations"),
        *("vqa.dialogues.images", "vqa.dialogues.pack"),
        # As the ids that it gives are, and a teacher's weights.
        *("tokenizer.path", "loss.terms[].teacher"),
        *(
            "data.workers",
            "data.threads",
            "data.prefetch",
            "data.max_bad_fraction",
            "data.retry_seconds",
        ),
        *("train.microbatches", "train.text_groups", "train.compile", "train.device"),
        *("train.deterministic", "train.log_every"),
        *("train.checkpoint_every", "train.checkpoint_minutes", "train.keep_checkpoints"),
        *("train.async_checkpoint", "train.max_bad_steps", "train.on_bad_steps"),
        *("train.hang_minutes", "train.straggler_factor", "train.straggler_every"),
        "train.gc_every",
        *("parallel", "eval", "log"),
    }
)
"""How a run goes on, not what it is: it goes on with a line for each that changed."""

STARTS = frozenset(
    {"model.init", "model.vision_init", "vqa.init", "vqa.generate.init", "peft.init"}
)
"""Where the weights began: those of the checkpoint hold, but the record would say otherwise."""

TOLD = frozenset(
    {
        *("train.steps", "train.epochs", "train.loss_scale"),
        # Those of the steps behind stay, see `told_changes` in build/phases.py.
        "train.phase",
        *("train.phase[].steps", "train.phase[].samples", "train.phase[].epochs"),
        *("train.phase[].batch_size", "train.phase[].microbatches"),
        *("train.phase[].lr_factor", "train.phase[].patch_dropout"),
        *("train.phase[].image_size", "train.phase[].context_length"),
        *("optim.lr", "optim.betas", "optim.eps", "optim.weight_decay", "optim.clip_norm"),
        *("optim.layer_decay", "optim.muon_lr", "optim.muon_momentum"),
        *("optim.muon_weight_decay", "optim.muon_adjust"),
        *("optim.schedule", "optim.warmup_steps", "optim.warmup_fraction"),
        *("optim.decay_fraction", "optim.min_lr_fraction"),
        *("vqa.vision_lr", "vqa.text_lr", "vqa.connector_lr"),
        # Those of the steps behind stay, see `NumberedData.go_on`.
        *("data.mixture[].weight", "data.mixture[].weight_changes"),
        "data.mixture[].weight_changes[].from_step",
        "data.mixture[].weight_changes[].weight",
        *("data.mixture[].max_epochs", "data.mixture_end"),
        *STARTS,
    }
)
"""The steps from here on are others, which may be wanted: --resume-with-changes."""

FIXED = frozenset(
    {
        "run.seed",
        *(
            "data.stream",
            "data.stream_buffer",
            "data.image_key",
            "data.captions",
            "data.caption_lines",
            "data.label_key",
            "data.join_key",
            "data.join_missing",
            "data.augment",
            "data.resize_mode",
        ),
        *(
            "data.interpolation",
            "data.shuffle_group",
            "data.lanes",
            "data.last",
            "data.max_image_pixels",
        ),
        *("data.fast_decode", "data.fast_decode_keeps"),
        *("data.mixture_batches", "data.mixture", "data.mixture[].name"),
        *("data.mixture[].image_key", "data.mixture[].captions"),
        *("data.mixture[].caption_lines", "data.mixture[].label_key"),
        *("tokenizer.kind", "tokenizer.context_length", "tokenizer.clean", "tokenizer.add_sot"),
        *("tokenizer.add_eot", "tokenizer.pad_id"),
        *("model.vision", "model.text", "model.embed_dim", "model.init_logit_scale"),
        *("model.init_logit_bias", "model.name", "model.init_training"),
        *("vqa.connector", "vqa.front_door", "vqa.classify", "vqa.loss"),
        *("vqa.generate.transformer", "vqa.generate.vocab_size", "vqa.generate.text_length"),
        *("vqa.generate.context_length", "vqa.generate.learned_positions"),
        *("vqa.generate.rope_theta", "vqa.generate.rope_scaling", "vqa.generate.embed_scale"),
        *("vqa.generate.local_rope_theta", "vqa.generate.logit_cap"),
        *("vqa.generate.final_norm", "vqa.generate.tied_head", "vqa.generate.prompt"),
        *("vqa.generate.chat", "vqa.generate.reads", "vqa.tiles"),
        *("vqa.dialogues.max_length", "vqa.dialogues.too_long"),
        *("vqa.data.per_image", "vqa.data.answer_length", "vqa.data.image_only"),
        *("vqa.data.question_only", "vqa.min_count"),
        *("loss.kind", "loss.positives", "loss.max_logit_scale", "loss.weight", "loss.terms"),
        *("loss.terms[].kind", "loss.terms[].weight", "loss.terms[].target", "loss.terms[].dims"),
        *("loss.terms[].precision", "loss.terms[].features"),
        *("optim.kind", "optim.ema_decay"),
        *("train.batch_size", "train.precision"),
        "lock",
        *("peft.kind", "peft.rank", "peft.alpha", "peft.rslora", "peft.dora", "peft.dropout"),
        *("peft.targets", "peft.rank_pattern", "peft.alpha_pattern"),
        *("peft.num_tokens", "peft.network", "peft.hidden_dim", "peft.also_train"),
    }
)
"""With another value the steps behind would not be those of this recipe: refused."""

Kind = Literal["free", "told", "fixed"]


def kinds_of(key: str) -> list[Kind]:
    """The tables that a key or a section above it is in; of a recipe's key, one."""
    parts = re.sub(r"\[[^]]*\]", "[]", key).split(".")
    names = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    tables: dict[Kind, frozenset[str]] = {"free": FREE, "told": TOLD, "fixed": FIXED}
    return [kind for kind, table in tables.items() if names & table]
