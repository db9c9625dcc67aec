"""Pictures of many objectives and tasks: weights a level, cosines a layer, lines that stay
legible."""

from itertools import combinations

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from bljust_jax.reporting import plots
from bljust_jax.reporting.plots import curves, objectives, panels, series
from bljust_jax.reporting.plots.style import STYLE, area_colours
from tests.helpers.logs import ASR, LAYERS, LEVELS, ST, moo_rows, score_rows

PHASES = [plots.Span("explore", 0, 40, (("cpc",),)), plots.Span("joint", 40, 60, LEVELS)]


def drawn(figure):
    """The figure with its places settled, as it is saved."""
    FigureCanvasAgg(figure).draw()
    return figure


# Names


def test_objectives_and_layers_with_slashes_are_told_apart():
    """Objectives whose names begin other names: st, st/en, st/en-fr."""
    names = ("asr/en", "st", "st/en", "st/en-fr", "cpc")
    row = {"step": 1, "train/cpc/loss": 1.0} | {f"moo/norm/{name}": 1.0 for name in names}
    row |= {"moo/cos/asr/en|st/en-fr": 0.0, "moo/cos/asr/en|st/en/encoder/blocks/0": 0.0}
    row |= {"moo/cos/asr/en|cpc": 0.0, "moo/cos/asr/en|cpc/encoder/frontend": 0.0}
    assert series.cosine_keys([row]) == {
        "asr/en|st/en-fr": {"": "moo/cos/asr/en|st/en-fr"},
        "asr/en|st/en": {"encoder/blocks/0": "moo/cos/asr/en|st/en/encoder/blocks/0"},
        "asr/en|cpc": {
            "": "moo/cos/asr/en|cpc",
            "encoder/frontend": "moo/cos/asr/en|cpc/encoder/frontend",
        },
    }
    assert series.cosine_keys([{"step": 1, "moo/cos/a|b": 0.0}]) == {"a|b": {"": "moo/cos/a|b"}}


@given(st.permutations([*LAYERS, *(f"encoder/blocks/{n}" for n in range(2, 12)), "encoder/norm"]))
def test_layers_are_in_the_order_of_the_network(layers):
    blocks = [f"encoder/blocks/{n}" for n in range(12)]
    assert series.in_network_order(layers) == ["encoder/frontend", "encoder/norm", *blocks]


def test_layers_have_short_names():
    assert objectives.short_names([*LAYERS, ""]) == (
        ["frontend", "0", "1", "all"],
        "encoder/blocks",
    )
    several = ["encoder/conv/0", "encoder/rnn/0", ""]
    assert objectives.short_names(several) == ([*several[:2], "all"], "")


def test_late_means_are_of_the_last_third():
    line = (np.arange(7.0), np.array([9, 9, np.nan, 9, 1, 2, np.nan]))  # of five values the last 2
    assert series.late_mean(line) == 1.5
    assert np.isnan(series.late_mean((np.zeros(0), np.zeros(0))))


# Weights


def weights(rows, phases):
    with matplotlib.rc_context(STYLE):
        return objectives.OBJECTIVES["weights"][0](rows, phases)


def test_weights_are_stacked_a_level_up_to_one():
    figure = weights(moo_rows(), PHASES)
    assert [axes.get_ylabel() for axes in figure.axes] == ["weight, level 0", "weight, level 1"]
    for axes, level in zip(figure.axes, (ASR, ST), strict=True):
        assert axes.get_ylim() == pytest.approx((0, 1), abs=1e-6)
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert legend == [f"{level[1]}  0.60", f"{level[0]}  0.40"]  # from above
        lower, upper = axes.collections[:2]
        edge = {tuple(p) for p in np.round(lower.get_paths()[0].vertices, 6).tolist()}
        assert {(50.0, 0.45), (100.0, 0.4), (50.0, 0.0), (100.0, 0.0)} <= edge
        edge = {tuple(p) for p in np.round(upper.get_paths()[0].vertices, 6).tolist()}
        assert {(50.0, 0.45), (100.0, 0.4), (50.0, 1.0), (100.0, 1.0)} <= edge


