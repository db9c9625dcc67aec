"""Peers of the benchmarks: PyTorch's CTC and a training step of transformers' Parakeet.

They run with as many threads as jax has cores. The benchmarks print the reason, from `absent`, when
a peer cannot run.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int


def absent(*packages: str) -> str:
    """The reason why the packages cannot run on jax's device, "" if they can."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        return f"peer absent: {', '.join(missing)} not installed"
    if jax.default_backend() == "cpu":
        return ""
    import torch

    usable = jax.default_backend() == "gpu" and torch.cuda.is_available()
    return "" if usable else f"peer absent: torch has no {jax.default_backend()}"


def device() -> Any:
    """The torch device of jax's platform; sets torch's number of threads."""
    import torch

    torch.set_num_threads(threads())
    return torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")


def threads() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ctc(
    logits: Float[np.ndarray, "b t k"],
    logit_lengths: Int[np.ndarray, "b"],
    labels: Int[np.ndarray, "b u"],
    label_lengths: Int[np.ndarray, "b"],
) -> Callable[[], tuple[Any, Any]]:
    """() -> (losses [B], gradient of their sum [B, T, K]), log-softmax included, blank 0."""
    import torch

    where = device()
    x = torch.tensor(logits, device=where, requires_grad=True)
    # int64 targets, one row per utterance, select the native CUDA kernel, not cuDNN's
    y, n, m = (
        torch.tensor(np.int64(a), device=where) for a in (labels, logit_lengths, label_lengths)
    )

    def run():
        x.grad = None
        log_probs = torch.log_softmax(x, -1).transpose(0, 1)
        losses = torch.nn.functional.ctc_loss(log_probs, y, n, m, blank=0, reduction="none")
        losses.sum().backward()
        synchronize()
        return losses.detach(), x.grad

    return run


def parakeet_step(
    features: Float[np.ndarray, "b t m"],
    labels: Int[np.ndarray, "b u"],
    vocab_size: int,
    model: Any,
) -> tuple[Callable[[], float], int]:
    """(function that runs an AdamW step on full-length rows and returns its loss, number of
    parameters).

    The peer has the sizes of `model`, a `Conformer`. The loss is transformers' mean per label, the
    gradient is clipped at norm 1, there is no dropout. In bfloat16 the forward pass runs under
    autocast.
    """
    import torch
    from transformers import ParakeetCTCConfig, ParakeetForCTC

    from bljust_jax.export import hf_parakeet

    where, last = device(), vocab_size - 1
    about = hf_parakeet.hf_config(model, vocab_size, {"n_mels": model.n_mels})
    config = ParakeetCTCConfig.from_dict(about | {"pad_token_id": last})
    network = ParakeetForCTC(config).to(where).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.98), fused=True)
    x = torch.tensor(features, device=where)
    y = torch.tensor(np.int64(labels) - 1, device=where)  # blank is last, labels start at 0
    mask = torch.ones(x.shape[:2], dtype=torch.bool, device=where)
    half = model.dtype == "bfloat16"

    def run():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(where.type, torch.bfloat16, enabled=half):
            loss = network(input_features=x, attention_mask=mask, labels=y).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        synchronize()
        return loss.item()

    return run, sum(p.numel() for p in network.parameters())
