"""The page of a run with many tasks, and such runs compared: every table fits a terminal."""

import json
import re

import pytest

from bljust_jax import reporting
from bljust_jax.reporting import comparison, page
from bljust_jax.reporting.plots import series
from bljust_jax.reporting.run_files import read_run_files
from bljust_jax.reporting.text import MAX_COLUMNS, columns, narrow_table, rate, table
from bljust_jax.reporting.utterances import worst
from tests.helpers.logs import ASR, LEVELS, ST, moo_rows, score_rows

FACTS = [
    {"name": "explore", "start": 0, "steps": 40, "levels": "cpc"},
    {
        "name": "joint",
        "start": 40,
        "steps": 60,
        "levels": "asr/ar+asr/en > st/ar-en+st/en-ar > cpc",
    },
]
SIGNATURES = {"st/ar-en": {"bleu": "nrefs:1|tok:13a"}}


def sample(name, reference, *hypotheses):
    pairs = [
        {"id": f"{name}-{n}", "reference": reference, "hypothesis": text}
        for n, text in enumerate(hypotheses)
    ]
    return "".join(json.dumps(pair) + "\n" for pair in pairs)


def make_run(folder, method="vm_uas"):
    (folder / "samples").mkdir(parents=True)
    measures = dict.fromkeys(ASR, "wer") | dict.fromkeys(ST, "bleu") | {"asr/ar": "cer"}
    streams = {name: {"measure": measure} for name, measure in measures.items()}
    config = {"recipe": "m2asr", "method": method, "seed": 3, "data": {"streams": streams}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "run.json").write_text(json.dumps({"phases": FACTS, "signatures": SIGNATURES}))
    rows = sorted(moo_rows() + score_rows(), key=lambda row: row["step"])
    final = {k: v for k, v in rows[-1].items() if k.startswith("dev/")}
    final |= {k.replace("dev/", "test/"): v for k, v in final.items()}
    final |= {"dev/asr/en/words": 8, "dev/st/ar-en/empty": 2}
    final |= {"step": 100, "final": True, "best_step": 100, "params_digest": "00ff"}
    lines = "".join(json.dumps(row) + "\n" for row in [*rows, final])
    (folder / "metrics.jsonl").write_text(lines)
    spoken = sample("x", "one two", "one to", "one two", "none of it")
    for name in ("dev-asr_ar", "dev-asr_en", "dev-st_ar-en"):
        (folder / "samples" / f"{name}-best.jsonl").write_text(spoken)
    return folder


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.slow
def test_report_of_tasks(tmp_path):
    text = reporting.write(make_run(tmp_path / "run")).read_text()
    rows = {row[0]: row[1:] for row in map(cells, text.splitlines()) if len(row) > 1}
    assert rows["split"] == ["WER", "CER", "BLEU", "chrF", "words", "empty"]
    assert rows["dev, mean of tasks"] == ["55.00 %", "25.00 %", "30.5", "60.0", "", ""]
    assert rows["dev/asr/en"] == ["60.00 %", "25.00 %", "", "", "8", ""]
    assert rows["dev/st/ar-en"] == ["", "", "30.0", "60.0", "", "2"]
    assert rows["test/st/en-ar"] == ["", "", "31.0", "60.0", "", ""]
    assert rows["st/ar-en BLEU"] == ["nrefs:1 tok:13a"]
    pictures = re.findall(r"^!\[(\w+)\.png\]", text, re.MULTILINE)
    assert pictures == ["losses", "scores", "gradients", "weights", "cosines", "layers"]
    for name in pictures:
        assert (tmp_path / "run" / "plots" / f"{name}.png").stat().st_size < 200_000


