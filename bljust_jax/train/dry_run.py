"""Dry run: the plan of a run from its config alone, without data and without compiling.

Phases with steps, hours and FLOPs of each loss; level weights and learning rates at the first,
middle and last step; the share of the averaged parameters that is of the last phase; memory and
time on a named device. What is assumed is printed as such.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax

from bljust_jax import recipes
from bljust_jax.bilevel.types import Recipe
from bljust_jax.common.durations import in_hours
from bljust_jax.common.errors import UserError, nearest, one_line
from bljust_jax.data.epoch_shares import shares
from bljust_jax.data.published_hours import published_hours
from bljust_jax.data.sources import open_source
from bljust_jax.data.streams import LABELLED, UNLABELLED
from bljust_jax.data.summary import uneven_batches
from bljust_jax.data.utterances import hours
from bljust_jax.monitoring import peak_flops
from bljust_jax.reporting.text import table
from bljust_jax.train import budget, phase_table
from bljust_jax.train.phase_table import Row
from bljust_jax.train.system import build_recipe

UNKNOWN_HOURS = 10.0  # of a source that is neither there nor in `published_hours`
CHARACTERS = 30  # classes of a tokenizer of characters: about what a run learns
UTILISATION = (0.35, 0.15)  # share of a device's peak that a step reaches, best and worst
MADE = ("synthetic:", "digits:")  # sources that are made on demand: not for a dry run
GIB = 2**30


class Assumed(NamedTuple):
    """Facts of data for a dry run, and lines that say where they are from."""

    facts: recipes.Facts
    lines: list[str]


def describe(config: Any, device: str = "h200") -> list[str]:
    """The lines of a dry run; UserError for a config that cannot be built, or an unknown device."""
    if device not in peak_flops.DEVICES:
        raise UserError(
            f"--device={device}: there is none{nearest(device, list(peak_flops.DEVICES))}"
        )
    assumed = assume(config)
    config, scaled = budget.scale(config, assumed.facts, estimate(config, assumed.facts, device))
    recipe = build_recipe(config, assumed.facts)
    rows = phase_table.phase_table(config, recipe, assumed.facts)
    title = f"{config.recipe}, method {config.method}, encoder {config.encoder}, seed {config.seed}"
    return [
        f"Dry run: {title}",
        *assumed.lines,
        *scaled,
        "",
        *_phases(rows),
        "",
        *_schedules(rows),
        "",
        _warmups(rows),
        *phase_table.long_warmups(rows),
        _average(rows[-1]),
        *_uneven(config, recipe),
        *_memory(config, recipe, device),
        _time(config, rows, device),
    ]


def estimate(config: Any, facts: recipes.Facts, device: str) -> budget.Measured | None:
    """Seconds per step on a device, for a budget in minutes or hours: FLOPs over the geometric mean
    of `UTILISATION` of its peak, without evaluations. UserError if the peak is unknown."""
    if not budget.is_time(config):
        return None
    chip = peak_flops.DEVICES[device]
    peak = peak_flops.flops([chip.kind], config.model.dtype)
    if peak is None:
        raise UserError(
            f"--device={device}: no peak for {config.model.dtype} is known, which config.budget in"
            f" units of {config.budget_unit} is estimated from: name another device"
        )
    share = math.sqrt(math.prod(UTILISATION))
    rows = phase_table.phase_table(config, build_recipe(config, facts), facts)
    seconds = {row.name: row.total / row.steps / (share * peak) for row in rows}
    origin = (
        f"estimated for one {chip.kind} at {share:.0%} of its peak, where a run measures them on"
        " its machine, and its evaluations too"
    )
    return budget.Measured(origin, seconds)


def assume(config: Any) -> Assumed:
    """Steps per epoch from hours of audio: those of the data if they are there, else published or
    assumed ones; and vocabulary sizes, from the config."""
    data, lines = config.data, []
    texts = {name: stream.text for name, stream in data.streams.items()} or {LABELLED: data.text}
    sizes = {
        name: CHARACTERS if text.units == "characters" else text.vocab_size + 1
        for name, text in texts.items()
    }
    epochs = {"epoch", "every_epoch"} & {
        config.phases.unit,
        config.get("penalty", {}).get("per", ""),
        config.phases.get("explore_when", ""),
    }
    if not epochs:
        lines = ["All lengths are in steps: no data are looked at"]
        return Assumed(recipes.Facts(sizes, dict.fromkeys((*sizes, UNLABELLED), 1)), lines)
    labelled = {name: stream.train for name, stream in data.streams.items()}
    labelled = labelled or {LABELLED: data.train}
    uris = dict.fromkeys("+".join(dict.fromkeys(labelled.values())).split("+"))
    sources = {n: find_hours(uri, data.root) for n, uri in labelled.items()}
    sizes_in_hours = [found * data.labelled_fraction for found, _ in sources.values()]
    parts = shares(sizes_in_hours, data.temperature) * len(sources) * data.batch_seconds
    audio = dict(zip(sources, parts.tolist(), strict=True))
    audio[UNLABELLED] = data.unlabelled_batch_seconds or data.batch_seconds
    sources[UNLABELLED] = unlabelled_hours(data, list(uris))
    per_epoch = {}
    for name, (found, origin) in sources.items():
        if name in labelled:
            found *= data.labelled_fraction
        per_epoch[name] = max(1, round(3600 * found / audio[name]))
        length = in_hours(3600 * found, ".4g")
        lines.append(f"{name}: {length}, {per_epoch[name]} steps per epoch ({origin})")
    mix = functools.partial(recipes.assumed_mix, config, audio=audio)
    return Assumed(recipes.Facts(sizes, per_epoch, mix), lines)


def unlabelled_hours(data: Any, train: list[str]) -> tuple[float, str]:
    """(hours of the unlabelled stream, where the figure is from); train: URIs of data.train."""
    more = data.unlabelled.split("+") if data.unlabelled else []
    if more and not data.unlabelled_with_train:
        train = []
    kept = [uri for uri in train if uri not in more]
    parts = [find_hours("+".join(uris), data.root) for uris in (kept, more) if uris]
    if data.unlabelled_hours:
        found, origin = parts[-1]
        origin = f"data.unlabelled_hours of {in_hours(3600 * found, '.4g')}: {origin}"
        parts[-1] = min(found, data.unlabelled_hours), origin
    if len(parts) == 1:
        return parts[0]
    fields = zip(("data.train", "data.unlabelled"), parts, strict=True)
    origins = [
        f"{in_hours(3600 * found, '.4g')} of {field}: {origin}" for field, (found, origin) in fields
    ]
    return sum(found for found, _ in parts), "; ".join(origins)


def find_hours(uri: str, root: str) -> tuple[float, str]:
    """(hours of audio of a URI, where the figure is from)."""
    if uri and not uri.startswith(MADE):
        try:
            return hours(open_source(uri, root)), "the data"
        except UserError as error:
            reason = f"not read: {one_line(error).partition(';')[0]}"
    else:
        reason = "no source is named" if not uri else "made on demand"
    published = published_hours(uri)
    if published is not None:
        return published, f"assumed: published size; {reason}"
    return UNKNOWN_HOURS, f"assumed; {reason}"


def _phases(rows: list[Row]) -> list[str]:
    """Steps, hours and FLOPs of each loss."""
    whole = sum(row.total for row in rows)
    head = ("phase", "stretches", "steps", "loss", "hours of audio", "PFLOP", "of the run")
    lines = []
    for row in rows:
        for n, (loss, flops) in enumerate(row.flops.items()):
            first = (row.name, row.stretches, row.steps) if n == 0 else ("", "", "")
            cost = (f"{row.hours[loss]:.4g}", f"{flops / 1e15:.4g}", f"{flops / whole:.1%}")
            lines.append((*first, loss, *cost))
    total = sum(sum(row.hours.values()) for row in rows)
    steps = sum(row.steps for row in rows)
    lines.append(("all", "", steps, "", f"{total:.4g}", f"{whole / 1e15:.4g}", "100.0%"))
    return table(head, lines)


def _schedules(rows: list[Row]) -> list[str]:
    """Level weights and learning rates at the first, middle and last step of each phase."""
    head = ("phase", "schedule", "start", "middle", "end", "most")
    lines = []
    for row in rows:
        named = {
            f"weight of {'+'.join(level)}": weight
            for level, weight in zip(row.levels, row.weights, strict=True)
        }
        named |= {f"rate of {kind}": rate for kind, rate in row.rates.items()}
        for n, (name, values) in enumerate(named.items()):
            lines.append((row.name if n == 0 else "", name, *map(_short, values)))
    return table(head, lines)


def _average(last: phase_table.Row) -> str:
    return (
        f"Averaged parameters: {last.ema:.1%} are of the last phase, {last.name}, "
        f"averaged over {last.ema_steps:,.0f} steps"
    )


def _warmups(rows: list[Row]) -> str:
    """Steps of the warm-up of each phase, and their share of it."""
    parts = (f"{row.name} {row.warmup} steps ({row.warmup / row.steps:.1%})" for row in rows)
    return f"Warm-up: {', '.join(parts)}"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    """12 s, 3.5 min, 2.1 h."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.2g} s"


