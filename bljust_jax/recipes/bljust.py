"""BL-JUST: CTC over a shared encoder that must also be good for a self-supervised loss.

ICASSP 2024 (arXiv 2401.06980) and the journal version with its three phases (arXiv 2412.08548):

    phase     trains                        rate   direction
    explore   encoder, lower head           rho    grad g
    joint     encoder, ctc_head, lower head alpha  encoder: grad f + gamma_k grad g
                                                   each head: its own plain gradient
    finetune  encoder, ctc_head             tau    grad f

f is CTC on the labelled stream, g the loss `config.ssl` (CPC; wav2vec 2.0 in Wav2Vec2-JUST) on the
unlabelled one. The baselines are other phase tables over the same parts (`bilevel/phases.py`).
"""

from __future__ import annotations

import re
from typing import Any

import jax

from bljust_jax import objectives
from bljust_jax.bilevel import phases
from bljust_jax.bilevel.levels import combine_levels
from bljust_jax.bilevel.types import Group, Recipe
from bljust_jax.common.errors import UserError
from bljust_jax.models import encoders, heads
from bljust_jax.objectives import shared_forward
from bljust_jax.recipes import Facts
from bljust_jax.tasks import recognition

CTC = recognition.LOSS


def build(config: Any, facts: Facts) -> Recipe:
    encoder = encoders.load(config.encoder)(config)
    upper = recognition.Recognition(config, encoder, facts.vocab_sizes["labelled"])
    lower = objectives.load(config.ssl)(config, encoder, upper.encode, heads)
    (ssl,) = lower.objective.losses
    owners = {recognition.HEAD: frozenset({CTC}), f"{ssl}_head": frozenset({ssl})}

    def init(rng):
        k_encoder, k_ctc, k_ssl = jax.random.split(rng, 3)
        params, stats = encoder.init(k_encoder)
        head, frozen = lower.init(k_ssl)
        params = {"encoder": params, "ctc_head": upper.init_head(k_ctc), f"{ssl}_head": head}
        return params, ({ssl: frozen} if frozen else {}), stats

    def cost(losses, seconds):
        return lower.cost(seconds) if ssl in losses else upper.cost(seconds)

    system = (upper.objective(), lower.objective)
    if config.share_forward:
        check_shareable(config, lower.reader)
        readers = {CTC: upper.reader(), ssl: lower.reader}
        parts = {"features": encoder.features, "encode": upper.encode}
        system = (shared_forward.make(stream="labelled", readers=readers, **parts),)
    return Recipe(
        objectives=system,
        groups=make_groups(config, owners),
        phases=phases.make_phases(config, facts.steps_per_epoch, CTC, ssl, tuple(owners)),
        init=init,
        combiner=combine_levels(),
        tasks=(upper.task(),),
        log_mel=encoder.log_mel,
        frames=encoder.frames,
        statistics=encoder.statistics,
        cost=cost,
        gradients=config.gradients,
        head_scale=config.head_scale,
        ema_decay=config.ema_decay,
    )


def make_groups(config: Any, heads_of: dict[str, frozenset[str]]) -> tuple[Group, ...]:
    """The encoder, owned by every loss; each head, by its own; and each part of the encoder that
    `config.freeze` names, by none."""
    losses = frozenset().union(*heads_of.values())
    clip, decay = config.optim.clip, config.optim.weight_decay
    parts = {name: rf"{re.escape(name)}(/|$)" for name in config.freeze}
    moving = "".join(f"(?!{part})" for part in parts.values())
    groups = {"encoder": (f"^encoder/{moving}", losses)}
    groups |= {f"frozen {n}": (f"^encoder/{part}", frozenset()) for n, part in parts.items()}
    groups |= {name: (rf"^{name}/", owners) for name, owners in heads_of.items()}
    return tuple(
        Group(name, pattern, owners, clip, decay) for name, (pattern, owners) in groups.items()
    )


def check_shareable(config: Any, reader: Any) -> None:
    """UserError where one forward pass cannot serve both losses, with the reason."""
    masks = config.specaugment.freq_masks + config.specaugment.time_masks
    data = config.data
    whole = data.labelled_fraction == 1 and data.labelled_speakers == 0
    for met, reason in (
        (reader is not None, f"{config.ssl} masks what it hears, and CTC must not: two passes"),
        (config.gradients == "fused", 'one backward pass serves both: set gradients="fused"'),
        (config.ctc.context == "causal", 'CPC must not see the future: set ctc.context="causal"'),
        (config.cpc.context == "causal", "windows encoded apart are other passes"),
        (masks == 0, "CPC reads unmasked features: set specaugment's numbers of masks to 0"),
        (not data.unlabelled, "both levels hear data.train: data.unlabelled must be empty"),
        (whole, "both levels hear data.train: all of it must be labelled"),
    ):
        if not met:
            raise UserError(f"config.share_forward=True: {reason}")
