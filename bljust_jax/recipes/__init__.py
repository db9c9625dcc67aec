"""Training systems, loaded by file name, and how objectives on one encoder become a `Recipe`.

`config.recipe = "bljust"` calls `build(config, facts)` of `recipes/bljust.py`. One new file adds a
system.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bljust_jax.bilevel.types import Group, Recipe, Tree
from bljust_jax.common import plugins
from bljust_jax.data.buckets import Bucket, bucket_table
from bljust_jax.models.encoders import Encoder
from bljust_jax.objectives import is_pretrained

# (share of the steps, {stream: (rows, seconds per row)}) of each batch shape
Mix = list[tuple[float, dict[str, tuple[int, float]]]]


class Facts(NamedTuple):
    """Properties of the data that a recipe depends on.

    vocab_sizes: vocabulary size of each labelled stream's tokenizer
    steps_per_epoch: steps per pass of each stream's plan
    mix: streams read together -> the mix of their batch shapes; None: `assumed_mix`
    measure: the error rate that suits the texts to score (`scripts.measure_of`), of one task
    buckets: {stream: bucket table}; None: `assumed_tables`
    """

    vocab_sizes: Mapping[str, int]
    steps_per_epoch: Mapping[str, int]
    mix: Callable[[tuple[str, ...]], Mix] | None = None
    measure: str = "wer"
    buckets: Mapping[str, tuple[Bucket, ...]] | None = None


def assumed_mix(config: Any, streams: tuple[str, ...], audio: Mapping[str, float] = {}) -> Mix:
    """Every bucket equally often; `audio`: {stream: seconds of padded audio per batch}, by default
    its `batch_seconds`."""
    tables = assumed_tables(config, streams, audio)
    count = max(map(len, tables.values()))
    shapes = {s: [(b.batch_size, b.seconds) for b in table] for s, table in tables.items()}
    return [
        (1 / count, {s: table[min(k, len(table) - 1)] for s, table in shapes.items()})
        for k in range(count)
    ]


def assumed_tables(
    config: Any, streams: Iterable[str], audio: Mapping[str, float] = {}
) -> dict[str, tuple[Bucket, ...]]:
    """{stream: its bucket table as configured}, whatever the durations; `audio` as in
    `assumed_mix`."""
    data, tables = config.data, {}
    for stream in streams:
        lengths, seconds = tuple(data.buckets), data.batch_seconds
        if stream == "unlabelled":
            lengths = tuple(data.unlabelled_buckets) or lengths
            seconds = data.unlabelled_batch_seconds or seconds
        elif stream in data.streams:
            lengths = tuple(data.streams[stream].buckets) or lengths
        multiple = data.rows_multiple * config.accumulate
        seconds = audio.get(stream, seconds)
        tables[stream] = bucket_table(lengths, seconds, data.labels_per_second, multiple)
    return tables


def step_flops(
    config: Any, facts: Facts, objectives: tuple[Any, ...]
) -> Callable[[frozenset[str]], float]:
    """losses -> mean FLOPs of a training step with these losses active, over the mix of batch
    shapes: encoder, heads and passes for labels, forward 1, backward 2."""

    @functools.cache
    def mean(losses: frozenset[str]) -> float:
        return sum(n.flops for n in step_compute(config, facts, objectives, losses).values())

    return mean


class Compute(NamedTuple):
    """Mean of a step: FLOPs, and seconds of padded audio."""

    flops: float
    seconds: float


def step_compute(
    config: Any, facts: Facts, objectives: tuple[Any, ...], losses: frozenset[str]
) -> dict[str, Compute]:
    """{objective: its part of a mean step}."""
    active = {o.name: (o, losses & set(o.losses)) for o in objectives if losses & set(o.losses)}
    streams = tuple(sorted({s for o, _ in active.values() for s in o.streams}))
    mix = facts.mix(streams) if facts.mix else assumed_mix(config, streams)
    found = dict.fromkeys(active, Compute(0.0, 0.0))
    for share, shapes in mix:
        for name, (objective, own) in active.items():
            rows, seconds = shapes[objective.streams[0]]
            each = objective.cost(own, seconds) + objective.head_cost(own, seconds)
            flops, read = found[name]
            found[name] = Compute(flops + share * rows * each, read + share * rows * seconds)
    return found


def load(name: str) -> Callable[[Any, Facts], Recipe]:
    """`build` of `recipes/<name>.py`, with lengths in hours of audio, of warm-ups and of averaged
    parameters, turned into steps. Raises UserError if there is no such recipe."""
    build = plugins.load(__name__, name, "build", "config.recipe")

    def built(config: Any, facts: Facts) -> Recipe:
        recipe = build(warmups_in_steps(config, facts), facts)
        if not config.ema_hours:
            return recipe
        names = {phase.name for phase in recipe.phases}
        steps = {name: steps_of_hours(config, facts, name, config.ema_hours) for name in names}
        return dataclasses.replace(recipe, ema_steps=steps)

    return built


LOWER_ALONE = ("explore", "pretrain", "turn_ssl", "turn_pseudo")  # unlabelled audio alone


def steps_of_hours(config: Any, facts: Facts, phase: str, hours: float) -> float:
    """Steps of a phase in which its batches hold `hours` of padded audio: those of the labelled
    streams together, in the phases of `LOWER_ALONE` of the unlabelled one."""
    streams = ("unlabelled",) if phase in LOWER_ALONE else tuple(sorted(facts.vocab_sizes))
    mix = facts.mix(streams) if facts.mix else assumed_mix(config, streams)
    seconds = sum(
        share * rows * length for share, shapes in mix for rows, length in shapes.values()
    )
    return 3600 * hours / seconds


def warmups_in_steps(config: Any, facts: Facts) -> Any:
    """The config with the warm-ups whose unit is "hour" in steps."""
    named = [name for name in config.lr if hasattr(config.lr[name], "keys")]
    in_hours = [name for name in named if config.lr[name].get("warmup_unit") == "hour"]
    if not in_hours:
        return config
    config = config.copy_and_resolve_references()
    for name in in_hours:
        steps = round(steps_of_hours(config, facts, name, config.lr[name].warmup))
        config.lr[name].update(warmup=float(steps), warmup_unit="step")
    return config


def assemble(
    config: Any, encoder: Encoder, objectives: tuple[Any, ...], *, heads: tuple[Any, ...], **fields
) -> Recipe:
    """The `Recipe` of `objectives` on one encoder; `fields` are its other fields.

    heads: the objectives whose `init` gives the heads and frozen arrays, in the order of the random
        keys that they receive after the encoder

    A head that comes from another run has the learning rate of the encoder: `config.lr.heads` is
    for new ones.
    """
    pretrained = [head for head in head_owners(heads) if is_pretrained(config, head)]
    rated = {
        id(p): dataclasses.replace(p, lr={**p.lr, **dict.fromkeys(pretrained, p.lr["encoder"])})
        for p in {id(p): p for p in fields["phases"]}.values()
    }
    fields["phases"] = tuple(rated[id(p)] for p in fields["phases"])

    teachers = {k: t for o in heads for k, t in getattr(o, "teachers", {}).items()}

    def init(rng: Any) -> tuple[Tree, Tree, Tree]:
        encoder_rng, *keys = jax.random.split(rng, 1 + len(heads))
        own, stats = encoder.init(encoder_rng)
        params, frozen = {"encoder": own}, {}
        for objective, key in zip(heads, keys, strict=True):
            head, arrays = objective.init(key)
            params, frozen = params | head, frozen | arrays
        for name, teacher in teachers.items():
            frozen[name] = jax.tree.map(jnp.copy, params[teacher.part])
        return params, frozen, stats

    def owner(losses: frozenset[str]) -> Any:
        (objective,) = (o for o in objectives if losses & set(o.losses))
        return objective

    return Recipe(
        objectives=objectives,
        groups=make_groups(config, head_owners(heads)),
        init=init,
        log_mel=encoder.log_mel,
        frames=encoder.frames,
        statistics=encoder.statistics,
        cost=lambda losses, seconds: owner(losses).cost(losses, seconds),
        head_cost=lambda losses, seconds: owner(losses).head_cost(losses, seconds),
        head_scale=config.head_scale,
        ema_decay=config.ema_decay,
        ema_share=config.ema_share,
        teachers=teachers,
        **fields,
    )


def head_owners(objectives: tuple[Any, ...]) -> dict[str, frozenset[str]]:
    """{key of a head: the losses that train it}."""
    return {head: losses for o in objectives for head, losses in o.head_owners.items()}


def make_groups(config: Any, owners: Mapping[str, frozenset[str]]) -> tuple[Group, ...]:
    """The encoder, owned by every loss; each head, by its own losses; and each part of the encoder
    that `config.freeze` names, by none."""
    losses = frozenset().union(*owners.values())
    clip, decay = config.optim.clip, config.optim.weight_decay
    frozen = {name: rf"{re.escape(name)}(/|$)" for name in config.freeze}
    moving = "".join(f"(?!{part})" for part in frozen.values())
    groups = {"encoder": (f"^encoder/{moving}", losses)}
    groups |= {f"frozen {n}": (f"^encoder/{part}", frozenset()) for n, part in frozen.items()}
    groups |= {name: (rf"^{name}/", own) for name, own in owners.items()}
    return tuple(Group(name, pattern, own, clip, decay) for name, (pattern, own) in groups.items())
