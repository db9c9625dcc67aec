"""Peers of the benchmarks: CTC by torch, steps of transformers' Parakeet, SpeechBrain's Conformer.

They run with as many threads as jax has cores. The benchmarks print the reason, from `absent`, when
a peer cannot run.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import partial
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


def no_compiler(peer: str) -> str:
    """The reason why `torch.compile` cannot run for a peer on a CPU, "" if it can or need not."""
    needed = "compiled" in peer and jax.default_backend() == "cpu"
    found = any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))
    return "peer absent: torch.compile needs a C++ compiler" if needed and not found else ""


Step = tuple[Callable[[], float], int]


def parakeet_step(
    features: Float[np.ndarray, "b t m"],
    labels: Int[np.ndarray, "b u"],
    vocab_size: int,
    model: Any,
    compiled: bool = False,
) -> Step:
    """`training_step` of transformers' Parakeet with the sizes of `model`, a `Conformer`, on
    full-length rows; the loss is transformers' mean per label. compiled: by `torch.compile`."""
    import torch
    from transformers import ParakeetCTCConfig, ParakeetForCTC

    from bljust_jax.export import hf_parakeet

    where, last = device(), vocab_size - 1
    about = hf_parakeet.hf_config(model, vocab_size, {"n_mels": model.n_mels})
    config = ParakeetCTCConfig.from_dict(about | {"pad_token_id": last})
    network = ParakeetForCTC(config).to(where).train()
    x = torch.tensor(features, device=where)
    y = torch.tensor(np.int64(labels) - 1, device=where)  # blank is last, labels start at 0
    mask = torch.ones(x.shape[:2], dtype=torch.bool, device=where)

    def loss(network: Any) -> Any:
        return network(input_features=x, attention_mask=mask, labels=y).loss

    return training_step(network, loss, model.dtype == "bfloat16", compiled)


def speechbrain_step(
    features: Float[np.ndarray, "b t m"],
    labels: Int[np.ndarray, "b u"],
    vocab_size: int,
    model: Any,
) -> Step:
    """`training_step` of SpeechBrain's Conformer with relative positions, in the width, blocks,
    heads and kernel of `model`, on full-length rows. Its front end subsamples by 8 too, with three
    full convolutions of 64 channels, as of its LibriSpeech recipe. The loss is the mean per label.
    """
    import torch
    from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
    from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR

    where = device()
    x = torch.tensor(features, device=where)
    y = torch.tensor(np.int64(labels), device=where)
    stages = {"num_blocks": 3, "num_layers_per_block": 1, "out_channels": (64,) * 3}
    stages |= {"kernel_sizes": (3,) * 3, "strides": (2,) * 3, "residuals": (False,) * 3}
    frontend = ConvolutionFrontEnd(input_shape=tuple(x.shape), **stages)
    encoder = TransformerASR(
        tgt_vocab=vocab_size,
        input_size=64 * -(-model.n_mels // 8),
        d_model=model.dim,
        nhead=model.heads,
        num_encoder_layers=model.layers,
        num_decoder_layers=0,
        d_ffn=4 * model.dim,
        dropout=0.0,
        encoder_module="conformer",
        attention_type="RelPosMHAXL",
        normalize_before=True,
        causal=False,
        kernel_size=model.kernel,
    )
    head = torch.nn.Linear(model.dim, vocab_size)
    network = torch.nn.ModuleList([frontend, encoder, head]).to(where).train()
    full = torch.ones(len(x), device=where)

    def loss(network: Any) -> Any:
        frontend, encoder, head = network
        logits = head(encoder.encode(frontend(x), wav_len=full))
        log_probs = torch.log_softmax(logits.float(), -1).transpose(0, 1)
        lengths = (torch.full((len(x),), n, device=where) for n in (len(log_probs), y.shape[1]))
        return torch.nn.functional.ctc_loss(log_probs, y, *lengths, blank=0)

    return training_step(network, loss, model.dtype == "bfloat16")


def training_step(
    network: Any, loss_of: Callable[[Any], Any], half: bool, compiled: bool = False
) -> Step:
    """(function that runs an AdamW step and returns its loss, number of parameters).

    The gradient is clipped at norm 1, there is no dropout. half: the forward pass runs under
    autocast in bfloat16. compiled: the forward and backward pass are those of `torch.compile`.
    """
    import torch

    where = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.98), fused=True)
    called = torch.compile(network) if compiled else network

    def run():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(where.type, torch.bfloat16, enabled=half):
            loss = loss_of(called)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        synchronize()
        return loss.item()

    return run, sum(p.numel() for p in network.parameters())


# By the names of rows: how to make the step, and the packages that it needs.
PEERS: dict[str, tuple[Callable[..., Step], tuple[str, ...]]] = {
    "torch": (parakeet_step, ("torch", "transformers")),
    "torch compiled": (partial(parakeet_step, compiled=True), ("torch", "transformers")),
    "speechbrain": (speechbrain_step, ("torch", "speechbrain")),
}
