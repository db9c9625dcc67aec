"""One small system for each recipe, encoder and objective: what the laws are tried on."""

import dataclasses
import functools
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bljust_jax import objectives, recipes
from bljust_jax.bilevel import step
from bljust_jax.bilevel.optimizer import group_of_parameters
from bljust_jax.common import config_schema
from bljust_jax.models import encoders
from configs import birq, librispeech, m2asr, quickstart, wav2vec2_just
from tests.helpers import toy

LABELLED = ("labelled", "asr/ar", "asr/en", "st/ar-en", "st/en-ar")
FACTS = recipes.Facts(dict.fromkeys(LABELLED, 9), dict.fromkeys((*LABELLED, "unlabelled"), 4))
RATE, SECONDS, ROWS, FRAME_RATE = 16000, 1.5, 4, 50
SMALL = {
    "conformer": {"dim": 16, "layers": 2, "heads": 2, "kernel": 5, "channels": 8},
    "wav2vec2": {"dim": 16, "layers": 2, "heads": 2, "ff_dim": 32, "conv_dim": (8,) * 7}
    | {"pos_kernel": 4, "pos_groups": 2},
    "cnn_rnn": {"cnn_layers": 1, "rnn_layers": 1, "channels": 4, "latent_dim": 16, "units": 8},
}
# Objectives that no value of config.ssl names: of recipes, and parts of others.
NO_SSL = {
    "ctc",
    "birq",
    "cross_entropy",
    "shared_forward",
    "masked_frames",
    "pseudo_label",
    "hybrid",
}


def with_loss(loss):
    """The small config of another self-supervised loss, its fields at their defaults."""
    return choose_loss(quickstart.get_config("smoke"), loss)


def choose_loss(config, loss):
    config.ssl, config.data.frame_labels = loss, "labels.km"  # `make_batch` has frame labels
    return config_schema.with_loss_fields(config, loss)


CONFIGS = {
    "bljust": lambda: quickstart.get_config("smoke"),
    # batch norm, NeMo's features, attention to a window
    "parakeet": lambda: windowed(quickstart.get_config("parakeet,smoke")),
    "rope": lambda: rotary(quickstart.get_config("smoke")),
    "wav2vec2_just": lambda: wav2vec2_just.get_config("smoke"),
    "lstm": lambda: librispeech.get_config("lstm,smoke"),
    "birq": lambda: birq.get_config("smoke"),
    "best_rq": lambda: librispeech.get_config("best_rq,smoke"),
    "mpl": lambda: quickstart.get_config("mpl,smoke"),
    "slimipl": lambda: quickstart.get_config("slimipl,smoke"),
    "noisy_student": lambda: quickstart.get_config("noisy_student,smoke"),
    "hybrid": lambda: quickstart.get_config("hybrid,smoke"),
    "masked_cpc": lambda: with_loss("masked_cpc"),
    "masked_cpc_wav2vec2": lambda: choose_loss(wav2vec2_just.get_config("smoke"), "masked_cpc"),
    "masked_cpc_lstm": lambda: choose_loss(librispeech.get_config("lstm,smoke"), "masked_cpc"),
    "hubert": lambda: with_loss("hubert"),
    "data2vec": lambda: with_loss("data2vec"),
    # nightly: each on an encoder that masks itself, and on one of other blocks
    "hubert_wav2vec2": lambda: choose_loss(wav2vec2_just.get_config("smoke"), "hubert"),
    "data2vec_wav2vec2": lambda: choose_loss(wav2vec2_just.get_config("smoke"), "data2vec"),
    "data2vec_lstm": lambda: choose_loss(librispeech.get_config("lstm,smoke"), "data2vec"),
    "mpl_wav2vec2": lambda: wav2vec2_just.get_config("mpl,smoke"),
    "mpl_lstm": lambda: librispeech.get_config("lstm,mpl,smoke"),
    "m2asr": lambda: m2asr.get_config("digits,smoke"),
    "m2asr_linear": lambda: linear(m2asr.get_config("digits,linear,smoke")),
}


