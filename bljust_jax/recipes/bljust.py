"""BL-JUST: CTC on an encoder that must also minimise a self-supervised loss.

ICASSP 2024 (arXiv 2401.06980) and the journal version with its three phases (arXiv 2412.08548):

    phase     trains                        rate   direction
    explore   encoder, lower head           rho    grad g
    joint     encoder, ctc_head, lower head alpha  encoder: grad f + gamma_k grad g
                                                   each head: its own plain gradient
    finetune  encoder, ctc_head             tau    grad f

f is CTC on the labelled stream, g the loss `config.ssl` (CPC; wav2vec 2.0 in Wav2Vec2-JUST) on the
unlabelled one. The baselines are other phase tables with the same objectives (`bilevel/phases.py`);
in semi-supervised ones (`PSEUDO`) the lower loss is CTC with pseudo-labels instead
(`objectives/pseudo_label.py`).
"""

from __future__ import annotations

from typing import Any

from bljust_jax import objectives
from bljust_jax.bilevel import phases
from bljust_jax.bilevel.levels import combine_levels
from bljust_jax.bilevel.types import Recipe
from bljust_jax.common.config_schema import losses as config_losses
from bljust_jax.common.config_schema.training import PSEUDO
from bljust_jax.common.errors import UserError
from bljust_jax.data.buckets import Bucket
from bljust_jax.data.replay import Replay
from bljust_jax.models import encoders
from bljust_jax.objectives import hybrid as hybrid_loss
from bljust_jax.objectives import pseudo_label
from bljust_jax.objectives.shared_forward import SharedForward
from bljust_jax.recipes import Facts, assemble, assumed_tables, head_owners, step_flops
from bljust_jax.tasks import hybrid, recognition


def build(config: Any, facts: Facts) -> Recipe:
    encoder = encoders.load(config.encoder)(config)
    labels = facts.vocab_sizes["labelled"]
    if "hybrid" in config:
        config = config_losses.complete(config, "hybrid", hybrid_loss.FIELDS)
        check_hybrid(config)
        upper, task = hybrid.build(config, encoder, labels, suited=facts.measure)
    else:
        upper, task = recognition.build(config, encoder, labels, suited=facts.measure)
    lower = objectives.load(config.ssl)(config, encoder)
    both = (upper, lower)
    system, budget, warnings = both, None, ()
    if config.share_forward:
        check_shareable(config, lower)
        system = (SharedForward(parts=both),)
    if config.method in (*PSEUDO, "masked_cpc_ctc"):
        about = config, facts.steps_per_epoch, upper.losses, lower.name
        budget = phases.bljust_flops(*about, step_flops(config, facts, system))
    if config.method in PSEUDO:
        config = config_losses.complete(config, "pseudo_label", pseudo_label.FIELDS)
        shapes = [(b.batch_size, b.seconds) for b in unlabelled_buckets(config, facts)]
        lower = pseudo_label.build_loss(config, upper, about[1]["unlabelled"], shapes)
        system = both = (upper, lower)
        warnings = pseudo_label.warnings(config)
    elif config.method == "masked_cpc_ctc":
        lower = objectives.load("masked_cpc")(config, encoder)
        system = both = (upper, lower)
    names, heads = (upper.losses, lower.name), tuple(head_owners(both))
    table = phases.make_phases(
        config, facts.steps_per_epoch, *names, heads, step_flops(config, facts, system), budget
    )
    order = {}
    if isinstance(lower, pseudo_label.CachedPseudoLabel):
        steps = sum(phase.steps for phase in table if lower.name in phase.losses)
        lower = lower.sized_for(steps)
        system = both = (upper, lower)
        replay = Replay(lower.slots, float(lower.replace), config.seed)
        order = {"replay": replay, "cache": lower.cache}
    return assemble(
        config,
        encoder,
        system,
        heads=both,
        phases=table,
        combiner=combine_levels(),
        tasks=(task,),
        gradients=config.gradients,
        warnings=warnings,
        **order,
    )


def check_hybrid(config: Any) -> None:
    """Raise UserError for what goes without an attention decoder alone."""
    if config.share_forward:
        raise UserError("config.share_forward=True: the pass of CTC and attention is augmented")
    if config.method in PSEUDO:
        raise UserError(
            f"config.method={config.method!r} makes labels for CTC: leave out the variant hybrid"
        )


def unlabelled_buckets(config: Any, facts: Facts) -> tuple[Bucket, ...]:
    """The bucket table of the unlabelled stream."""
    tables = facts.buckets or assumed_tables(config, ("unlabelled",))
    return tables["unlabelled"]


def check_shareable(config: Any, lower: objectives.EncoderObjective) -> None:
    """Raise UserError, with the reason, if one forward pass cannot serve both losses."""
    masks = config.specaugment.freq_masks + config.specaugment.time_masks
    data = config.data
    whole = data.labelled_fraction == 1 and data.labelled_speakers == 0
    masked = not hasattr(lower, "apply_encoded")
    for met, reason in (
        (not masked, f"{config.ssl} masks its input, and CTC must not: two passes"),
        (config.gradients == "fused", 'one backward pass serves both: set gradients="fused"'),
        (config.ctc.context == "causal", 'CPC must not see the future: set ctc.context="causal"'),
        (config.cpc.context == "causal", "separately encoded windows are other passes"),
        (masks == 0, "CPC reads unmasked features: set specaugment's numbers of masks to 0"),
        (not data.unlabelled, "both levels read data.train: data.unlabelled must be empty"),
        (whole, "both levels read data.train: all of it must be labelled"),
        (
            config.method not in (*PSEUDO, "masked_cpc_ctc"),
            f"method {config.method} has two passes",
        ),
    ):
        if not met:
            raise UserError(f"config.share_forward=True: {reason}")
