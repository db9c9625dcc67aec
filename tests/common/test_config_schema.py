"""The schema of config fields: all shipped configs pass, wrong values are refused by name."""

import functools
import importlib
import itertools
import pkgutil

import pytest
from ml_collections import ConfigDict

from bljust_jax import objectives, recipes
from bljust_jax.bilevel import multi_objective, schedules
from bljust_jax.common import config_schema
from bljust_jax.common.errors import UserError
from bljust_jax.data import normalise, streams, tokenizer
from bljust_jax.models import audio_features, cnn_rnn_blocks, encoders, remat, subsampling
from bljust_jax.objectives import cpc, ctc
from bljust_jax.ops import ctc as ops_ctc
from configs import (
    birq,
    defaults,
    librispeech,
    m2asr,
    manifest,
    quickstart,
    tedlium,
    variants,
    wav2vec2_just,
)
from tests.helpers.systems import FACTS

CONFIGS = (
    *((module, "") for module in (librispeech, manifest, quickstart, tedlium)),
    *((manifest, name) for name in (*variants.COMMON, "lstm,smoke", "gru,overfit", "lstm,digits")),
    *((birq, name) for name in birq.VARIANTS),
    *((m2asr, name) for name in (*m2asr.VARIANTS, "digits,smoke", "covost,overfit")),
    *((wav2vec2_just, name) for name in (*wav2vec2_just.VARIANTS, "smoke", "overfit")),
)


SELECTABLE = sorted(config_schema.GROUPS["config"]["ssl"].allowed)  # by config.ssl


def with_loss(loss):
    return config_schema.with_loss_fields(manifest.get_config(), loss)


@pytest.mark.parametrize(("module", "variant"), CONFIGS)
def test_shipped_configs_are_in_range(module, variant):
    config_schema.check(module.get_config(variant))


@pytest.mark.parametrize(
    ("module", "field", "value", "said"),
    [
        (manifest, "model.heads", 0, "config.model.heads=0 must be 1 or above"),
        (manifest, "lr.joint.peak", -1.0, "config.lr.joint.peak=-1.0 must be 0 or above"),
        (manifest, "lr.heads", 0.0, "config.lr.heads=0.0 must be above 0"),
        (manifest, "ema_decay", 2.0, "config.ema_decay=2.0 must be 0 or above, and below 1"),
        (manifest, "penalty.slope", float("nan"), "config.penalty.slope=nan must be 0 or above"),
        (wav2vec2_just, "wav2vec2.mask_prob", 2.0, "mask_prob=2.0 must be above 0 and at most 1"),
        (wav2vec2_just, "wav2vec2.codes", 0, "config.wav2vec2.codes=0 must be 1 or above"),
        (wav2vec2_just, "mask.time_prob", 3.0, "config.mask.time_prob=3.0 must be from 0 to 1"),
        (wav2vec2_just, "model.conv_stride", (2, 0), "must be whole numbers of 1 or above"),
        (m2asr, "moo.every", 0, "config.moo.every=0 must be 1 or above"),
        (m2asr, "moo.threshold", 1.5, "config.moo.threshold=1.5 must be from -1 to 1"),
        (birq, "birq.tau_end", 0.0, "config.birq.tau_end=0.0 must be above 0"),
    ],
)
def test_a_number_out_of_range_is_named(module, field, value, said):
    config = module.get_config()
    group, _, last = field.rpartition(".")
    node = config
    for key in filter(None, group.split(".")):
        node = node[key]
    node[last] = value
    with pytest.raises(UserError) as refused:
        config_schema.check(config)
    assert said in str(refused.value)


def test_each_field_of_each_config_has_a_row_and_each_row_a_field():
    described = set()
    configs = {f"{m.__name__}:{variant}": m.get_config(variant) for m, variant in CONFIGS}
    configs |= {loss: with_loss(loss) for loss in (*SELECTABLE, "pseudo_label")}
    for where, config in configs.items():
        for name, value, row in config_schema.rows(config):
            assert row is not None, f"{where}: no row for {name}"
            assert row.help
            assert config_schema.is_kind(value, row.kind), name
            described.add(id(row))
    for group, fields in config_schema.GROUPS.items():
        unused = [name for name, row in fields.items() if id(row) not in described]
        assert not unused, f"{group}: no config has {unused}"


@pytest.mark.parametrize("loss", sorted(config_schema.losses.read_all()))
def test_fields_of_a_loss_are_read_without_importing_it(loss):
    """Equal to those of the module, which imports jax."""
    module = importlib.import_module(f"bljust_jax.objectives.{loss}")
    assert config_schema.GROUPS[f"config.{loss}"] == module.FIELDS


@pytest.mark.parametrize("loss", SELECTABLE)
def test_a_loss_brings_its_fields_with_defaults_in_range(loss):
    fields = config_schema.GROUPS[f"config.{loss}"]
    config = manifest.get_config()
    config.ssl = loss
    if loss in config:
        del config[loss]
    config.lock()
    completed = config_schema.with_loss_fields(config, loss)
    config_schema.check(completed)
    assert loss not in config
    assert completed.is_locked
    assert completed[loss].to_dict() == {name: row.default for name, row in fields.items()}
    assert None not in completed[loss].to_dict().values()


@pytest.mark.parametrize("loss", ["cpc", "best_rq"])
def test_a_config_states_the_defaults_of_the_loss(loss):
    """A config that sets the fields for its reader does not differ from the loss's file."""
    config = defaults.base()
    stated = config[loss].to_dict()
    del config[loss]
    assert config_schema.with_loss_fields(config, loss)[loss].to_dict() == stated


