"""BL-JUST: CTC over a shared encoder, subject to that encoder being good for CPC.

ICASSP 2024 (arXiv 2401.06980) and the journal version with its three phases (arXiv 2412.08548):

    phase     trains                          rate   direction
    explore   encoder, cpc_head               rho    grad g
    joint     encoder, ctc_head, cpc_head     alpha  encoder: grad f + gamma_k grad g
                                                     each head: its own plain gradient
    finetune  encoder, ctc_head               tau    grad f

f is CTC on the labelled stream, g is CPC on the unlabelled one. The baselines are other phase
tables over the same parts, at the same number of encoder gradients (a joint step takes two).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bljust_jax import bilevel, optim
from bljust_jax.errors import UserError
from bljust_jax.models import heads
from bljust_jax.models.conformer import Conformer
from bljust_jax.objectives import cpc, ctc, shared
from bljust_jax.ops import features as feature_ops
from bljust_jax.ops.ctc import IMPLEMENTATIONS
from bljust_jax.ops.specaugment import specaugment
from bljust_jax.recipes import Facts
from bljust_jax.system import Group, Phase, Recipe

CTC, CPC = "ctc", "cpc"
LEVELS = {
    "explore": ((CPC,),),
    "joint": ((CTC,), (CPC,)),
    "finetune": ((CTC,),),
    "supervised": ((CTC,),),
    "pretrain": ((CPC,),),
    "turn_ctc": ((CTC,),),
    "turn_cpc": ((CPC,),),
}


def build(config: Any, facts: Facts) -> Recipe:
    check_choices(config)
    model = make_encoder(config)
    frontend = make_features(config)
    head_size, width = facts.vocab_size, config.cpc.width

    def init(rng):
        k_enc, k_ctc, k_project, k_predict = jax.random.split(rng, 4)
        encoder, stats = model.init(k_enc)
        params = {
            "encoder": encoder,
            "ctc_head": heads.init(k_ctc, model.dim, head_size),
            "cpc_head": {
                "project": heads.init(k_project, model.dim, width),
                "predict": heads.init(k_predict, model.dim, width, steps=config.cpc.steps),
            },
        }
        blank = {
            "mean": jnp.zeros(config.features.n_mels),
            "std": jnp.ones(config.features.n_mels),
        }
        return params, {}, {**stats, "features": blank}

    def encode(params, x, lengths, *, context, train, rng):
        return model.apply(params["encoder"], x, lengths, context=context, train=train, rng=rng)

    def logits(params, h):
        return heads.apply(params["ctc_head"], h)

    def project(params, z):
        return heads.apply(params["cpc_head"]["project"], z)

    def predict_ahead(params, c):
        return jnp.moveaxis(heads.apply(params["cpc_head"]["predict"], c), 2, 0)

    context = config.ctc.context

    def predict(params, stats, batch):
        stored = stats["features"] if context == "causal" else None
        audio, lengths = batch["audio"], batch["audio_lengths"]
        x, lengths = frontend(audio, lengths, keys=None, train=False, stats=stored)
        h, lengths, _, _ = encode(params, x, lengths, context=context, train=False, rng=None)
        return logits(params, h), lengths

    parts = {"features": frontend, "encode": encode}
    upper = {
        "head": logits,
        "reduction": config.ctc.reduction,
        "implementation": config.ctc.implementation,
    }
    lower = {"project": project, "predict": predict_ahead} | {
        name: config.cpc[name]
        for name in ("steps", "first_step", "temperature", "negatives", "target_gradient")
    }
    if config.share_forward:
        check_shareable(config)
        readers = {CTC: ctc.reader(name=CTC, **upper), CPC: cpc.reader(name=CPC, **lower)}
        objectives = (shared.make(stream="labelled", readers=readers, **parts),)
    else:
        objectives = (
            ctc.make(stream="labelled", name=CTC, context=context, **parts, **upper),
            cpc.make(
                stream="unlabelled",
                name=CPC,
                context=config.cpc.context,
                chunk=tuple(config.cpc.chunk),
                sample_rate=config.data.sample_rate,
                **parts,
                **lower,
            ),
        )

    clip, decay = config.optim.clip, config.optim.weight_decay
    group = partial(Group, clip=clip, weight_decay=decay)
    return Recipe(
        objectives=objectives,
        groups=(
            group("encoder", r"^encoder/", frozenset({CTC, CPC})),
            group("ctc_head", r"^ctc_head/", frozenset({CTC})),
            group("cpc_head", r"^cpc_head/", frozenset({CPC})),
        ),
        phases=make_phases(config, facts.steps_per_epoch),
        init=init,
        combiner=bilevel.combine_levels(),
        predict=predict,
        log_mel=make_log_mel(config),
        frames=partial(_frames, config, model),
        statistics=partial(feature_statistics, config),
        cost=partial(_cost, config, model),
        gradients=config.gradients,
        head_scale=config.head_scale,
        ema_decay=config.ema_decay,
    )


CHOICES = {
    "method": ("bljust", "weighted_sum", "ptft", "supervised", "alternating"),
    "model.subsampling": ("conv2d", "parakeet"),
    "ctc.reduction": ("label", "utterance"),
    "ctc.context": ("full", "causal"),
    "ctc.implementation": IMPLEMENTATIONS,
    "cpc.context": ("causal", "chunked"),
    "penalty.per": ("step", "epoch"),
    "phases.unit": ("step", "epoch"),
    "phases.explore_when": ("once", "every_epoch"),
    "gradients": ("separate", "fused"),
    "head_scale": ("plain", "penalised"),
    **{f"lr.{phase}.shape": tuple(optim.SHAPES) for phase in LEVELS},
    **{f"lr.{phase}.moments": ("keep", "reset") for phase in LEVELS},
}


def check_choices(config: Any) -> None:
    """UserError for a field that is none of its choices."""
    for field, choices in CHOICES.items():
        value = config
        for key in field.split("."):
            value = value[key]
        if value not in choices:
            raise UserError(f"config.{field}={value!r} is none of {', '.join(choices)}")


def check_shareable(config: Any) -> None:
    """UserError where one forward pass cannot serve both losses, with the reason."""
    masks = config.specaugment.freq_masks + config.specaugment.time_masks
    data = config.data
    whole = data.labelled_fraction == 1 and data.labelled_speakers == 0
    for met, reason in (
        (config.gradients == "fused", 'one backward pass serves both: set gradients="fused"'),
        (config.ctc.context == "causal", 'CPC must not see the future: set ctc.context="causal"'),
        (config.cpc.context == "causal", "windows encoded apart are other passes"),
        (masks == 0, "CPC reads unmasked features: set specaugment's numbers of masks to 0"),
        (not data.unlabelled, "both levels hear data.train: data.unlabelled must be empty"),
        (whole, "both levels hear data.train: all of it must be labelled"),
    ):
        if not met:
            raise UserError(f"config.share_forward=True: {reason}")


# Parts


def make_encoder(config: Any) -> Conformer:
    return Conformer(n_mels=config.features.n_mels, **config.model.to_dict())


def make_log_mel(config: Any):
    return partial(feature_ops.log_mel, sample_rate=config.data.sample_rate, **config.features)


def make_features(config: Any):
    """int16 audio -> normalised log-mel, inside the jitted step: the one door for training and
    evaluation.

    With `stats` they are normalised by stored statistics (nothing of the future leaks), without by
    the utterance's own. With `keys` (one an utterance) SpecAugment is applied.
    """
    mel = make_log_mel(config)
    masks = config.specaugment.to_dict()

    def features(audio, lengths, *, keys, train, stats=None):
        x, lengths = mel(audio, lengths)
        stored = None if stats is None else (stats["mean"], stats["std"])
        x = feature_ops.normalise(x, lengths, stored)
        if train and keys is not None:
            x = specaugment(x, lengths, keys, **masks)
        return x, lengths

    return features


def feature_statistics(config: Any, batches: Any) -> dict:
    """{"features": {"mean" [M], "std" [M]}} of log-mel over the given batches, for causal
    contexts."""
    mel = make_log_mel(config)
    moments = jax.jit(lambda audio, lengths: feature_ops.moments(*mel(audio, lengths)))
    total, squares, count = 0.0, 0.0, 0.0
    for batch in batches:
        s, q, n = jax.device_get(moments(batch["audio"], batch["audio_lengths"]))
        total, squares, count = total + s.astype(float), squares + q.astype(float), count + float(n)
    mean, std = feature_ops.mean_and_std(total, squares, count)
    return {"features": {"mean": jnp.asarray(mean), "std": jnp.asarray(std)}}


def _frames(config: Any, model: Conformer, samples: int) -> int:
    """Frames of logits that `samples` samples of audio give."""
    return model.frames(
        feature_ops.frame_count(samples, config.features.window, config.features.hop)
    )


def _cost(config: Any, model: Conformer, losses: frozenset[str], seconds: float) -> float:
    """Forward FLOPs of the encoder for one row of a batch of an objective, padding included."""

    def flops(s):
        samples = round(s * config.data.sample_rate)
        return model.flops(
            feature_ops.frame_count(samples, config.features.window, config.features.hop)
        )

    if CPC in losses and config.cpc.context == "chunked":
        past, future, slide = config.cpc.chunk
        windows = max(0, int((seconds - past - future) // slide) + 1)
        return windows * (flops(past) + flops(future))
    return flops(seconds)


# Phases


def make_phases(config: Any, steps_per_epoch: Any) -> tuple[Phase, ...]:
    """The phase table of `config.method`, at the compute of BL-JUST's phases."""
    length = config.phases
    labelled = steps_per_epoch["labelled"]
    unlabelled = labelled if config.share_forward else steps_per_epoch["unlabelled"]
    unit, unit_ssl = (1, 1) if length.unit == "step" else (labelled, unlabelled)
    explore, joint, finetune = (
        round(length.explore * unit_ssl),
        round(length.joint * unit),
        round(length.finetune * unit),
    )
    passes = joint if config.share_forward else 2 * joint
    budget = explore + passes + finetune
    make = partial(_phase, config, labelled)
    if config.method in ("bljust", "weighted_sum"):
        rounds = 1 if length.explore_when == "once" else max(1, round(joint / labelled))
        table = _rounds([("explore", explore), ("joint", joint)], rounds) + [("finetune", finetune)]
    elif config.method == "supervised":
        table = [("supervised", budget)]
    elif config.method == "ptft":
        table = [("pretrain", budget - budget // 2), ("supervised", budget // 2)]
    else:
        half = passes // 2
        rounds = max(1, round(half / length.turn))
        turns = _rounds([("turn_cpc", half), ("turn_ctc", passes - half)], rounds)
        table = [("explore", explore), *turns, ("finetune", finetune)]
    totals: dict[str, int] = {}
    for name, steps in table:
        totals[name] = totals.get(name, 0) + steps
    return tuple(make(name, steps, totals[name]) for name, steps in table if steps > 0)


def _rounds(parts: list[tuple[str, int]], rounds: int) -> list[tuple[str, int]]:
    """Each part cut into `rounds` nearly equal stretches, interleaved."""
    return [
        (name, steps * (r + 1) // rounds - steps * r // rounds)
        for r in range(rounds)
        for name, steps in parts
    ]


def _phase(config: Any, steps_per_epoch: int, name: str, steps: int, total: int) -> Phase:
    rate = config.lr[name]
    encoder = optim.schedule(rate.shape, rate.peak, rate.warmup, total)
    heads_rate = optim.schedule(rate.shape, rate.peak * config.lr.heads, rate.warmup, total)
    levels = LEVELS[name]
    return Phase(
        name=name,
        steps=steps,
        levels=levels,
        weights=_weights(config, steps_per_epoch) if len(levels) > 1 else (lambda k: (1.0,)),
        lr={"encoder": encoder, "ctc_head": heads_rate, "cpc_head": heads_rate},
        moments=rate.moments,
    )


def _weights(config: Any, steps_per_epoch: int):
    """(1, gamma_k): the penalty rises a step or an epoch; `weighted_sum` holds it constant."""
    if config.method == "weighted_sum":
        return lambda k: (1.0, config.penalty.constant)
    p = config.penalty
    gamma = bilevel.penalty_schedule(p.start, p.slope, p.cap)
    per = 1 if p.per == "step" else steps_per_epoch
    return lambda k: (1.0, gamma(k // per))