def _uneven(config: Any, recipe: Recipe) -> list[str]:
    """A line for each stream whose batches vary in seconds, or one that these are not known."""
    streams = sorted({stream for o in recipe.objectives for stream in o.streams})
    if config.data.num_buckets:
        return [f"Batches: assumed of {config.data.buckets} s; a run chooses lengths from its data"]
    tables = recipes.assumed_tables(config, streams)
    return [line for name, table in tables.items() for line in uneven_batches(name, table)]


def _memory(config: Any, recipe: Recipe, device: str) -> list[str]:
    """Parameters, and bytes on one device without sharding."""
    params, frozen, _ = jax.eval_shape(lambda: recipe.init(jax.random.key(0)))
    size = {
        name: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
        for name, tree in (("params", params), ("frozen", frozen))
    }
    # parameters, two moments, averaged parameters, those of the best score; float32
    state = 4 * (5 * size["params"] + size["frozen"])
    trees = max(sum(map(len, _gradient_trees(phase))) for phase in recipe.phases)
    gradients = 4 * trees * size["params"]
    activations, where = max(
        (activation_bytes(config, recipe, *shape), shape) for shape in _shapes(config, recipe)
    )
    need, chip = state + gradients + activations, peak_flops.DEVICES[device]
    rows, seconds = where
    return [
        f"Parameters: {size['params']:,}",
        f"Memory on one {chip.kind}, not sharded: {need / GIB:.2f} of {chip.memory / GIB:.0f} GiB."
        f" State {state / GIB:.2f} (5 x parameters, float32), gradients {gradients / GIB:.2f}"
        f" ({trees} x parameters), activations of {rows} x {seconds:g} s about"
        f" {activations / GIB:.2f}: an estimate from layer sizes, within half of"
        " what compiled steps need (results/aot.md)",
    ]


