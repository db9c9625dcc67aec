"""The command `report`: one run, several in one table, JSON, and mistakes in one line."""

import json

import pytest

from bljust_jax.report import main
from bljust_jax.reporting import comparison, page
from bljust_jax.reporting.run_files import read_run_files
from tests.helpers.reported_runs import make_run


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_one_run(run, capsys):
    assert main([str(run)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == page.summary(read_run_files(run))
    assert err == f"written: {run / 'report.md'}\n"
    assert (run / "plots" / "losses.png").exists()


def test_runs_in_one_table(tmp_path, capsys):
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b", finished=False, method="ptft")]
    assert main([str(folder) for folder in folders]) == 0
    out, err = capsys.readouterr()
    head, _, *rows = map(cells, out.partition("\n\n")[0].splitlines())
    table = [dict(zip(head, row, strict=True)) for row in rows]
    assert [row["run"] for row in table] == ["a", "b"]
    assert [row["method"] for row in table] == ["bljust", "ptft"]
    assert [row["dev WER"] for row in table] == ["50.00 %", "50.00 %"]
    assert [row["dev clean WER"] for row in table] == ["12.50 %", ""]
    assert [row["state"] for row in table] == ["done", "unfinished, 100 steps so far"]
    assert (table[0]["cpc updates"], table[0]["ctc updates"]) == ("100", "60")
    written = tmp_path / "comparison" / "comparison.md"
    assert err == f"written: {written}\n"
    assert "![wer.png](wer.png)" in written.read_text()
    assert sorted(p.name for p in written.parent.iterdir()) == ["comparison.md", "wer.png"]


def test_json_is_a_list_of_runs(tmp_path, capsys):
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b", finished=False)]
    out = tmp_path / "elsewhere"
    assert main([*map(str, folders), "--json", "--out", str(out)]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["scores"] == {"dev/wer": 0.5, "dev/cer": 0.25, "dev/clean/wer": 0.125}
    assert first["costs"]["encoder TFLOP"] == 2.0
    assert (first["finished"], second["finished"]) == (True, False)
    assert (out / "wer.png").exists()


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [make_run(tmp_path / name / "run") for name in ("x", "y")]
    assert comparison.distinct_names([read_run_files(f) for f in folders]) == ["x/run", "y/run"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required: RUN"),
        (["{}/nowhere"], "is no run: it has no config.json"),
        (["{}"], "is no run"),
        (["{}/run", "--colour"], "--colour"),
        (["{}/run", "--out", "{}/x"], "--out is for the comparison"),
        (["{}/torn"], "metrics.jsonl is damaged"),
        (["{}/run", "{}/torn"], "metrics.jsonl is damaged"),
    ],
)
def test_a_mistake_is_one_line(arguments, says, run, capsys):
    torn = make_run(run.parent / "torn")
    (torn / "metrics.jsonl").write_text("not json\n")
    assert main([argument.format(run.parent) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1
    assert not (run / "report.md").exists()


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "comparison/" in capsys.readouterr().out