def test_fields_that_a_config_sets_stay():
    config = manifest.get_config()
    with config.unlocked():
        config.wav2vec2 = ConfigDict({"codes": 7})
    completed = config_schema.with_loss_fields(config, "wav2vec2")
    assert completed.wav2vec2.codes == 7
    assert completed.wav2vec2.groups == 2
    assert config_schema.with_loss_fields(completed, "wav2vec2") is completed


def test_fields_with_other_names_are_refused_by_file_and_line(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("import os\n\nFIELDS = {'a': Field(int, os.name)}\n")
    with pytest.raises(ValueError, match=r"own\.py:3: FIELDS has Field\(\.\.\.\).*'os'"):
        config_schema.losses.read(path)


def choices(field):
    """The choices of a field such as "model.norm"."""
    group, _, name = f"config.{field}".rpartition(".")
    return set(config_schema.GROUPS[group][name].allowed)


def modules(package, attribute):
    """The plug-ins of a package: its modules that have the attribute."""
    found = (info.name for info in pkgutil.iter_modules(package.__path__))
    made = {name: importlib.import_module(f"{package.__name__}.{name}") for name in found}
    return {name for name, module in made.items() if hasattr(module, attribute)}


def test_choices_are_those_of_the_code():
    assert choices("recipe") == modules(recipes, "build")
    assert choices("encoder") == modules(encoders, "build")
    assert choices("ssl") == modules(objectives, "build")
    assert choices("lr.*.shape") == set(schedules.SHAPES)
    assert choices("ctc.implementation") == set(ops_ctc.IMPLEMENTATIONS)
    assert choices("ctc.reduction") == set(ctc.REDUCTIONS)
    assert choices("cpc.context") == set(cpc.CONTEXTS)
    assert choices("moo.method") == set(multi_objective.METHODS)
    assert choices("moo.normalise") == set(multi_objective.NORMALISE)
    assert choices("model.remat") == {"auto", *remat.POLICIES}
    assert choices("model.norm") == {"layer", "batch"}
    assert choices("model.subsampling") == set(subsampling.FACTORS)
    assert choices("model.kind") == set(cnn_rnn_blocks.GATES)
    assert choices("features.frontend") == set(audio_features.FRONTENDS)
    assert choices("data.text.units") == set(tokenizer.UNITS)
    assert choices("data.text.normalise") == set(normalise.NORMALISERS)
    assert choices("data.streams.*.field") == set(streams.FIELDS)


@pytest.mark.parametrize(
    ("module", "variant", "methods"),
    [
        (quickstart, "smoke", variants.METHODS),
        (birq, "smoke", (*birq.METHODS, "supervised")),
        (m2asr, "digits,smoke", m2asr.METHODS),
    ],
)
def test_each_method_builds_phases_of_its_own(module, variant, methods):
    tables = set()
    for method in methods:
        config = module.get_config(f"{variant},{method}")
        config.update({"teacher_from": "a run"} if "teacher_from" in config else {})
        phases = recipes.load(config.recipe)(config, FACTS).phases
        table = [(p.name, p.steps, p.levels, p.combine, p.weights(9)) for p in phases]
        tables.add(str(table))
    assert len(tables) == len(methods)
    assert set(config_schema.GROUPS["config"]["method"].allowed[config.recipe]) == set(methods)


def test_help_lists_every_field_in_aligned_columns():
    config = manifest.get_config("digits")
    header, *lines = config_schema.describe(config).splitlines()
    assert len(lines) == len(list(config_schema.rows(config)))
    columns = [header.index(title) for title in header.split("  ") if title]
    (line,) = [line for line in lines if line.startswith("config.model.norm ")]
    cells = [line[a:b].strip() for a, b in itertools.pairwise([*columns, None])]
    assert cells[:4] == ["config.model.norm", "layer", "str", "layer | batch"]
    assert cells[4] == "norm of the convolution module"
    assert any(" 1 or above " in line for line in lines)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model.norm", "bath", "config.model.norm='bath': there is no 'bath', did you mean 'batch"),
        ("method", "ptff", "did you mean 'ptft'? There are: bljust, ptft, supervised"),
        ("model.subsampling_factor", 3, "config.model.subsampling_factor=3: there is no 3"),
        ("data.text.normalise", ("lower", "uper"), "there is no 'uper', did you mean 'upper'?"),
        ("model.dim", "wide", "config.model.dim='wide' must be a whole number"),
        ("seed", True, "config.seed=True must be a whole number"),
        ("ema_decay", "0.9", "config.ema_decay='0.9' must be a number"),
        ("cpc.chunk", (1.0, 2.0), "config.cpc.chunk=(1.0, 2.0) must be (context, future, slide)"),
    ],
)
def test_values_of_other_types_or_choices_are_named(field, value, said):
    config = manifest.get_config().to_dict()
    *groups, last = field.split(".")
    functools.reduce(dict.__getitem__, groups, config)[last] = value
    with pytest.raises(UserError) as refused:
        config_schema.check(config)
    assert said in str(refused.value)


def test_fields_without_a_row_are_skipped():
    config = manifest.get_config()
    config.own = ConfigDict({"deep": {"field": 3}})
    config_schema.check(config)
    assert "config.own.deep.field" in config_schema.describe(config)
