"""Untrained runs on disk, one of each kind that is exported."""

import jax
import numpy as np
from ml_collections import ConfigDict

from bljust_jax import recipes
from bljust_jax.bilevel import step
from bljust_jax.bilevel.optimizer import make_optimizer
from bljust_jax.bilevel.types import TrainState, Weights
from bljust_jax.checkpoint.manager import Checkpoints
from bljust_jax.data.tokenizer import CharTokenizer, learn_pieces
from configs import quickstart

CHARACTERS = CharTokenizer(" 'abcdefghijklmnopqrstuvwxyz", ("lower",))
TEXTS = [
    "turn the light on and the kitchen lamp off",
    "seven bells ring in the little hall",
    "hello all the apples fall",
]


def pieces(kind, size):
    return learn_pieces(TEXTS * 20, ("lower",), kind, size)


def plain(c):
    """A Conformer that is no class of transformers."""


def bfloat16(c):
    """Trained in bfloat16; exported, and compared, in float32."""
    c.model.dtype = "bfloat16"


def causal(c):
    c.ctc.context = "causal"


def rope(c):
    c.model.positions = "rope"


def parakeet(c):
    c.model.update(subsampling="parakeet", norm="batch", heads=4)
    c.features.frontend = "nemo"


def wav2vec2(c, feat_norm="layer"):
    stable = feat_norm == "layer"
    c.update(encoder="wav2vec2", ssl="wav2vec2")
    fields = {"dim": 32, "layers": 2, "heads": 2, "ff_dim": 48, "conv_dim": (16,) * 7}
    fields |= {"feat_norm": feat_norm, "stable_layer_norm": stable, "conv_bias": stable}
    c.model = ConfigDict(fields | {"pos_kernel": 16, "pos_groups": 4, "normalise": True})
    c.mask = ConfigDict({"time_prob": 0.05, "time_length": 10, "channel_prob": 0.0})
    c.mask.channel_length = 10
    sizes = {"mask_prob": 0.65, "mask_length": 10, "negatives": 5, "temperature": 0.1}
    sizes |= {"diversity": 0.1, "feature_penalty": 10.0, "groups": 2, "codes": 6, "code_dim": 8}
    taus = {"tau_start": 2.0, "tau_end": 0.5, "tau_decay": 0.999995}
    c.wav2vec2 = ConfigDict(sizes | taus | {"width": 12})


def base(c):
    """wav2vec 2.0 with the group norm, whose padding matters in transformers."""
    wav2vec2(c, "group")


def cnn_rnn(c):
    c.encoder = "cnn_rnn"
    fields = {"kind": "gru", "cnn_layers": 1, "rnn_layers": 2, "channels": 8, "latent_dim": 12}
    c.model = ConfigDict(fields | {"units": 10, "proj": 16, "heads": 2, "dropout": 0.0})
    c.cpc.context = "chunked"


def make_config(change=plain):
    config = quickstart.get_config("smoke")
    with config.unlocked():
        change(config)
    return config


def save(folder, change=plain, tokenizer=CHARACTERS):
    """What training leaves of a run, its weights drawn by numpy; returns its config."""
    config = make_config(change)
    tokenizer.save(folder)
    weights = draw_weights(config, tokenizer)
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(3, TrainState(np.int32(3), *[{"none": np.zeros(1)}] * 5), weights, {})
    checkpoints.close()
    (folder / "config.json").write_text(config.to_json())
    return config


def draw_weights(config, tokenizer=CHARACTERS):
    """Weights of the shapes that the recipe gives, with nothing left at 0 or 1."""
    facts = recipes.Facts({"labelled": tokenizer.vocab_size}, {"labelled": 1, "unlabelled": 1})
    recipe = recipes.load(config.recipe)(config, facts)
    params, _, stats = jax.eval_shape(lambda: recipe.init(jax.random.key(0)))
    rng = np.random.default_rng(1)

    def parameter(path, leaf):
        x = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":
            blocks = any(getattr(k, "key", "") == "blocks" for k in path)
            return x * np.float32(np.prod(leaf.shape[int(blocks) : -1]) ** -0.5)
        return float(path[-1].key in ("scale", "gain")) + np.float32(0.1) * x

    def moment(path, leaf):
        x = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1].key == "mean":
            return x - 8 if path[0].key == "features" else 0.1 * x
        return np.exp(0.3 * x)

    with_path = jax.tree_util.tree_map_with_path
    return Weights(with_path(parameter, params), with_path(moment, stats))


UNTRAINED_STEP = 7
SPELLS = 8  # a seed whose random weights spell a text of several words


def save_untrained(folder):
    """What training leaves of a smoke-sized run, with the weights of its first step, and with
    training data that are gone."""
    config = quickstart.get_config("smoke")
    tokenizer = CharTokenizer(" 'abcdefghijklmnopqrstuvwxyz", ("lower",))
    tokenizer.save(folder)
    facts = recipes.Facts({"labelled": tokenizer.vocab_size}, {"labelled": 1, "unlabelled": 1})
    recipe = recipes.load(config.recipe)(config, facts)
    state = step.init_state(recipe, make_optimizer(recipe.combiner, recipe.groups), seed=SPELLS)
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(UNTRAINED_STEP, state, state.weights, {})
    checkpoints.close()
    config.data.update(train="gone.jsonl", unlabelled="gone.jsonl", test="")
    (folder / "config.json").write_text(config.to_json())
    return folder