# What to add to CONFIGS for a file of a folder that no system uses.
ADDITIONS = {
    recipes: '"{0}": lambda: {0}.get_config("smoke"),  # and `from configs import {0}`',
    encoders: """"{0}": lambda: with_encoder("{0}"),
    and to SMALL, the smallest fields of config.model that prove its laws:
        "{0}": {{"dim": 16}},""",
    objectives: '"{0}": lambda: with_loss("{0}"),',
}


def missing():
    """One text per file of recipes, encoders and objectives that no system uses, with the lines to
    add, and per loss with a field that has no default."""
    used = [config_for(name) for name in CONFIGS]
    names = {
        recipes: {c.recipe for c in used},
        encoders: {c.encoder for c in used},
        objectives: {c.get("ssl", "birq") for c in used} | NO_SSL,
    }
    found = []
    for package, known in names.items():
        folder = package.__name__.removeprefix("bljust_jax.").replace(".", "/")
        for name in sorted({m.name for m in pkgutil.iter_modules(package.__path__)} - known):
            found.append(
                f"{folder}/{name}.py is in no system, so no law is tried on it. Add to CONFIGS of "
                f"tests/helpers/systems.py:\n        {ADDITIONS[package].format(name)}"
            )
            if package is objectives:
                found[-1] += (
                    '\n    or, if config.ssl cannot name it, "' + name + '" to NO_SSL of that file'
                )
    for loss in sorted({c.get("ssl", "cpc") for c in used}):
        module = importlib.import_module(f"{objectives.__name__}.{loss}")
        for field, row in getattr(module, "FIELDS", {}).items():
            if row.default is None:
                found.append(
                    f"objectives/{loss}.py: config.{loss}.{field} has no default, so a config "
                    f"without it cannot take the loss. Write FIELDS[{field!r}] = Field("
                    f"{row.kind.__name__}, {row.help!r}, default=...)"
                )
    return found


def with_encoder(encoder):
    """The small config of another encoder."""
    config = quickstart.get_config("smoke")
    config.encoder = encoder
    with config.unlocked():
        config.model = ConfigDict(SMALL[encoder])
    return config


def linear(config):
    """One recognition and one translation by a linear head."""
    for name in ("asr/ar", "st/ar-en"):
        del config.data.streams[name]
    return config


def windowed(config):
    config.model.window = 4
    return config


def rotary(config):
    config.model.positions = "rope"
    return config


def config_for(name, **model):
    c = CONFIGS[name]()
    c.model.update(**SMALL[c.encoder], **model)
    if "cpc" in c:
        c.cpc.update(steps=2, chunk=(0.3, 0.15, 0.15))
    if "decoder" in c:
        c.decoder.update(dim=16, layers=1, heads=2, ff_mult=2)
    c.mesh.data = 1
    return c


@functools.cache
def build(name, **model):
    config = config_for(name, **model)
    return recipes.load(config.recipe)(config, FACTS)


