"""Bilevel joint training of speech recognizers on labelled and unlabelled audio, in JAX.

The public Python API. Names load on first use; `import bljust_jax` imports neither jax nor numpy.

load_recognizer(path, task="")
    A trained run (`--workdir`) or an exported folder as a `SpeechModel`; its
    `transcribe(audio, sample_rate=None)` takes a path, or samples [S] or [S, channels], and returns
    a `Transcript`: text, words with start and end in seconds.
transcribe(path, audio, sample_rate=None, task="")
    `load_recognizer(path, task).transcribe(audio, sample_rate)`, for a single use.
ctc_loss(logits [B, T, K], logit_lengths [B], labels [B, U], label_lengths [B]) -> [B]
    -log P(labels | logits) in nats, with gradients on CPU, TPU and GPU.
ctc_align(logits [B, T, K], logit_lengths [B], labels [B, U], label_lengths [B]) -> Alignment
    First and last frame and confidence of each label on the most probable path.
combine_levels(conflict=..., dynamic=()) -> optax.GradientTransformationExtraArgs
    The first link of an optax chain for bilevel training: sum over levels of weight * gradient on
    shared parameters, own gradients on heads. It takes `Grads(owned, levels)` in place of one
    gradient tree; docs/api_example.py is a complete example on a problem without speech.
"""

import importlib

__version__ = "0.1.0"

_MODULES = {
    "load_recognizer": "bljust_jax.inference.api",
    "ctc_loss": "bljust_jax.ops.ctc",
    "ctc_align": "bljust_jax.ops.ctc.align",
    "combine_levels": "bljust_jax.bilevel.levels",
    "Grads": "bljust_jax.bilevel.levels",
}
__all__ = ["Grads", "combine_levels", "ctc_align", "ctc_loss", "load_recognizer", "transcribe"]


def __getattr__(name):
    if name == "transcribe":  # the command of this name, which is also the function
        return importlib.import_module("bljust_jax.transcribe")
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'bljust_jax' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
