"""BiRQ: masked prediction of two kinds of labels, of which the encoder makes one itself.

With theta the encoder, x the features, x~ their masked copy and p_theta the softmax of a head:

    anchor    y_t = argmax_v  cos(A x_t, c_v)                        fixed random quantiser
    enhanced  pi_t = softmax_v( (s_v(A' n(z_t)) + gumbel_v) / tau )   z = layer k of x, not masked

    F(theta) = mean over masked t of CE(pi_t, p_theta(x~)_t)         upper level, loss "enhanced"
    G(theta) = mean over masked t of CE(y_t, p_theta(x~)_t)          lower level, loss "anchor"

and a step goes down w1 grad F + w2 grad G, where grad F passes through the prediction and through
the label. Source: Jiang, Cui, Kingsbury, Chen, Chen, "BiRQ: bi-level self-labeling random
quantization for self-supervised speech recognition", arXiv 2509.15430, equations 2, 4, 8 and 9.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.rng import row_keys
from bljust_jax.bilevel.types import Aux, Objective, Tree
from bljust_jax.common.errors import UserError
from bljust_jax.objectives import best_rq
from bljust_jax.ops import quantizer
from bljust_jax.ops.log_mel import normalise

ENHANCED, ANCHOR = "enhanced", "anchor"
EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class SelfLabels:
    """How the encoder labels a frame: the open points of the paper.

    layer: k, whose output on the clean features is z
    normalise: z "feature": a feature over the utterance's time; "frame": over a frame's features
    score, sharpness: s_v is `sharpness` times the cosine of A' z and c_v or, with "distance", minus
        the distance of the two made unit vectors
    temperature: (start, end, decay): tau = max(end, start decay^step)
    noise: Gumbel noise on the scores, drawn from the utterance's key and the frame's place
    hard: one-hot labels with the gradient of the soft ones (straight-through)
    gradient: False keeps the gradient of the labels out of the encoder
    dropout: the pass that makes z has dropout
    teacher: z is that of another run's encoder, `extras.frozen["teacher"]` with its own (params,
        stats), and the label its nearest code: relabelling without label files
    """

    layer: int
    normalise: str = "feature"
    score: str = "cosine"
    sharpness: float | int = 1.0
    temperature: tuple[float | int, float | int, float | int] = (0.5, 0.5, 1.0)
    noise: bool = True
    hard: bool = False
    gradient: bool = True
    dropout: bool = False
    teacher: bool = False

    def hear(self, encode, params, extras, x, frames, rng) -> Float[Array, "b t d"]:
        """Layer k of the features x, normalised; no gradient where none is wanted."""
        stats = extras.stats
        if self.teacher:
            params, stats = extras.frozen["teacher"]
        how = {"stats": stats, "context": "full", "hide": None, "upto": self.layer}
        train = self.dropout and not self.teacher
        z, lengths, *_ = encode(params, x, frames, **how, train=train, rng=rng)
        if self.teacher or not self.gradient:
            z = jax.lax.stop_gradient(z)
        if self.normalise == "feature":
            return normalise(z, lengths)
        centred = z - jnp.mean(z, axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + EPS)

    def scores(
        self, vectors: Float[Array, "b t c d"], codebook: Float[Array, "c v d"]
    ) -> Float[Array, "b t c v"]:
        """s_v of unit vectors."""
        s = quantizer.similarity(vectors, codebook)
        if self.score == "distance":
            s = -jnp.sqrt(jnp.maximum(2 - 2 * s, 0) + EPS)
        return self.sharpness * s

    def tau(self, step: Any) -> Float[Array, ""]:
        start, end, decay = self.temperature
        return quantizer.annealed(step, start, end, decay)


class Levels(NamedTuple):
    """Both losses bound to an encoder. What they own of the parameters: `owners`, by the name of
    the head."""

    objective: Objective
    # rng -> ({head: its parameters}, frozen["birq"])
    init: Callable[[Any], tuple[Tree, Tree]]
    owners: dict[str, frozenset[str]]
    # (active losses, padded seconds of one row) -> encoder FLOPs of one training step
    cost: Callable[[frozenset[str], float], float]


def bind_levels(
    config: Any,
    encoder: Any,
    encode: Callable,
    linear: Any,
    *,
    losses: tuple[str, ...] = (ENHANCED, ANCHOR),
    teacher: bool = False,
) -> Levels:
    """`losses` as `config.best_rq` (masks and quantiser) and `config.birq` (all else) set them.

    Heads: {"label_head"} for both losses or, with `config.birq.head="separate"`, one a loss; linear
    maps to all codebooks' codes. Frozen: {"anchor": {"projection", "codebook"}, "enhanced": the
    same, or a projection alone where the codebook is shared}. `teacher`: see `make`.
    """
    check(config, encoder.blocks)
    q, b, rate = config.best_rq, config.birq, config.data.sample_rate
    depth = b.layer or round(0.7 * encoder.blocks)
    if len(losses) > 1 and b.head == "separate":
        owners = {f"{loss}_head": frozenset({loss}) for loss in losses}
    else:
        owners = {"label_head": frozenset(losses)}

    def init(rng):
        *keys, anchor, enhanced = jax.random.split(rng, len(owners) + 2)
        out = q.codebooks * q.codes
        heads = {
            name: linear.init(key, encoder.dim, out) for name, key in zip(owners, keys, strict=True)
        }
        size = (q.codes, q.code_dim, q.codebooks)
        dim = q.stack * config.features.n_mels
        frozen = {
            ANCHOR: quantizer.init_random_projection(anchor, dim, *size),
            ENHANCED: quantizer.init_random_projection(enhanced, encoder.dim, *size),
        }
        if b.codebook == "shared":
            del frozen[ENHANCED]["codebook"]
        return heads, frozen

    def predict(params, hidden, scale):
        """{loss: logits [B, F, C, V]}, each with its level's weight on its way back."""

        def logits(head, h):
            return linear.apply(params[head], h).reshape(*h.shape[:2], q.codebooks, q.codes)

        if "label_head" in owners:
            both = logits("label_head", hidden)
            return {loss: scale_gradient(both, w) for loss, w in scale.items()}
        return {n: logits(f"{n}_head", scale_gradient(hidden, w)) for n, w in scale.items()}

    def cost(wanted, seconds):
        samples = round(seconds * rate)
        passes = 3 * encoder.flops(samples)
        if ENHANCED in wanted:
            labels = 1 if teacher or not b.label_gradient else 3
            passes += labels * encoder.flops(samples, depth)
        return passes

    objective = make(
        losses=losses,
        stream="unlabelled",
        features=encoder.features,
        encode=encode,
        predict=predict,
        labels=SelfLabels(
            layer=depth,
            normalise=b.normalise,
            score=b.score,
            sharpness=b.sharpness,
            temperature=(b.tau_start, b.tau_end, b.tau_decay),
            noise=b.noise,
            hard=b.hard,
            gradient=b.label_gradient,
            dropout=b.label_dropout,
            teacher=teacher,
        ),
        stack=q.stack,
        probability=q.mask_prob,
        span=q.mask_length,
        noise_std=q.noise_std,
    )
    return Levels(objective, init, owners, cost)


