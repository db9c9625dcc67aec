"""BiRQ: masked prediction of fixed codes and of soft labels that the encoder computes itself.

With theta the encoder, x the features, x~ their masked copy and p_theta the softmax of a head:

    anchor    y_t = argmax_v  cos(A x_t, c_v)                        fixed random quantiser
    enhanced  pi_t = softmax_v( (s_v(A' n(z_t)) + gumbel_v) / tau )   z = layer k of x, not masked

    F(theta) = mean over masked t of CE(pi_t, p_theta(x~)_t)         upper level, loss "enhanced"
    G(theta) = mean over masked t of CE(y_t, p_theta(x~)_t)          lower level, loss "anchor"

A training step descends along w1 grad F + w2 grad G; grad F passes through the prediction and
through the label. Source: Jiang, Cui, Kingsbury, Chen, Chen, "BiRQ: bi-level self-labeling random
quantization for self-supervised speech recognition", arXiv 2509.15430, equations 2, 4, 8 and 9.

The label's own gradient collapses sharp labels. CE(pi_t, p_t) falls as pi_t moves to any code that
the head expects, and the head expects the codes that are in use: with a prediction that does not
depend on the frame, p_t = m, the smallest loss is all labels on the largest entry of m. Ours, with
weight beta, is therefore the entropy of the mean label m of the masked frames of the batch:

    F_beta(theta) = F(theta) - beta H(m),    m = mean over masked t of pi_t

H(m) - F is a lower bound of the information between label and masked input (Barber and Agakov,
"The IM algorithm", NIPS 2003), and at beta = 1 the gradient on the labels is that of
-log(p_v / m_v): 0 where the prediction is p_t = m. It has no effect without the label gradient.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bljust_jax.bilevel.gradients import scale_gradient
from bljust_jax.bilevel.rng import row_keys
from bljust_jax.bilevel.types import Aux, Tree, Weights
from bljust_jax.common.config_schema import ranges as r
from bljust_jax.common.config_schema.field import Field
from bljust_jax.common.errors import UserError
from bljust_jax.common.shapes import Frames, Lengths, Mask, RowKeys, Scalar
from bljust_jax.models import heads
from bljust_jax.models.encoders import Encoder
from bljust_jax.objectives import best_rq
from bljust_jax.objectives.best_rq import Masking, QuantizerSize
from bljust_jax.ops import quantizer
from bljust_jax.ops.log_mel import normalise

FIELDS = {
    "enhanced_weight": Field(float, "w1, weight of the upper level", r.AT_LEAST_0),
    "anchor_weight": Field(float, "w2, weight of the lower level", r.AT_LEAST_0),
    "layer": Field(int, "k, block whose output is labelled; 0: 0.7 of the blocks", r.AT_LEAST_0),
    "label_gradient": Field(bool, "the enhanced loss has a gradient through its labels"),
    "label_entropy": Field(float, "beta, weight of the entropy of the mean label", r.AT_LEAST_0),
    "label_dropout": Field(bool, "dropout in the pass that makes labels"),
    "normalise": Field(str, "scale block k over time, or per frame", ("feature", "frame")),
    "score": Field(str, "score of an output and a code", ("cosine", "distance")),
    "sharpness": Field(float, "factor of the score, before noise", r.ABOVE_0),
    "noise": Field(bool, "Gumbel noise on the scores"),
    "hard": Field(bool, "one-hot labels, straight-through gradient"),
    "head": Field(str, "one softmax head for both losses, or one each", ("shared", "separate")),
    "codebook": Field(str, "one codebook for both labels, or one each", ("shared", "separate")),
    "tau_start": Field(float, "temperature at step 0", r.ABOVE_0),
    "tau_end": Field(float, "lowest temperature", r.ABOVE_0),
    "tau_decay": Field(float, "tau = max(tau_end, tau_start * tau_decay^step)", r.ABOVE_0),
}

NAME, ENHANCED, ANCHOR = "birq", "enhanced", "anchor"
EPS, TINY = 1e-5, 1e-30


@dataclasses.dataclass(frozen=True)
class SelfLabels:
    """Settings of the enhanced labels, named as in `config.birq`: the points that the paper leaves
    open.

    layer: k, the number of blocks whose output on the clean features is z
    normalise: z per "feature" over the utterance's time, or per "frame" over its features
    score, sharpness: s_v is `sharpness` times the cosine of A' z and c_v or, with "distance", minus
        the distance of the two scaled to length 1
    noise: Gumbel noise on the scores, drawn from the utterance's key and the frame index
    hard: one-hot labels with the gradient of the soft ones (straight-through)
    label_gradient: False stops the gradient of the labels before the encoder
    label_entropy: beta, weight of the entropy of the mean label, which with `config.accumulate` is
        that of a micro-batch
    label_dropout: the pass that computes z has dropout
    tau_start, tau_end, tau_decay: tau = max(end, start decay^step)
    teacher: z is that of another run's encoder, `extras.frozen["teacher"]` = (params, stats), and
        the label its nearest code: relabelling without label files
    """

    layer: int
    normalise: str = "feature"
    score: str = "cosine"
    sharpness: float | int = 1.0
    noise: bool = True
    hard: bool = False
    label_gradient: bool = True
    label_entropy: float | int = 0.0
    label_dropout: bool = False
    tau_start: float | int = 0.5
    tau_end: float | int = 0.5
    tau_decay: float | int = 1.0
    teacher: bool = False

    @classmethod
    def of(cls, config: Any, blocks: int, teacher: bool) -> "SelfLabels":
        names = {field.name for field in dataclasses.fields(cls)}
        own = {name: value for name, value in config.birq.items() if name in names}
        return cls(**own | {"layer": config.birq.layer or round(0.7 * blocks)}, teacher=teacher)

    def hidden(self, encoder: Encoder, params, extras, x, frames, rng) -> Frames:
        """Layer k of the features x, normalised; no gradient where `label_gradient` is False."""
        stats = extras.stats
        if self.teacher:
            params, stats = extras.frozen["teacher"]
        options = {"context": "full", "input_mask": None, "depth": self.layer, "rng": rng}
        train = self.label_dropout and not self.teacher
        z, lengths, *_ = encoder.encode(params, stats, x, frames, **options, train=train)
        if self.teacher or not self.label_gradient:
            z = jax.lax.stop_gradient(z)
        if self.normalise == "feature":
            return normalise(z, lengths)
        centred = z - jnp.mean(z, axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + EPS)

    def scores(
        self, vectors: Float[Array, "b t c d"], codebook: Float[Array, "c v d"]
    ) -> quantizer.CodeScores:
        """s_v of vectors of length 1."""
        s = quantizer.similarity(vectors, codebook)
        if self.score == "distance":
            s = -jnp.sqrt(jnp.maximum(2 - 2 * s, 0) + EPS)
        return self.sharpness * s

    @property
    def spread(self) -> bool:
        """Whether the loss has the entropy of the mean label: a constant without label gradient."""
        return self.label_entropy > 0 and self.label_gradient and not self.teacher

    def tau(self, step: Any) -> Scalar:
        return quantizer.annealed(step, self.tau_start, self.tau_end, self.tau_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiRq:
    """The losses of `losses` that are active, on one masked forward pass, in nats per frame.

    shared_head: one linear map "label_head" for both losses, else "enhanced_head" and "anchor_head"
    shared_codebook: the enhanced labels use the anchor's codebook, with a projection of their own
    entries, dtype: as in `best_rq.BestRq`

    `extras.frozen["birq"]` = {"anchor": {"projection", "codebook"}, "enhanced": the same, or the
    projection alone}. Each loss is a sum over masked frames, each frame the mean of its codebooks;
    its weight is their number. A loss that `extras.scale` does not name is not computed: with the
    anchor alone this is BEST-RQ, and at scale 0 its gradient bit for bit. The masked pass updates
    the encoder's running statistics (batch norm), the pass for labels reads them.
    Metrics: `<loss>/accuracy` of the head's first choice; `enhanced/entropy` of the soft labels in
    nats, a lower bound of F; with the entropy term `enhanced/mean_entropy`, H(m), so that F is
    the logged loss plus beta times it; `birq/agreement`, share of frames whose labels are the same
    code; `birq/masked_share`; `codebook/{anchor,enhanced}/...` (`quantizer.usage_metrics`) over
    masked frames.
    """

    encoder: Encoder
    losses: tuple[str, ...]
    labels: SelfLabels
    masking: Masking
    size: QuantizerSize
    shared_head: bool = True
    shared_codebook: bool = True
    stream: str = "unlabelled"
    sample_rate: int = 16000
    entries: int = quantizer.ENTRIES
    dtype: str = "float32"
    kind: None = None

    @property
    def streams(self) -> tuple[str, ...]:
        return (self.stream,)

    @property
    def name(self) -> str:
        return "+".join(self.losses)

    @property
    def head_owners(self) -> dict[str, frozenset[str]]:
        """{key of a head: the losses that train it}."""
        if self.shared_head or len(self.losses) == 1:
            return {"label_head": frozenset(self.losses)}
        return {f"{loss}_head": frozenset({loss}) for loss in self.losses}

    def init(self, rng: Any) -> tuple[dict, dict]:
        """Heads, and {"birq": both quantisers} with, for relabelling, {"teacher": zeros of the
        encoder's shapes}."""
        owners, size = self.head_owners, self.size
        *keys, anchor, enhanced = jax.random.split(rng, len(owners) + 2)
        out = size.codebooks * size.codes
        params = {
            name: heads.init(key, self.encoder.dim, out)
            for name, key in zip(owners, keys, strict=True)
        }
        quantizers = {
            ANCHOR: quantizer.init_random_projection(anchor, *size),
            ENHANCED: quantizer.init_random_projection(
                enhanced, *size._replace(dim=self.encoder.dim)
            ),
        }
        if self.shared_codebook:
            del quantizers[ENHANCED]["codebook"]
        frozen = {NAME: quantizers}
        if self.labels.teacher:
            teacher, stats = jax.eval_shape(self.encoder.init, rng)
            frozen["teacher"] = jax.tree.map(jnp.zeros_like, Weights({"encoder": teacher}, stats))
        return params, frozen

    def cost(self, losses: frozenset[str], seconds: float | int) -> float:
        """Encoder FLOPs of one training step with these losses active, per row of `seconds` padded
        seconds: forward 1, backward 2, the pass for labels included."""
        samples = round(seconds * self.sample_rate)
        total = 3 * self.encoder.flops(samples)
        if ENHANCED in losses:
            passes = 1 if self.labels.teacher or not self.labels.label_gradient else 3
            total += passes * self.encoder.flops(samples, self.labels.layer)
        return total

    def head_cost(self, losses: frozenset[str], seconds: float | int) -> float | int:
        """FLOPs of heads and quantisers in that step, per row, counted on all frames: a shared head
        is applied once; the enhanced labels have a backward pass if they have a gradient."""
        frames = self.encoder.frames(round(seconds * self.sample_rate))
        heads_used = len([name for name, own in self.head_owners.items() if own & losses])
        total = 6 * heads_used * self.encoder.dim * self.size.codebooks * self.size.codes
        if ANCHOR in losses:
            total += self.size.flops()
        if ENHANCED in losses:
            passes = 3 if self.labels.label_gradient and not self.labels.teacher else 1
            total += passes * self.size._replace(dim=self.encoder.dim).flops()
        return frames * total

    def predict(self, params: Any, hidden: Float[Array, "b f d"], scale: Any) -> dict[str, Any]:
        """{loss: logits [B, F, C, V]}; cotangents are scaled before they reach shared arrays."""

        def logits(head, h):
            return best_rq.split_codebooks(heads.apply(params[head], h, self.dtype), self.size)

        if "label_head" in self.head_owners:
            both = logits("label_head", hidden)
            return {loss: scale_gradient(both, w) for loss, w in scale.items()}
        return {n: logits(f"{n}_head", scale_gradient(hidden, w)) for n, w in scale.items()}

    def apply(self, params, extras, batch, rng):
        data, frozen = batch[self.stream], extras.frozen[NAME]
        scale = {loss: extras.scale[loss] for loss in self.losses if loss in extras.scale}
        noise_rng, label_rng = jax.random.split(jax.random.fold_in(rng, 1))
        masked = best_rq.encode_masked(self.encoder, self.masking, params, extras, data, rng, NAME)
        x, frames, mask, encoded = masked
        own = frozen[ANCHOR] | frozen[ENHANCED]  # a shared codebook is the anchor's
        codes, vectors = {}, []
        if ANCHOR in scale:
            codes[ANCHOR] = best_rq.anchor_labels(frozen[ANCHOR], x, frames, self.masking.stack)
        if ENHANCED in scale:
            z = self.labels.hidden(self.encoder, params, extras, x, frames, label_rng)
            if self.labels.teacher:
                codes[ENHANCED] = quantizer.nearest(own, z)
            else:
                z = scale_gradient(z, scale[ENHANCED])
                vectors = [quantizer.project(own["projection"], z)]
        frame_sums = FrameSums(
            labels=self.labels,
            predict=lambda h: self.predict(params, h, scale),
            given=tuple(codes),
            codebook=own["codebook"],
            keys=row_keys(noise_rng, data["ids"]),
            tau=self.labels.tau(extras.step),
        )
        sum_over_frames = functools.partial(
            quantizer.sum_over_frames, width=own["codebook"][..., 0].size, entries=self.entries
        )
        if vectors and self.labels.spread:
            clean = jax.lax.stop_gradient(vectors[0])
            total = sum_over_frames(frame_sums.sum_labels, mask, clean)
            frame_sums = dataclasses.replace(
                frame_sums, mean_label=total / jnp.maximum(jnp.sum(mask), 1)
            )
        sums = sum_over_frames(frame_sums, mask, encoded.output, *codes.values(), *vectors)
        losses, metrics = _report(sums, mask, encoded.lengths)
        return losses, Aux(metrics, encoded.stats)


def build_levels(
    config: Any, encoder: Encoder, losses: tuple[str, ...], *, teacher: bool = False
) -> BiRq:
    """`losses` as `config.best_rq` (masking and quantiser) and `config.birq` (the rest) set them.

    teacher: see `SelfLabels`. Raises UserError for a `config.birq.layer` beyond the encoder's
    blocks.
    """
    layer, blocks = config.birq.layer, encoder.blocks
    if not 0 <= layer <= blocks:
        raise UserError(f"config.birq.layer={layer} must be 1 .. {blocks}, or 0 for 0.7 of them")
    return BiRq(
        encoder=encoder,
        losses=losses,
        sample_rate=config.data.sample_rate,
        labels=SelfLabels.of(config, blocks, teacher),
        masking=Masking.of(config),
        size=QuantizerSize.of(config),
        shared_head=config.birq.head == "shared",
        shared_codebook=config.birq.codebook == "shared",
        dtype=heads.dtype_of(config),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class FrameSums:
    """Sums of losses and metrics over masked frames, for `quantizer.sum_over_frames`."""

    labels: SelfLabels
    predict: Callable  # hidden [B, F, D] -> {loss: logits [B, F, C, V]}
    given: tuple[str, ...]  # losses whose labels are given as codes
    codebook: Float[Array, "c v d"]  # of the enhanced labels
    keys: RowKeys  # of their noise
    tau: Scalar
    mean_label: Float[Array, "c v"] | None = None  # m, with the entropy term

    def __call__(self, positions, wanted, hidden, *labels):
        """{"nats", "hits": a number per loss; "used": counts [C, V] per loss; "entropy",
        "agreement"}.

        labels: the codes [B, F, C] of each loss in `given`, then, for soft labels, the vectors
            [B, F, C, d] of length 1 of the enhanced loss
        """
        logits = self.predict(hidden)
        codes = dict(zip(self.given, labels, strict=False))
        nats, hits, sums = {}, {}, {}
        for n, y in codes.items():
            nats[n], hits[n] = best_rq.score_labels(logits[n], y, wanted)

        def total(x):
            x = jnp.mean(x, axis=-1, dtype=jnp.promote_types(x.dtype, jnp.float32))
            return jnp.sum(jnp.where(wanted, x, 0))

        if len(labels) > len(codes):
            n = ENHANCED
            chosen, soft, codes[n] = self.choose(labels[-1], positions)
            nats[n] = total(quantizer.soft_nats(logits[n], chosen))
            hits[n] = total(jnp.argmax(logits[n], axis=-1) == codes[n])
            entropy = jnp.log(quantizer.perplexity(jax.lax.stop_gradient(soft)))
            sums["entropy"] = total(entropy)
            if self.mean_label is not None:
                # sums to -frames H(m); m is constant here, as the labels' changes sum to 0
                log_mean = jnp.log(jnp.maximum(self.mean_label, TINY))
                sums["spread"] = -total(jnp.sum(soft * log_mean[None, None], axis=-1))
                nats[n] -= self.labels.label_entropy * sums["spread"]
        if len(codes) == 2:
            sums["agreement"] = total(codes[ENHANCED] == codes[ANCHOR])
        size = self.codebook.shape[1]
        used = {n: quantizer.count_codes(y, wanted, size) for n, y in codes.items()}
        return sums | {"nats": nats, "hits": hits, "used": used}

    def choose(self, vectors, positions):
        """(labels [B, F, C, V], the soft ones, the codes of largest score [B, F, C])."""
        s = self.labels.scores(vectors, self.codebook)
        if self.labels.noise:
            s = s + quantizer.gumbel(self.keys, positions, self.codebook.shape[:2])
        soft = quantizer.select(s, self.tau)
        chosen = quantizer.select(s, self.tau, hard=True) if self.labels.hard else soft
        return chosen, soft, jnp.argmax(s, axis=-1)

    def sum_labels(self, positions, wanted, vectors) -> Float[Array, "c v"]:
        """Sum of the soft labels over the wanted frames."""
        _, soft, _ = self.choose(vectors, positions)
        return jnp.sum(jnp.where(wanted[..., None, None], soft, 0), axis=(0, 1))


def _report(sums: Tree, mask: Mask, lengths: Lengths):
    """Losses and metrics of the sums over masked frames."""
    count = jnp.sum(mask, dtype=jnp.float32)
    metrics = {f"{n}/accuracy": (hits, count) for n, hits in sums["hits"].items()}
    if "entropy" in sums:
        metrics[f"{ENHANCED}/entropy"] = (sums["entropy"], count)
    if "spread" in sums:
        metrics[f"{ENHANCED}/mean_entropy"] = (sums["spread"], count)
    if "agreement" in sums:
        metrics[f"{NAME}/agreement"] = (sums["agreement"], count)
    metrics[f"{NAME}/masked_share"] = (count, jnp.sum(lengths, dtype=jnp.float32))
    for n, counts in sums["used"].items():
        metrics |= quantizer.usage_metrics(n, counts)
    return {n: (nats, count) for n, nats in sums["nats"].items()}, metrics