def test_a_level_has_the_rows_of_its_own_phases():
    """The same losses in one level, then in two: three panels, each over its own steps."""
    phases = [plots.Span("flat", 0, 60, ((*ASR, *ST),)), plots.Span("deep", 60, 40, LEVELS)]
    rows = moo_rows([(*ASR, *ST)], steps=range(10, 61, 10)) + moo_rows(steps=range(70, 101, 10))
    figure = weights(rows, phases)
    names = ["weight, level 0", "weight, level 0", "weight, level 1"]
    assert [axes.get_ylabel() for axes in figure.axes] == names
    spans = [axes.collections[0].get_paths()[0].vertices[:, 0] for axes in figure.axes]
    assert [(x.min(), x.max()) for x in spans] == [(10, 60), (70, 100), (70, 100)]


def test_turns_shorter_than_the_time_between_log_lines_are_told_of():
    """A line every 10 steps, and of these 6 explore and 4 are joint."""
    turns = [
        plots.Span(*turn)
        for n in range(0, 100, 10)
        for turn in (("joint", n, 4, LEVELS), ("explore", n + 4, 6, (("cpc",),)))
    ]
    areas = weights(moo_rows(), turns).axes[0].collections[0].get_paths()[0].vertices[:, 0]
    assert (areas.min(), areas.max()) == (50, 100)


def test_without_phases_the_weights_are_one_panel():
    figure = weights(moo_rows([ASR]), [])
    assert [axes.get_ylabel() for axes in figure.axes] == ["weight, inside a level"]


def test_a_pause_parts_the_areas():
    """Alternating turns: nothing is drawn between them."""
    rows = moo_rows([ASR], steps=[10, 20, 30, 80, 90])
    turns = [
        plots.Span("a", 0, 30, (ASR,)),
        plots.Span("b", 30, 40),
        plots.Span("a", 70, 30, (ASR,)),
    ]
    for area in weights(rows, turns).axes[0].collections:
        starts = [path.vertices[:, 0].min() for path in area.get_paths()]
        ends = [path.vertices[:, 0].max() for path in area.get_paths()]
        assert (starts, ends) == ([10, 80], [30, 90])


def test_colours_of_areas_differ():
    found = area_colours(24)
    apart = [np.abs(np.subtract(a, b)).max() for a, b in combinations(found, 2)]
    assert min(apart) > 0.05
    np.testing.assert_allclose(found[:2], [to_rgb("#0072b2"), to_rgb("#d55e00")])  # as of lines


# Cosines


def test_matrix_of_pairs_and_layers():
    heat = objectives.by_layer(moo_rows())
    assert heat.rows == ["asr/ar|asr/en", "st/ar-en|st/en-ar"]
    assert heat.columns == [*LAYERS, ""]
    # the last third of 50, 60, ... 100 is 90 and 100
    np.testing.assert_allclose(heat.matrix, [[0.19, 0.29, 0.39, -0.25]] * 2, rtol=1e-12)
    axes = objectives.OBJECTIVES["cosines"][0](moo_rows(), PHASES).axes[0]
    image = axes.images[0]
    np.testing.assert_array_equal(image.get_array(), heat.matrix)
    assert (image.norm.vmin, image.norm.vmax) == (-image.norm.vmax, pytest.approx(0.39))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["frontend", "0", "1", "all"]
    assert [text.get_text() for text in axes.texts[:4]] == [".19", ".29", ".39", "\u2212.25"]


def test_a_pair_that_lacks_a_layer_leaves_its_cell_empty():
    rows = moo_rows()
    rows = [
        {k: v for k, v in row.items() if k != f"moo/cos/{'|'.join(ST)}/{LAYERS[1]}"} for row in rows
    ]
    heat = objectives.by_layer(rows)
    assert np.argwhere(np.isnan(heat.matrix)).tolist() == [[1, 1]]
    assert len(objectives.OBJECTIVES["cosines"][0](rows, []).axes[0].texts) == 7


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.004, ".00"), (-0.004, ".00"), (1.0, "1.00"), (-1.0, "\u22121.00"), (-0.126, "\u2212.13")],
)
def test_values_in_cells_are_short(value, text):
    rows = [{"step": 1, "moo/norm/b": 1.0, "moo/cos/a|b/x/0": value}]
    axes = objectives.OBJECTIVES["cosines"][0](rows, []).axes[0]
    assert [found.get_text() for found in axes.texts] == [text]


