"""The word that a mistyped or foreign one stands for."""

import difflib
import re
from collections.abc import Iterable

_FOREIGN: dict[str, tuple[str, ...]] = {
    "bf16": ("bfloat16", "bf16mixed", "mixedbf16", "amp", "ampbf16", "ampbfloat16", "autocast"),
    "fp16": ("float16", "f16", "half", "16", "16mixed", "amp", "ampfp16"),
    "fp32": ("float32", "f32", "float", "full", "single", "32", "32true", "no"),
    "fp64": ("float64", "f64", "double", "64"),
    "float16": ("fp16", "f16", "half", "16", "bf16", "bfloat16"),
    "float32": ("fp32", "f32", "float", "full", "single", "32"),
    "float8": ("fp8", "f8", "float8e4m3fn", "e4m3", "8"),
    "bf16-main": ("bf16master", "mainparams", "masterweights", "o2", "ampo2"),
    "bf16-pure": ("purebf16", "purebfloat16", "bf16true"),
    "gelu": ("gelunone", "geluexact"),
    "gelu_tanh": ("gelunew", "gelufast", "gelupytorchtanh", "geluapprox"),
    "geglu": ("gatedgelu",),
    "layer": ("layernorm", "ln", "norm"),
    "rms": ("rmsnorm", "llamarmsnorm"),
    "adamw": ("adam", "torchadamw", "fusedadamw", "adamwtorch", "adamwtorchfused"),
    "cosine": ("cos", "linearwarmupcosine", "warmupcosine", "cosinewithwarmup", "cosineannealing"),
    "constant": ("const", "constantwithwarmup", "flat", "fixed"),
    "wsd": ("warmupstabledecay", "trapezoid", "trapezoidal", "constcooldown"),
    "clip": ("infonce", "softmax", "contrastive", "ntxent", "bpe", "cliploss"),
    "siglip": ("sigmoid", "sigliploss"),
    "sentencepiece": ("spm", "sp", "unigram", "t5"),
    "json": ("hf", "huggingface", "tokenizers", "fast", "tokenizerjson"),
    "full": ("bidirectional", "none", "nomask"),
    "causal": ("autoregressive", "gpt", "decoder"),
    "first": ("cls", "class", "classtoken", "tok", "token"),
    "end": ("eos", "eot", "argmax", "endtoken"),
    "mean": ("avg", "average", "gap", "globalavg", "globalaverage"),
    "attention": ("map", "attn", "attentional", "attnpool"),
    "sinusoidal": ("sin", "sincos", "sincos2d", "fixed"),
    "learned": ("absolute", "learnable", "abs"),
    "rope": ("rotary",),
    "rope_2d": ("rope", "axialrope", "rotary2d"),
    "bicubic": ("cubic",),
    "bilinear": ("linear",),
    "shortest": ("crop", "centercrop", "centrecrop"),
    "squash": ("stretch", "resize", "warp"),
    "longest": ("pad", "letterbox"),
    "mask": ("pad",),
    "drop": ("droplast", "truncate"),
    "fsdp": ("fsdp2", "zero3", "sharded"),
    "ddp": ("dp", "dataparallel", "distributeddataparallel", "replicated"),
    "canonicalize": ("canonicalise", "siglip"),
    "lower": ("lowercase", "uncased"),
    "hf": ("huggingface", "transformers"),
    "open-clip": ("openclip",),
    "safetensors": ("safetensor", "st"),
    "npy": ("numpy", "np"),
    "parquet": ("pq", "arrow"),
    "cuda": ("gpu", "nvidia"),
    "lr": ("learningrate", "blr", "baselr"),
    "steps": ("maxsteps", "numsteps", "totalsteps", "iterations", "iters", "maxiters"),
    "epochs": ("numepochs", "maxepochs", "numtrainepochs"),
    "batch_size": ("bs", "globalbatchsize", "totalbatchsize"),
    "microbatches": ("accumfreq", "gradaccum", "gradaccumsteps", "gradientaccumulationsteps"),
    "clip_norm": ("gradclip", "gradclipnorm", "maxgradnorm", "gradientclipval"),
    "warmup_steps": ("warmup", "numwarmupsteps"),
    "weight_decay": ("wd",),
    "precision": ("dtype", "mixedprecision"),
    "workers": ("numworkers", "dataloadernumworkers"),
    "num_layers": ("depth", "layers", "nlayers", "nlayer", "numhiddenlayers"),
    "num_heads": ("heads", "nheads", "nhead", "numattentionheads"),
    "dim": ("width", "hiddensize", "dmodel", "nembd"),
    "none": ("null", "nil", "undefined"),
    "true": ("yes", "on", "y", "t", "1"),
    "false": ("no", "off", "n", "f", "0"),
}
"""Our words and what other tools and languages call the same, in small letters and digits."""


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The one of `known` that `word` was meant to be; None: it is like none of them.

    The same word for another tool comes first: by their letters alone bfloat16 is nearest to
    float8. Letters make no guess where the numbers in the words differ.
    """
    known = tuple(known)
    plain = _plain(word)
    for candidate in known:
        if plain and plain == _plain(candidate):
            return candidate
    for candidate in known:
        if plain in _FOREIGN.get(candidate, ()):
            return candidate
    digits = re.findall(r"\d+", word)
    alike = [each for each in known if re.findall(r"\d+", each) == digits]
    return next(iter(difflib.get_close_matches(word, alike, n=1, cutoff=cutoff)), None)


def _plain(word: str) -> str:
    return re.sub(r"[\W_]", "", word.lower())
