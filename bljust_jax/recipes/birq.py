"""BiRQ: masked prediction of labels that the encoder computes, subject to BEST-RQ; then CTC.

ICASSP 2026 (arXiv 2509.15430). Two phases of one run, and its baselines with the same objectives:

    method      pretrain, on the unlabelled stream, at equal FLOPs     then, on the labelled one
    birq        enhanced > anchor: w1 grad F + w2 grad G               finetune: ctc
    best_rq     anchor: BEST-RQ                                        finetune: ctc
    relabel     enhanced, labels by the encoder of a finished run      finetune: ctc
    supervised  -                                                      supervised: ctc

F and G are defined in `objectives/birq.py`; both levels are self-supervised and share one encoder.
"""

from __future__ import annotations

from typing import Any

from bljust_jax.bilevel import phases
from bljust_jax.bilevel.levels import combine_levels
from bljust_jax.bilevel.types import Phase, Recipe
from bljust_jax.common.errors import UserError
from bljust_jax.models import encoders
from bljust_jax.objectives import birq
from bljust_jax.objectives.birq import ANCHOR, ENHANCED
from bljust_jax.recipes import Facts, assemble, head_owners, step_flops
from bljust_jax.tasks import recognition

# Levels of the first phase, upper level first.
LEVELS = {
    "birq": ((ENHANCED,), (ANCHOR,)),
    "best_rq": ((ANCHOR,),),
    "relabel": ((ENHANCED,),),
    "supervised": (),
}


def build(config: Any, facts: Facts) -> Recipe:
    encoder = encoders.load(config.encoder)(config)
    labels = facts.vocab_sizes["labelled"]
    upper, task = recognition.build(config, encoder, labels, suited=facts.measure)
    lower = build_levels(config, encoder)
    heads = (upper, *lower)
    longer = pretrain_flops(config, facts, encoder)
    return assemble(
        config,
        encoder,
        (*lower, upper),
        heads=heads,
        phases=make_phases(config, facts, tuple(head_owners(heads)), longer),
        combiner=combine_levels(),
        tasks=(task,),
        borrow={"teacher": config.teacher_from} if config.method == "relabel" else {},
        gradients="fused",  # both levels read one forward pass
    )


def build_levels(config: Any, encoder: encoders.Encoder) -> tuple[birq.BiRq, ...]:
    """The objective of the first phase; () for the method without one."""
    losses = tuple(loss for level in LEVELS[config.method] for loss in level)
    teacher = config.method == "relabel"
    if teacher and not config.teacher_from:
        raise UserError(
            "config.teacher_from: method relabel takes its labels from a finished run; name its "
            "workdir"
        )
    return (birq.build_levels(config, encoder, losses, teacher=teacher),) if losses else ()


def pretrain_flops(config: Any, facts: Facts, encoder: encoders.Encoder) -> float:
    """FLOPs of a step of method birq over those of this method's first phase."""
    own = frozenset(loss for level in LEVELS[config.method] for loss in level)
    if not own:
        return 1.0
    both = birq.build_levels(config, encoder, (ENHANCED, ANCHOR))
    full = step_flops(config, facts, (both,))(frozenset(both.losses))
    return full / step_flops(config, facts, build_levels(config, encoder))(own)


def make_phases(
    config: Any, facts: Facts, head_groups: tuple[str, ...], longer: float
) -> tuple[Phase, ...]:
    """The two phases; an epoch is one pass of the stream that the phase reads.

    `phases.pretrain` is the length for method birq; `longer` is the factor at which the others have
    its FLOPs (a teacher's run is not counted). `phases.supervised` is a length of its own.
    """
    epochs = facts.steps_per_epoch if config.phases.unit == "epoch" else {}
    levels = LEVELS[config.method]
    weights = (config.birq.enhanced_weight, config.birq.anchor_weight)
    table = {
        "pretrain": (levels, "unlabelled", (lambda k: weights) if len(levels) > 1 else phases.one),
        "finetune": (((recognition.LOSS,),), "labelled", phases.one),
    }
    if not levels:
        table = {"supervised": table["finetune"]}

    def phase(name: str, levels: Any, stream: str, weights: Any) -> Phase:
        factor = longer if name == "pretrain" else 1.0
        steps = round(config.phases[name] * epochs.get(stream, 1) * factor)
        return phases.one_phase(config.lr, name, steps, levels, weights, head_groups, steps)

    made = (phase(name, *row) for name, row in table.items())
    return tuple(p for p in made if p.steps > 0)
