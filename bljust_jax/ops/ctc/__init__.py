"""CTC loss with its own VJP, feasibility and forced alignment: the public functions.

The lattice and its recursion are in `trellis`, implementations of the recursion in `scan`,
`one_scan`, `pallas_tpu` and `pallas_gpu`, the best path in `align`. This module computes what they
share: the softmax before and the gradient after, softmax(logits) - occupancy.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from bljust_jax.common.shapes import Labels, Lengths, Logits, Scalar

# Both XLA forms are imported here, not when chosen: that is in the depth of a trace, where Python
# 3.11 can fail to parse a module.
from bljust_jax.ops.ctc import one_scan, scan  # noqa: F401
from bljust_jax.ops.ctc.align import Alignment, ctc_align
from bljust_jax.ops.ctc.trellis import NEG, columns_of, ctc_feasible, softmax_of, trellis_of
from bljust_jax.ops.log_mel import valid_frames

__all__ = ["Alignment", "blank_share", "ctc_align", "ctc_feasible", "ctc_loss"]

# All but "auto" are modules of this folder with RECURSIONS; kernels are imported when chosen.
IMPLEMENTATIONS = ("auto", "scan", "one_scan", "pallas_tpu", "pallas_gpu")
# What "auto" chooses per platform: (kernel, its substitute where it does not support the input).
_AUTO = {"gpu": ("pallas_gpu", "one_scan"), "tpu": ("pallas_tpu", "scan")}


def ctc_loss(
    logits: Logits,
    logit_lengths: Lengths,
    labels: Labels,
    label_lengths: Lengths,
    *,
    blank: int = 0,
    implementation: str = "auto",
) -> Float[Array, "b"]:
    """-log P(labels | logits) of each utterance, in nats, not divided by any length.

    logits         [B, T, K]  unnormalised scores of any float type; the arithmetic is float32
                              (float64 for float64) and the gradient has the type of the logits
    logit_lengths  [B]        valid frames, at most T
    labels         [B, U]     ids in [0, K), none equal to `blank` among the valid ones
    label_lengths  [B]        valid labels, at most U

    Returns [B] float32 (float64 for float64), never below 0. The gradient with respect to a valid
    frame's logits is softmax(logits) - occupancy, which sums to 0 over K. Padded frames and padded
    labels never matter, NaN included. An infeasible utterance (see `ctc_feasible`) has loss and
    gradient exactly 0. A labelling of probability zero (logits of -inf) has loss inf.

    `implementation` names the recursions over time; all give the same numbers up to rounding:

    "scan"        two `lax.scan`s, the fastest on CPU
    "one_scan"    one `lax.scan` of both directions: half the dependent steps, twice the width
    "pallas_tpu"  one Mosaic kernel per direction, up to 4095 labels; interpreted off TPU
    "pallas_gpu"  one Mosaic kernel for both directions on NVIDIA GPUs; a scan elsewhere
    "auto"        by `jax.default_backend()`: scan on CPU; pallas_tpu on TPU (scan for float64 and
                  for more labels than the kernel supports); on GPU pallas_gpu where it has been
                  measured (Hopper, jax >= 0.11.2), else one_scan. To compile ahead of time for
                  another platform, name the implementation.

    The custom VJP supports reverse mode once: no forward mode, no second derivative. A program
    without gradient stores nothing of size T. Raises ValueError for an unknown implementation, a
    blank outside K, or inputs that the chosen kernel does not support.

    Sources: Graves, Fernandez, Gomez, Schmidhuber, "Connectionist Temporal Classification" (ICML
    2006), equations 5-8 (forward variables), 9-11 (backward variables), 14-16 (gradient).
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {implementation!r}: expected one of {IMPLEMENTATIONS}")
    if not 0 <= blank < logits.shape[-1]:
        raise ValueError(f"blank {blank} is outside the {logits.shape[-1]} classes of the logits")
    recursions = _recursions(implementation, logits, labels)
    return _loss(recursions, blank, logits, logit_lengths, labels, label_lengths)


def blank_share(logits: Logits, logit_lengths: Lengths, *, blank: int = 0) -> tuple[Scalar, Scalar]:
    """(number of valid frames whose best class is blank, number of valid frames).

    The share is near 1 early in training; if it stays there, CTC has not found its alignments.
    """
    real = valid_frames(logits.shape[1], logit_lengths)
    best_is_blank = (jnp.argmax(logits, axis=-1) == blank) & real
    return jnp.sum(best_is_blank, dtype=jnp.float32), jnp.sum(real, dtype=jnp.float32)


def _recursions(implementation, logits, labels):
    if implementation == "auto":
        kernel, implementation = _AUTO.get(jax.default_backend(), (None, "scan"))
        if kernel and _module(kernel).supports(labels.shape[1], logits.dtype):
            implementation = kernel
    return _module(implementation).RECURSIONS


def _module(implementation):
    return importlib.import_module(f"{__name__}.{implementation}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(recursions, blank, logits, logit_lengths, labels, label_lengths):
    return _forward(recursions, blank, logits, logit_lengths, labels, label_lengths, store=False)[0]


def _forward(recursions, blank, logits, logit_lengths, labels, label_lengths, *, store):
    softmax = softmax_of(logits)
    trellis = trellis_of(logits, softmax, logit_lengths, labels, label_lengths, blank)
    log_prob, states = recursions.forward(trellis, store=store)
    loss = jnp.where(log_prob <= NEG / 2, jnp.inf, jnp.maximum(-log_prob, 0.0))
    loss = jnp.where(ctc_feasible(labels, label_lengths, logit_lengths), loss, 0.0)
    return loss, softmax, trellis, states


def _loss_fwd(recursions, blank, *inputs):
    loss, softmax, trellis, states = _forward(recursions, blank, *inputs, store=True)
    return loss, (*inputs, softmax, recursions.occupancy(trellis, states))


def _loss_bwd(_, blank, residuals, cotangent):
    logits, logit_lengths, labels, label_lengths, softmax, occupancy = residuals
    real = valid_frames(logits.shape[1], logit_lengths)
    real &= ctc_feasible(labels, label_lengths, logit_lengths)[:, None]

    def weighted(x):
        return jnp.where(real[..., None], x * cotangent[:, None, None], 0.0)

    wide = logits.astype(occupancy.dtype)
    gradient = lax.platform_dependent(
        weighted(jnp.exp((wide - softmax.peak) - softmax.log_sum)),
        weighted(jnp.transpose(occupancy, (1, 0, 2))),
        columns_of(labels, label_lengths, blank),
        cpu=_subtract_by_scatter,
        default=_subtract_by_product,
    )
    return gradient.astype(logits.dtype), None, None, None


def _subtract_by_scatter(probability, occupancy, columns):
    """Probability [B, T, K] minus the occupancies [B, T, W] of each class, in place by column."""
    return jax.vmap(lambda p, o, c: p.at[:, c].add(-o))(probability, occupancy, columns)


def _subtract_by_product(probability, occupancy, columns):
    """The same by a product with one-hot rows, where a scatter is slow or not deterministic."""
    one_hot = jax.nn.one_hot(columns, probability.shape[2], dtype=occupancy.dtype)
    precision = lax.Precision.HIGHEST
    return probability - jnp.einsum("btw,bwk->btk", occupancy, one_hot, precision=precision)


_loss.defvjp(_loss_fwd, _loss_bwd)