def test_layers_over_steps_are_means_over_the_pairs_of_a_level():
    level = ("asr/ar", "asr/de", "asr/en")
    rows = moo_rows([level])
    heat = objectives.over_time(rows, level)
    assert heat.rows == list(LAYERS)
    assert heat.columns == [40, 50, 60, 70, 80, 90, 100]
    steps = np.arange(50, 101, 10) / 500
    expected = 0.01 + np.array([[0.0], [0.1], [0.2]]) + steps  # three pairs: 0, 1, 2 hundredths
    np.testing.assert_allclose(heat.matrix, expected, rtol=1e-12)
    two = objectives.over_time(rows, level[:2])  # one pair
    np.testing.assert_allclose(two.matrix, expected - 0.01, rtol=1e-12)
    assert objectives.over_time(rows, level[:1]) is None


def test_long_runs_are_put_into_few_stretches():
    rows = moo_rows([ASR], steps=range(10, 10 * 300 + 1, 10))
    heat = objectives.over_time(rows, ASR)
    assert heat.matrix.shape == (3, 100)  # three log lines each
    np.testing.assert_allclose(heat.matrix[0], 0.04 + np.arange(100) * 0.06, rtol=1e-9)


def test_a_pause_is_an_empty_stretch():
    heat = objectives.over_time(moo_rows([ASR], steps=[10, 20, 30, 50, 60]), ASR)
    assert np.isnan(heat.matrix).tolist() == [[False, False, False, True, False, False]] * 3


@pytest.mark.parametrize("phases", [PHASES, PHASES[1:]], ids=["joint white", "joint grey"])
def test_layers_over_steps_have_the_first_layer_below_and_lie_on_the_phases(phases):
    with matplotlib.rc_context(STYLE):
        figure = objectives.OBJECTIVES["layers"][0](moo_rows(), phases)
    top, below, _ = figure.axes
    assert (top.get_ylabel(), below.get_ylabel()) == ("layer, level 0", "layer, level 1")
    assert [label.get_text() for label in top.get_yticklabels()] == ["frontend", "0", "1"]
    image = top.images[0]
    assert image.get_extent() == [40, 100, -0.5, 2.5]
    assert image.get_array()[-1, 0] == pytest.approx(0.1)  # frontend, steps 40 to 50
    assert top.get_xlim() == (0, 100)
    pixels = np.asarray(drawn(figure).canvas.buffer_rgba())
    for axes, step, layer, value in ((top, 45, 0, 0.1), (below, 95, 2, 0.4)):
        x, y = axes.transData.transform((step, layer)).astype(int)
        expected = image.cmap(image.norm(value), bytes=True)
        np.testing.assert_allclose(pixels[-y, x], expected, atol=2)  # not hidden by the phase


@pytest.mark.daily("2-4-True", "5-60-False")
@pytest.mark.parametrize(
    ("objectives_", "layers", "written"),
    [(2, 4, True), (3, 24, True), (9, 17, True), (5, 60, False)],
)
def test_the_heat_map_is_legible(objectives_, layers, written):
    """Nothing lies on another thing or outside the picture, and values fit into their cells."""
    names = tuple(f"st/{c}{c}-en" for c in "abcdefghi"[:objectives_])
    rows = moo_rows([names], [LAYERS[0], *(f"encoder/blocks/{n}" for n in range(layers))])
    for row in rows:  # the widest texts
        row |= {k: -0.88 for k in row if k.startswith("moo/cos/")}
    with matplotlib.rc_context(STYLE):
        figure = drawn(objectives.OBJECTIVES["cosines"][0](rows, PHASES))
    axes = figure.axes[0]
    assert bool(axes.texts) == written
    cell = axes.transData.transform([(0, 0), (1, 1)])
    width, height = np.abs(np.diff(cell, axis=0)[0])
    for text in axes.texts:
        box = text.get_window_extent()
        assert box.width < width
        assert box.height < height
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert all(figure.bbox.containsx(b.x0) and figure.bbox.containsy(b.y0) for b in boxes)
        assert sum(a.overlaps(b) for a, b in combinations(boxes, 2)) == 0


# Lines of many objectives


def labels(axes):
    return [line.get_label() for line in axes.get_lines() if not line.get_label().startswith("_")]


