"""Rows of the steps of `bench`: their configs, fields changed by --set, and what is lowered."""

import pytest

from bljust_jax import aot
from bljust_jax.benchmarks import step_ahead, traffic
from bljust_jax.benchmarks.step import Shape, make_config
from bljust_jax.common.errors import UserError
from bljust_jax.parallel.mesh import make_mesh

MICRO = Shape(2, 1, 16, 2)


@pytest.fixture(scope="module")
def programs():
    """{title: (what is lowered, traffic)} of a joint step and of blocks, on one CPU device."""
    found = {}
    for title, phase in (("joint step", "joint"), ("blocks", "")):
        row = step_ahead.StepRow(title, phase, shape=MICRO)
        config = make_config(MICRO, "float32", model__channels=16)
        lower = step_ahead.lower_phase if phase else step_ahead.lower_blocks
        made = lower(row, config, make_mesh(data=1))
        found[title] = made, traffic.count(made.lowered.compile().as_text())
    return found


def test_blocks_alone_have_no_front_end_and_no_tail_of_an_optimizer(programs):
    made, found = programs["blocks"]
    layers = {"attention", "feed-forward", "convolution", "norms", "scan stacks"}
    assert layers < set(found.groups)
    assert "front end" not in found.groups
    whole, step = programs["joint step"]
    assert layers | {"front end", "heads and losses", "tail"} <= set(step.groups)
    assert found.bytes < step.bytes
    assert made.parameters < whole.parameters
    # one objective without its front end, of two with it
    assert 2 * made.flops < whole.flops
    assert made.audio == 2
    assert whole.audio == 4  # seconds, both streams


def test_a_loop_over_blocks_is_counted_per_block(programs):
    """Twice the blocks: twice the traffic of their layers."""
    _, two = programs["blocks"]
    deep = MICRO._replace(layers=4)
    row = step_ahead.StepRow("blocks", "", shape=deep)
    config = make_config(deep, "float32", model__channels=16)
    four = traffic.count(
        step_ahead.lower_blocks(row, config, make_mesh(data=1)).lowered.compile().as_text()
    )
    assert four.unknown_loops == 0
    for name in ("attention", "feed-forward", "convolution", "norms"):
        assert four.groups[name] == tuple(2 * n for n in two.groups[name])


@pytest.mark.parametrize("row", step_ahead.STEP_ROWS, ids=lambda row: row.title)
def test_fields_of_the_rows_exist(row):
    config, fields = make_config(row.shape, "bfloat16"), dict(row.fields)
    step_ahead.set_fields(config, {name.replace("__", "."): v for name, v in fields.items()})


def test_fields_are_set_by_their_dotted_names():
    texts = ["model.remat=dots", "model.channels=256", "ema_decay=0.5", "share_forward=True"]
    fields = step_ahead.parse_fields(texts)
    assert fields == {
        "model.remat": "dots",
        "model.channels": 256,
        "ema_decay": 0.5,
        "share_forward": True,
    }
    config = make_config(MICRO, "float32")
    step_ahead.set_fields(config, fields)
    assert (config.model.remat, config.share_forward) == ("dots", True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "joint step on 1 x H200", "--set", "model.remat"], "want FIELD=VALUE"),
        (["--count", "joint"], "no row 'joint': those of steps are CTC step on 1 x H200; joint"),
        (["--set", "model.remat=dots"], "belong to --count"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    assert aot.main(arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("path", ["model.remaat", "modell.remat"])
def test_an_unknown_field_is_refused(path):
    with pytest.raises(UserError, match=f"--set {path}: no such config field"):
        step_ahead.set_fields(make_config(MICRO, "float32"), {path: 1})
