"""Laws of the phase tables of all shipped configs and variants: compute, averaged parameters,
penalties."""

import functools
import math
import random

import pytest

from bljust_jax import recipes
from bljust_jax.bilevel import phases
from bljust_jax.common.config_schema.training import METHODS
from bljust_jax.monitoring import flops
from bljust_jax.train.timeline import Timeline
from configs import quickstart
from tests.helpers import corpora, shipped

FIRST = {"bljust": "bljust", "birq": "birq", "m2asr": "vc"}  # whose FLOPs the others have
# a length of its own, the paper's: at the FLOPs of BiRQ it would be 1,700 passes of the labels
APART = {("birq", "supervised")}
EACH = pytest.mark.parametrize(("module", "variant"), shipped.names(), ids=shipped.label)


def random_mix(seed):
    """Shapes of three buckets, a stream's rows and lengths apart from another's."""

    @functools.cache
    def mix(streams):
        rng = random.Random(f"{seed}{streams}")
        shapes = [{s: (rng.randint(8, 40), rng.uniform(4, 20)) for s in streams} for _ in range(3)]
        shares = [rng.random() for _ in shapes]
        return [(w / sum(shares), shape) for w, shape in zip(shares, shapes, strict=True)]

    return mix


def build(config, facts):
    return recipes.load(config.recipe)(config, facts)


def total(config, facts, recipe):
    """FLOPs of a whole run."""
    spent = recipes.step_flops(config, facts, recipe.objectives)
    return sum(p.steps * spent(p.losses) for p in recipe.phases)


def share_of_last_phase(recipe):
    """1 - prod d over the last phase; the warm-up of the average only lowers d."""
    last = recipe.phases[-1]
    n = sum(p.steps for p in recipe.phases if p.name == last.name)
    return 1 - recipe.ema_decay_in(last) ** n


@pytest.mark.daily(
    "librispeech-script", "wav2vec2_just-", "manifest-digits", "quickstart-", "birq-", "m2asr-"
)
@EACH
def test_every_method_is_fair_and_trains_what_it_names(module, variant):
    """Equal FLOPs on two mixes of batch shapes; averaged parameters are those of the last phase; no
    penalty stays 0."""
    spent = {}
    for mix in (None, random_mix(0)):
        for method in shipped.methods(shipped.config(module, variant)):
            config = shipped.config(module, variant, method)
            facts = shipped.facts(config, mix)
            recipe = build(config, facts)
            spent[method, mix] = total(config, facts, recipe)
            assert share_of_last_phase(recipe) >= 0.95, method
            phases.check_penalties(recipe.phases)
    for (method, mix), flop in spent.items():
        if (config.recipe, method) not in APART:
            assert flop == pytest.approx(spent[FIRST[config.recipe], mix], rel=0.02), method


# of papers that state constant rates
CONSTANT = {("librispeech", "script"), ("librispeech", "lstm_paper")}


@pytest.mark.daily("librispeech-", "wav2vec2_just-", "manifest-digits", "birq-", "m2asr-")
@EACH
def test_methods_have_rates_of_their_own_that_are_fair(module, variant):
    """A pre-trained encoder meets CTC at one peak in every method, and every method ends at a
    twentieth of its last peak or below."""
    config = shipped.config(module, variant)
    if (shipped.label(module), variant) in CONSTANT:
        return
    if config.recipe == "bljust":
        peaks = {config.lr[n].peak for n in ("joint", "ptft_supervised", "turn_ctc", "turn_ssl")}
        assert len(peaks) == 1
    for method in shipped.methods(config):
        config = shipped.config(module, variant, method)
        last = build(config, shipped.facts(config)).phases
        name = last[-1].name
        n = sum(p.steps for p in last if p.name == name)
        rates = [float(last[-1].lr["encoder"](k)) for k in (0, n // 9, n // 4, n - 1)]
        assert rates[-1] <= 0.051 * max(rates), method


@pytest.mark.daily("bljust", "alternating")
@pytest.mark.parametrize("method", METHODS["bljust"])
def test_what_a_run_counts_is_what_the_table_was_cut_by(method, tmp_path):
    """On the batch shapes of a corpus: the sum over all steps, in `flops.count`."""
    config = quickstart.get_config("smoke")
    with config.unlocked():
        config.data = corpora.settings(corpora.noise(tmp_path))
    config.phases.update(unit="step", explore=60, joint=100, finetune=100)
    config.cpc.update(context="chunked", chunk=(0.3, 0.15, 0.15))
    counted = {}
    for name in ("bljust", method):
        config.method = name
        corpus = corpora.load_corpus(config.data, seed=0, multiple=1)
        recipe = build(config, shipped.facts(config, corpus.mix))
        segments, totals, now = Timeline(recipe).segments, dict(flops.FRESH), 0
        for phase in recipe.phases:
            for _ in range(phase.steps):
                flops.count(totals, recipe, phase, corpus.shape_at(segments, now))
                now += 1
        counted[name] = totals["flops"] + totals["head_flops"]
    assert counted[method] == pytest.approx(counted["bljust"], rel=0.02)
    assert math.isfinite(counted[method])
    named = flops.named(totals)
    assert named["compute/tflop"] == pytest.approx(counted[method] / 1e12)
    assert 0 < named["compute/encoder_tflop"] < named["compute/tflop"]