def _gradient_trees(phase: Any) -> list[tuple[str, ...]]:
    """The gradients that are kept apart at once: of each level, and on dynamic levels of each loss,
    for MoDo of each half of the batch."""
    dynamic = phase.dynamic_levels
    twice = {level: 2 if how == "modo" else 1 for level, how in dynamic.items()}
    return [level * twice[level] if level in dynamic else level[:1] for level in phase.levels]


def _shapes(config: Any, recipe: Recipe) -> set[tuple[int, float]]:
    """(rows, seconds) of all batches of one objective."""
    streams = tuple(sorted({o.streams[0] for o in recipe.objectives}))
    mix = recipes.assumed_mix(config, streams)
    return {shape for _, shapes in mix for shape in shapes.values()}


def activation_bytes(config: Any, recipe: Recipe, rows: int, seconds: float) -> float:
    """Bytes that the backward pass of one loss keeps, from layer sizes: the input of each block
    (remat full), half of its arrays (names, dots, auto) or all of them (none), twice the arrays of
    one block that is recomputed, and five of the front end's largest (of a CNN layer 45 maps)."""
    m, samples = config.model, round(seconds * config.data.sample_rate)
    size, frames = (2 if m.dtype == "bfloat16" else 4), recipe.frames(samples)
    if config.encoder == "cnn_rnn":
        bands, hidden = config.features.n_mels / 2, 8 * m.units
        layers, width, block = m.rnn_layers, 2 * m.units, frames * hidden * size
        front = 45 * m.cnn_layers * frames * bands * m.channels * size
    else:
        expansion = m.ff_dim / m.dim if "ff_dim" in m else 2 * m.ff_mult
        layers, width = m.layers, m.dim
        block = frames * m.dim * (2 * expansion + 12) * size + m.heads * frames**2 * 4
        if config.encoder == "wav2vec2":
            front = 5 * samples / m.conv_stride[0] * m.conv_dim[0] * size
        else:
            bands = config.features.n_mels / 2
            front = 5 * samples / config.features.hop / 2 * bands * m.channels * size
    kept = {"full": frames * width * size, "none": block}
    return rows * (layers * kept.get(m.get("remat", "none"), block / 2) + 2 * block + front)


def _time(config: Any, rows: list[Row], device: str) -> str:
    """Hours of arithmetic on one device, at shares of its peak."""
    chip = peak_flops.DEVICES[device]
    peak = peak_flops.flops([chip.kind], config.model.dtype)
    if peak is None:
        return f"Time on one {chip.kind}: no peak for {config.model.dtype} is known"
    whole = sum(row.total for row in rows)
    fast, slow = (_duration(whole / peak / share) for share in UTILISATION)
    shares = " to ".join(f"{share:.0%}" for share in UTILISATION)
    return (
        f"Time on one {chip.kind}: {fast} to {slow} of arithmetic, at {shares} of its"
        f" {peak / 1e12:.0f} TFLOP/s ({config.model.dtype}); reading and evaluation come on top: an"
        " estimate, not measured"
    )
