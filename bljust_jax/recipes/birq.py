"""BiRQ: masked prediction whose labels the encoder makes itself, subject to BEST-RQ's; then CTC.

ICASSP 2026 (arXiv 2509.15430). Two phases of one run, and its baselines on the same parts:

    method      pretrain, on the unlabelled stream                     then, on the labelled one
    birq        enhanced > anchor: w1 grad F + w2 grad G               finetune: ctc
    best_rq     anchor: BEST-RQ                                        finetune: ctc
    relabel     enhanced, labels by the encoder of a finished run      finetune: ctc
    supervised  -                                                      supervised: ctc

F and G are in `objectives/birq.py`; both levels are self-supervised and own one encoder.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bljust_jax.bilevel import phases
from bljust_jax.bilevel.levels import combine_levels
from bljust_jax.bilevel.types import Phase, Recipe, Weights
from bljust_jax.common.errors import UserError
from bljust_jax.models import encoders, heads
from bljust_jax.objectives import birq
from bljust_jax.objectives.birq import ANCHOR, ENHANCED
from bljust_jax.recipes import Facts
from bljust_jax.recipes.bljust import CTC, make_groups
from bljust_jax.tasks import recognition

# The levels of the first phase, the upper one first.
LEVELS = {
    "birq": ((ENHANCED,), (ANCHOR,)),
    "best_rq": ((ANCHOR,),),
    "relabel": ((ENHANCED,),),
    "supervised": (),
}


def build(config: Any, facts: Facts) -> Recipe:
    encoder = encoders.load(config.encoder)(config)
    upper = recognition.Recognition(config, encoder, facts.vocab_sizes["labelled"])
    lower = bind_levels(config, encoder, upper.encode)
    owners = {recognition.HEAD: frozenset({CTC})} | (lower.owners if lower else {})

    def init(rng):
        k_encoder, k_ctc, k_labels = jax.random.split(rng, 3)
        params, stats = encoder.init(k_encoder)
        frozen = {}
        if config.method == "relabel":
            teacher = Weights({"encoder": params}, stats)
            frozen["teacher"] = jax.tree.map(jnp.zeros_like, teacher)
        params = {"encoder": params, "ctc_head": upper.init_head(k_ctc)}
        if lower is not None:
            label_heads, frozen["birq"] = lower.init(k_labels)
            params |= label_heads
        return params, frozen, stats

    def cost(losses, seconds):
        return upper.cost(seconds) if CTC in losses else lower.cost(losses, seconds)

    return Recipe(
        objectives=((lower.objective,) if lower else ()) + (upper.objective(),),
        groups=make_groups(config, owners),
        phases=make_phases(config, facts, tuple(owners)),
        init=init,
        combiner=combine_levels(),
        tasks=(upper.task(),),
        log_mel=encoder.log_mel,
        frames=encoder.frames,
        statistics=encoder.statistics,
        cost=cost,
        borrow={"teacher": config.teacher_from} if config.method == "relabel" else {},
        gradients="fused",  # both levels read one forward pass
        head_scale=config.head_scale,
        ema_decay=config.ema_decay,
    )


def bind_levels(config: Any, encoder: Any, encode: Any) -> birq.Levels | None:
    """The losses of the first phase; None where there is none."""
    losses = tuple(loss for level in LEVELS[config.method] for loss in level)
    teacher = config.method == "relabel"
    if teacher and not config.teacher_from:
        raise UserError(
            "config.teacher_from: method relabel takes its labels from a finished run; name its "
            "workdir"
        )
    if not losses:
        return None
    return birq.bind_levels(config, encoder, encode, heads, losses=losses, teacher=teacher)


def make_phases(config: Any, facts: Facts, head_groups: tuple[str, ...]) -> tuple[Phase, ...]:
    """The two phases; an epoch is a pass of the stream that a phase reads."""
    epochs = facts.steps_per_epoch if config.phases.unit == "epoch" else {}
    levels = LEVELS[config.method]
    weights = (config.birq.enhanced_weight, config.birq.anchor_weight)
    table = {
        "pretrain": (levels, "unlabelled", (lambda k: weights) if len(levels) > 1 else phases.one),
        "finetune": (((CTC,),), "labelled", phases.one),
    }
    if not levels:
        table = {"supervised": table["finetune"]}

    def phase(name: str, levels: Any, stream: str, weights: Any) -> Phase:
        steps = round(config.phases[name] * epochs.get(stream, 1))
        return phases.one_phase(config.lr, name, steps, levels, weights, head_groups, steps)

    made = (phase(name, *row) for name, row in table.items())
    return tuple(p for p in made if p.steps > 0)