def test_worst_utterances_of_tasks(tmp_path):
    run = make_run(tmp_path / "run")
    lines = page._worst(read_run_files(run))
    assert lines[:2] == list(page.TRANSLATED)
    found = [cells(line) for line in lines if line.startswith("| ")]
    heads = [row[:2] for row in found if "errors" in row[0]]
    assert heads == [
        ["character errors", "utterance of dev/asr/ar"],
        ["word errors", "utterance of dev/asr/en"],
        ["word errors", "utterance of dev/st/ar-en"],
    ]
    assert [row[:2] for row in found if row[2] == "reference"][2:] == [
        *(["3", "x-2"], ["1", "x-0"]) * 2,
    ]
    assert lines[2] == ""
    assert lines[-1] != ""


def test_characters_are_counted_where_words_tell_nothing(tmp_path):
    path = tmp_path / "zh.jsonl"
    path.write_text(sample("x", "一二三四", "一二三", "五六", "一二三四"))
    assert [(n, pair["id"]) for n, pair in worst(path, 9, "characters")] == [(4, "x-1"), (1, "x-0")]
    assert [n for n, _ in worst(path, 9)] == [1, 1]


def test_the_course_leaves_layers_out_and_is_turned(tmp_path):
    run = read_run_files(make_run(tmp_path / "run"))
    lines = page._course(run)
    head, *rows = [cells(line) for line in lines if not line.startswith("|-")]
    assert head[0] == "step"
    assert "100" in head
    course = {row[0]: row[1:] for row in rows}
    assert course["moo/weight/asr/ar"][-1] == "0.4"
    assert course["moo/cos/asr/ar/asr/en"][-1] == "-0.25"  # a bar would part cells
    assert course["dev/bleu"][-1] == "30.5"
    assert not any("encoder" in name for name in course)
    assert max(map(columns, lines)) <= MAX_COLUMNS


def test_many_cosines_are_left_out_of_the_course(tmp_path):
    run = read_run_files(make_run(tmp_path / "run"))
    rows = moo_rows([tuple(f"asr/{c}" for c in "abcdefghi")])
    shown = [cells(line)[0] for line in page._course(run._replace(rows=rows))]
    assert len(shown) == 2 + 9 + 9  # head and rule, losses, weights
    assert not any("cos" in name for name in shown)


def test_a_wide_table_is_turned_if_that_helps():
    head, rows = ("run", *("score " * 3 + str(n) for n in range(20))), [range(21), range(21)]
    assert narrow_table(head, rows) == table(
        ("run", 0, 0), [(name, n + 1, n + 1) for n, name in enumerate(head[1:])]
    )
    assert narrow_table(head[:3], [range(3)]) == table(head[:3], [range(3)])
    long = ("a", "b"), [("x" * 90, "y" * 90)] * 3
    assert narrow_table(*long) == table(*long)


def test_levels_are_read_from_run_json():
    assert [page.losses_of(phase["levels"]) for phase in FACTS] == [(("cpc",),), LEVELS]


def test_scores_are_printed_on_their_scales():
    assert [rate(m, v) for m, v in (("wer", 0.1234), ("cer", None))] == ["12.34 %", ""]
    assert [rate(m, 31.25) for m in ("bleu", "chrf")] == ["31.2", "31.2"]
    assert series.score_name("dev/asr/en/wer") == "dev asr/en WER"
    assert series.score_name("test/chrf") == "test chrF"


def test_runs_are_compared_a_score_a_line(tmp_path):
    runs = [read_run_files(make_run(tmp_path / name, name)) for name in ("vm_uas", "vc")]
    lines, written = comparison.write(runs, tmp_path / "out")
    head, _, *rows = map(cells, lines)
    found = {row[0]: row[1:] for row in rows}
    assert head == ["run", "vm_uas", "vc"]
    assert found["method"] == ["vm_uas", "vc"]
    assert found["dev WER"] == ["55.00 %"] * 2
    assert found["dev st/en-ar BLEU"] == ["31.0"] * 2
    assert found["test asr/ar CER"] == ["25.00 %"] * 2
    assert max(map(columns, lines)) < 80
    names = {path.name for path in written.parent.iterdir()}
    assert names == {"comparison.md", "wer.png", "bleu.png"}