def test_losses_of_one_kind_share_a_panel_and_keep_their_colours():
    rows = [row | {"train/cpc/loss": 1.0} for row in moo_rows()]
    with matplotlib.rc_context(STYLE):
        losses = curves.CURVES["losses"][0](rows, PHASES)
        gradients = curves.CURVES["gradients"][0](rows, PHASES)
    names = [axes.get_ylabel() for axes in losses.axes]
    assert names == ["asr loss (nats)", "cpc loss (nats)", "st loss (nats)"]
    assert [labels(axes) for axes in losses.axes] == [list(ASR), ["cpc"], list(ST)]
    alone = curves.CURVES["losses"][0]([{"step": 1, "train/st/en-fr/loss": 1.0}], [])
    assert alone.axes[0].get_ylabel() == "st/en-fr loss (nats)"
    assert alone.axes[0].get_legend() is None
    assert labels(gradients.axes[1]) == ["asr/ar|asr/en", "st/ar-en|st/en-ar"]  # no layer


def test_of_many_cosines_the_lowest_are_drawn():
    names = tuple(f"asr/{c}" for c in "abcdef")
    rows = moo_rows([names])
    for row in rows:
        for n, pair in enumerate(combinations(names, 2)):
            row[f"moo/cos/{'|'.join(pair)}"] = 0.1 * (n % 5) - 0.01 * n
    axes = curves.CURVES["gradients"][0](rows, []).axes[1]
    assert axes.get_ylabel() == "cosine, 6 lowest of 15"
    last = [line.get_ydata()[-1] for line in axes.get_lines() if line.get_label() in labels(axes)]
    assert sorted(last) == sorted(0.1 * (n % 5) - 0.01 * n for n in range(15))[:6]


def test_equal_schedules_of_many_groups_are_one_line():
    x, flat = np.arange(3.0), np.ones(3)
    few = {f"g{n}": (x, flat) for n in range(4)}
    assert panels.merge_equal(few) == few
    assert list(panels.merge_equal(few | {"h": (x, 2 * flat)})) == ["g0 and 3 more", "h"]
    five = {f"g{n}": (x, flat * (n // 2)) for n in range(5)}
    assert list(panels.merge_equal(five)) == ["g0, g1", "g2, g3", "g4"]


def test_scores_of_tasks_and_their_means():
    rows = moo_rows() + score_rows()
    with matplotlib.rc_context(STYLE):
        figure = drawn(curves.CURVES["scores"][0](rows, PHASES))
    rights = figure.axes[1::2]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == [
        *("dev WER (%)", "dev CER (%)", "dev BLEU", "dev chrF"),
    ]
    assert labels(rights[0]) == ["mean  55.0%", "asr/ar  50.0%", "asr/en  60.0%"]
    assert labels(rights[2]) == ["mean  30.5", "st/ar-en  30.0", "st/en-ar  31.0"]
    mean, *tasks = rights[0].get_lines()
    assert min(mean.get_linewidth() / line.get_linewidth() for line in tasks) > 2
    order = [line.get_color() for line in (*tasks, *rights[2].get_lines()[1:])]
    losses = curves.CURVES["losses"][0](rows, []).axes
    coloured = {line.get_label(): line.get_color() for a in losses for line in a.get_lines()}
    assert order == [coloured[name] for name in (*ASR, *ST)]
    for axes in rights:
        assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1


def test_the_mean_of_one_task_is_not_drawn():
    rows = [
        {"step": n, "train/st/a-b/loss": 1.0, "dev/bleu": 3.0, "dev/st/a-b/bleu": 3.0}
        for n in (1, 2)
    ]
    left, right = curves.CURVES["scores"][0](rows, []).axes
    assert left.get_ylabel() == "dev st/a-b BLEU"
    assert len(right.get_lines()) == 1


def test_a_run_of_one_task_has_none_of_these_pictures(tmp_path):
    """One cosine and no weights: losses and gradients alone."""
    rows = [
        {"step": n, "train/ctc/loss": 1.0, "moo/norm/ctc": 1.0, "moo/norm/cpc": 1.0}
        | {"moo/cos/ctc|cpc": 0.1}
        for n in (1, 2)
    ]
    spans = [plots.Span("joint", 0, 2, (("ctc",), ("cpc",)))]
    pictures = plots.draw(tmp_path / "plots", rows, spans)
    assert [picture.file for picture in pictures] == ["losses.png", "gradients.png"]
