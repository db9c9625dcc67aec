"""Whether the numbers of a config lie where they can work; those of `config.data` are checked by
`data/settings.py`. Builds nothing, reads no data."""

from __future__ import annotations

from math import inf
from typing import Any

from bljust_jax.common.errors import UserError

# What must hold, the condition, and the fields that it is for, by group; "" is the config itself.
RULES = (
    (
        "must be 1 or above",
        lambda x: 1 <= x < inf,
        {
            "features": ("n_mels", "window", "hop", "n_fft"),
            "model": (
                *("dim", "layers", "heads", "kernel", "channels", "ff_mult", "scan_unroll"),
                *("ff_dim", "pos_kernel", "pos_groups"),
                *("rnn_layers", "latent_dim", "units"),
            ),
            "mask": ("time_length", "channel_length"),
            "cpc": ("steps", "first_step", "width"),
            "best_rq": ("stack", "mask_length", "codes", "code_dim", "codebooks"),
            "wav2vec2": ("mask_length", "negatives", "groups", "codes", "code_dim", "width"),
            "decoder": ("dim", "layers", "heads", "ff_mult", "beam"),
            "moo": ("every",),
            "phases": ("turn",),
            "collapse": ("rows",),
            "mesh": ("dcn", "fsdp", "tensor"),
            "": ("accumulate",),
        },
    ),
    (
        "must be 0 or above",
        lambda x: 0 <= x < inf,
        {
            "specaugment": ("freq_masks", "freq_width", "time_masks", "time_width"),
            "model": ("cnn_layers", "proj", "feature_grad_scale"),
            "cpc": ("negatives",),
            "best_rq": ("noise_std",),
            "wav2vec2": ("diversity", "feature_penalty"),
            "birq": ("enhanced_weight", "anchor_weight"),
            "decoder": ("alpha", "max_ratio", "max_extra"),
            "moo": ("rate", "rho"),
            "penalty": ("start", "slope", "cap", "constant"),
            "task_penalty": ("start", "slope", "cap"),
            "phases": ("explore", "joint", "finetune", "pretrain", "supervised"),
            "lr.*": ("peak", "warmup"),
            "optim": ("weight_decay",),
            "": ("samples", "keep_every", "save_minutes"),
        },
    ),
    (
        "must be above 0",
        lambda x: 0 < x < inf,
        {
            "cpc": ("temperature",),
            "wav2vec2": ("temperature", "tau_start", "tau_end", "tau_decay"),
            "birq": ("sharpness", "tau_start", "tau_end", "tau_decay"),
            "lr": ("heads",),
            "optim": ("clip",),
        },
    ),
    (
        "must be above 0 and at most 1",
        lambda x: 0 < x <= 1,
        {"best_rq": ("mask_prob",), "wav2vec2": ("mask_prob",)},
    ),
    (
        "must be from 0 to 1",
        lambda x: 0 <= x <= 1,
        {
            "mask": ("time_prob", "channel_prob"),
            "specaugment": ("max_time_share",),
            "collapse": ("share",),
        },
    ),
    ("must lie from -1 to 1", lambda x: -1 <= x <= 1, {"moo": ("threshold",)}),
    (
        "must be 0 or above, and below 1",
        lambda x: 0 <= x < 1,
        {
            "model": ("dropout", "layerdrop"),
            "decoder": ("dropout", "smoothing"),
            "optim": ("b1", "b2"),
            "": ("ema_decay",),
        },
    ),
    (
        "must be whole numbers of 1 or above",
        lambda x: all(isinstance(n, int) and n >= 1 for n in x),
        {"model": ("conv_dim", "conv_kernel", "conv_stride")},
    ),
)


def check(config: Any) -> None:
    """Raises UserError naming a field that is out of range; a field that `config` has not, as it is
    another encoder's or loss's, is passed over."""
    for words, holds, groups in RULES:
        for path, fields in groups.items():
            for name, group in _groups(config, path):
                for field in fields:
                    if field in group and not holds(group[field]):
                        raise UserError(f"{name}.{field}={group[field]} {words}")


def _groups(config: Any, path: str) -> list[tuple[str, Any]]:
    """(name, group) of what `path` names in `config`: "", "model", or "lr.*" for all groups of
    lr."""
    found = [("config", config)]
    for key in filter(None, path.split(".")):
        found = [
            (f"{name}.{inner}", group[inner])
            for name, group in found
            for inner in (group if key == "*" else [key])
            if inner in group and hasattr(group[inner], "keys")
        ]
    return found