def check(config: Any, blocks: int) -> None:
    """UserError for a `config.birq.layer` that is none of the encoder's `blocks`."""
    layer = config.birq.layer
    if not 0 <= layer <= blocks:
        raise UserError(f"config.birq.layer={layer} must be 1 .. {blocks}, or 0 for 0.7 of them")


def make(
    *,
    losses: tuple[str, ...],
    stream: str,
    features: Callable,
    encode: Callable,
    predict: Callable,
    labels: SelfLabels,
    stack: int,
    probability: float,
    span: int,
    noise_std: float,
    entries: int = quantizer.ENTRIES,
    name: str = "birq",
) -> Objective:
    """The losses of `losses` that are active, on one masked forward pass, in nats a frame.

    features: `Encoder.features`, of log-mel; encode: `Encoder.apply`, which finds its own part of
        params and stats
    predict(params, hidden [B, F, D], {loss: scale}) -> {loss: logits [B, F, C, V]}; a cotangent is
        scaled (`scale_gradient`) before it reaches what both losses read
    stack, probability, span, noise_std, entries: as in `best_rq.make`

    `extras.frozen[name]` as in `bind_levels`. Each loss is a sum over masked frames, each frame the
    mean of its codebooks, and its weight is their number. A loss that `extras.scale` does not hold
    costs nothing: with the anchor alone this is BEST-RQ, and at scale 0 its gradient bit for bit.
    Running statistics that the encoder has (batch norm) move with the masked pass; the pass that
    makes labels reads them.
    Metrics: `<loss>/accuracy` of the head's first choice, `enhanced/entropy` of the soft labels in
    nats (the least that this loss can be), `<name>/agreement` (both labels the same code),
    `<name>/masked_share`, and `codebook/{anchor,enhanced}/...` (`quantizer.usage_metrics`) over
    masked frames.
    """
    spans = {"stack": stack, "probability": probability, "span": span, "noise_std": noise_std}

    def apply(params, extras, batch, rng):
        data, frozen = batch[stream], extras.frozen[name]
        scale = {loss: extras.scale[loss] for loss in losses if loss in extras.scale}
        mask_rng, encoder_rng = jax.random.split(rng)
        noise_rng, label_rng = jax.random.split(jax.random.fold_in(rng, 1))
        x, frames, _ = features(data["audio"], data["audio_lengths"], keys=None, train=True)
        best_rq.check_features(name, x)
        masked, mask = best_rq.mask_input(x, frames, row_keys(mask_rng, data["ids"]), **spans)
        how = {"context": "full", "hide": None, "train": True, "rng": encoder_rng}
        hidden, lengths, _, stats = encode(params, masked, frames, stats=extras.stats, **how)
        best_rq.check_stack("best_rq", stack, mask, hidden)

        own = frozen[ANCHOR] | frozen[ENHANCED]  # a shared codebook is the anchor's
        given, vectors = {}, []
        if ANCHOR in scale:
            given[ANCHOR] = best_rq.anchor_labels(frozen[ANCHOR], x, frames, stack)
        if ENHANCED in scale:
            z = labels.hear(encode, params, extras, x, frames, label_rng)
            if labels.teacher:
                given[ENHANCED] = quantizer.nearest(own, z)
            else:
                z = scale_gradient(z, scale[ENHANCED])
                vectors = [quantizer.project(own["projection"], z)]
        score = Score(
            labels=labels,
            predict=lambda h: predict(params, h, scale),
            given=tuple(given),
            codebook=own["codebook"],
            keys=row_keys(noise_rng, data["ids"]),
            tau=labels.tau(extras.step),
        )
        sums = quantizer.sum_over_frames(
            *(score, mask, hidden, *given.values(), *vectors),
            width=own["codebook"][..., 0].size,
            entries=entries,
        )
        reported, metrics = _report(name, sums, mask, lengths)
        return reported, Aux(metrics, {"encoder": stats} if stats else {})

    return Objective(losses=losses, streams=(stream,), apply=apply)


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """What is summed over masked frames, for `quantizer.sum_over_frames`."""

    labels: SelfLabels
    predict: Callable  # hidden [B, F, D] -> {loss: logits [B, F, C, V]}
    given: tuple[str, ...]  # losses whose labels are codes already
    codebook: Float[Array, "c v d"]  # of the labels that are made here
    keys: Key[Array, "b"]  # of their noise
    tau: Float[Array, ""]

    def __call__(self, positions, wanted, hidden, *labels):
        """{"nats", "hits": a number a loss; "used": counts [C, V] a loss; "entropy", "agreement"}.

        labels: the codes [B, F, C] of each loss in `given`, then, if there is one more, the
        unit vectors [B, F, C, d] of the enhanced labels.
        """
        logits = self.predict(hidden)
        chosen = dict(zip(self.given, labels, strict=False))
        frames = {"nats": {n: quantizer.hard_nats(logits[n], y) for n, y in chosen.items()}}
        if len(labels) > len(chosen):
            soft, frames["entropy"], chosen[ENHANCED] = self.choose(labels[-1], positions)
            frames["nats"][ENHANCED] = quantizer.soft_nats(logits[ENHANCED], soft)
        if len(chosen) == 2:
            frames["agreement"] = chosen[ENHANCED] == chosen[ANCHOR]
        frames["hits"] = {n: jnp.argmax(logits[n], axis=-1) == y for n, y in chosen.items()}

        def total(x):
            x = jnp.mean(x, axis=-1, dtype=jnp.promote_types(x.dtype, jnp.float32))
            return jnp.sum(jnp.where(wanted, x, 0))

        codes = self.codebook.shape[1]
        used = {n: quantizer.count_codes(y, wanted, codes) for n, y in chosen.items()}
        return jax.tree.map(total, frames) | {"used": used}

    def choose(self, vectors, positions):
        """(labels [B, F, C, V], entropy of the soft ones [B, F, C], the codes of largest score)."""
        s = self.labels.scores(vectors, self.codebook)
        if self.labels.noise:
            s = s + quantizer.gumbel(self.keys, positions, self.codebook.shape[:2])
        soft = quantizer.select(s, self.tau)
        entropy = jnp.log(quantizer.perplexity(jax.lax.stop_gradient(soft)))
        chosen = quantizer.select(s, self.tau, hard=True) if self.labels.hard else soft
        return chosen, entropy, jnp.argmax(s, axis=-1)


def _report(name: str, sums: Tree, mask: Bool[Array, "b t"], lengths: Int[Array, "b"]):
    """Losses and metrics of the sums over masked frames."""
    count = jnp.sum(mask, dtype=jnp.float32)
    metrics = {f"{n}/accuracy": (hits, count) for n, hits in sums["hits"].items()}
    if "entropy" in sums:
        metrics[f"{ENHANCED}/entropy"] = (sums["entropy"], count)
    if "agreement" in sums:
        metrics[f"{name}/agreement"] = (sums["agreement"], count)
    metrics[f"{name}/masked_share"] = (count, jnp.sum(lengths, dtype=jnp.float32))
    for n, counts in sums["used"].items():
        metrics |= quantizer.usage_metrics(n, counts)
    return {n: (nats, count) for n, nats in sums["nats"].items()}, metrics