def make_batch(rows=ROWS, seconds=SECONDS, seed=0):
    """Noise with a pitch in it, in every stream, of unequal lengths; one row is empty."""
    rng = np.random.default_rng(seed)
    samples = int(seconds * RATE)
    time = np.arange(samples) / RATE
    pitch = rng.uniform(100, 1000, (rows, 1))
    audio = 3000 * np.sin(2 * np.pi * pitch * time[None, :]) + 300 * rng.normal(
        size=(rows, samples)
    )
    lengths = np.linspace(0.6, 1.0, rows) * samples
    lengths[1] = 0
    lengths = lengths.astype(np.int32)
    audio = np.where(np.arange(samples)[None, :] < lengths[:, None], audio, 0).astype(np.int16)
    label_lengths = np.where(lengths > 0, 4, 0).astype(np.int32)
    labels = rng.integers(1, 9, (rows, 6)).astype(np.int32)
    stream = {
        "audio": audio,
        "audio_lengths": lengths,
        "labels": labels * (np.arange(6)[None, :] < label_lengths[:, None]),
        "label_lengths": label_lengths,
        "ids": rng.integers(0, 2**32, rows, dtype=np.uint32),
        "frame_labels": rng.integers(0, 100, (rows, round(seconds * FRAME_RATE))).astype(np.int32),
        "frame_label_lengths": (lengths * FRAME_RATE // RATE).astype(np.int32),
        "cache_slot": np.zeros(rows, np.int32),
        "cache_fresh": np.ones(rows, np.int32),
    }
    return jax.tree.map(jnp.asarray, stream)


def undisturbed(name, **options):
    """The system's config without SpecAugment; heads scaled with their level."""
    config = config_for(name)
    config.update(head_scale="penalised", **options)
    config.specaugment.update(freq_masks=0, time_masks=0)
    return config


# The weights of step k of a joint phase: one program serves them all.
WEIGHTS = ((1.0, 0.5), (1.0, 0.0), (0.0, 1.0))


def joint_phase(config):
    """(recipe, phase): the first phase of two levels, of `WEIGHTS`, as all of the run."""
    recipe = recipes.load(config.recipe)(config, FACTS)
    phase = next(p for p in recipe.phases if len(p.levels) > 1)
    table = jnp.array(WEIGHTS)
    phase = dataclasses.replace(phase, weights=lambda k: tuple(table[k]), steps=len(WEIGHTS))
    return dataclasses.replace(recipe, phases=(phase,)), phase


def one_phase(config, name):
    """(recipe, phase): the phase of that name as all of the run; "joint" is `joint_phase`."""
    if name == "joint":
        return joint_phase(config)
    recipe = recipes.load(config.recipe)(config, FACTS)
    phase = next(p for p in recipe.phases if p.name == name)
    return dataclasses.replace(recipe, phases=(phase,)), phase


def begin(recipe, optimizer):
    """The first state: one program where there would be one an operation and shape."""
    return jax.jit(lambda: step.init_state(recipe, optimizer, seed=0))()


def two_streams(seed=3):
    return {"labelled": make_batch(8), "unlabelled": make_batch(8, seed=seed)}


def all_streams(recipe, rows=8):
    """A batch of its own for every stream of a recipe."""
    streams = sorted({s for o in recipe.objectives for s in o.streams})
    return {stream: make_batch(rows, seed=seed) for seed, stream in enumerate(streams)}


@functools.cache
def compiled_step(name, phase_name, **options):
    """(initial state, step): SGD of rate 1, so that a change is a gradient. The phase is all of the
    run; "joint" stands for the first of several levels, whose weights are `WEIGHTS`."""
    recipe, phase = one_phase(undisturbed(name, **options), phase_name)
    optimizer = toy.sgd(recipe.combiner, 1.0)
    state = begin(recipe, optimizer)
    groups = group_of_parameters(state.params, recipe.groups)
    return state, jax.jit(step.make_train_step(recipe, (phase,), optimizer, groups, 0))


@functools.cache
def gradient(name, phase_name, at=0, **options):
    """(gradient tree, mean losses) of step `at` on the standard batch."""
    state, train_step = compiled_step(name, phase_name, **options)
    after, means = train_step(state._replace(step=state.step + at), two_streams())
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), state.params, after.params)
    return moved, {k: float(s) / float(w) for k, (s, w) in means.items() if float(w)}


def assert_close_leaf_by_leaf(one, other, relative):
    """Each leaf within `relative` of its own largest entry; leaves of rounding noise alone (under
    1e-6 of the largest of all) within that noise."""
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(one))
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, atol=max(relative * np.abs(a).max(), 1e-6 * largest))
