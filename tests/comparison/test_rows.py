"""Rows of results: appended whole, and refused where they are of another config."""

import json
import re

import pytest

from bljust_jax.common.errors import UserError
from bljust_jax.comparison import fingerprint, rows
from bljust_jax.comparison import grid as grids
from tests.helpers import comparisons

SPEAKERS = {"d0": "t0", "d1": "t1", "d2": "t0"}


def row(name, **fields):
    made = {"name": name, "kind": "run", "config": "ab", "fields": {}, "wer": 0.5, "cer": 0.2}
    return made | fields


def test_rows_are_appended_and_read(tmp_path):
    found = rows.read(tmp_path / "new" / "x.jsonl")
    found.add(row("a"))
    found.add(row("b", wer=0.25))
    assert rows.read(found.path).by_name == {"a": row("a"), "b": row("b", wer=0.25)}
    assert found.path.read_bytes().count(b"\n") == 2


def test_a_torn_last_line_is_ended_before_the_next_row(tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    rows.append(path, row("a"))
    with path.open("ab") as file:
        file.write(json.dumps(row("b")).encode()[:30])
    found = rows.read(path)
    assert [*found.by_name] == ["a"]
    found.add(row("b"))
    assert [*rows.read(path).by_name] == ["a", "b"]
    assert "damaged" in caplog.text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([row("a"), row("a")], "two rows a: delete one"),
        ([{"name": "a"}], "a row has no 'cer'"),
    ],
)
def test_a_file_of_wrong_rows_is_refused(tmp_path, lines, message):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=message):
        rows.read(path)


def test_a_row_of_another_config_is_refused_with_the_difference(tmp_path):
    run = grids.runs(comparisons.grid("."), {})[0]
    found = rows.read(tmp_path / "x.jsonl")
    found.add(row(run.name, config="old", fields=json.loads(json.dumps(dict(run.fields)))))
    assert found.of(run, "old") == found.by_name[run.name]
    with pytest.raises(UserError, match="a default, or a shipped config, has changed since"):
        found.of(run, "new")
    changed = run._replace(fields={**run.fields, "data.join": (3, 5), "data.root": "/x"})
    message = re.escape(f"the row {run.name} is of another config (data.join None -> [3, 5])")
    with pytest.raises(UserError, match=message):
        found.of(changed, "new")


def test_a_row_has_errors_per_utterance_and_what_the_run_spent(tmp_path):
    grid = comparisons.grid(".")
    run = grids.runs(grid, {})[0]
    print_of = fingerprint.fingerprint(fingerprint.config_of(grid, run))
    assert rows.make(run, print_of, tmp_path / "none", SPEAKERS, "dev") is None
    comparisons.write_run(tmp_path, run, 0.002)
    made = rows.make(run, print_of, tmp_path, SPEAKERS, "dev")
    wrong = comparisons.draw(run.name)
    assert made["utterances"]["d0"] == ["t0", 3, 0, 13, 0]
    assert made["utterances"]["d1"][:3] == ["t1", 2, min(wrong, 1)]
    assert made["utterances"]["d2"][:3] == ["t0", 1, min(wrong, 1)]
    assert made["tflop"] == 0.002
    assert made["updates"] == {"ctc": 8}
    assert (made["wall_s"], made["train_s"]) == (12.0, 2.0)
    assert made["fields"] == run.fields
    assert rows.same_results(made, made | {"wall_s": 1.0, "versions": {}})
    assert not rows.same_results(made, made | {"wer": 0.0})


def test_an_unfinished_run_has_no_row(tmp_path):
    run = grids.runs(comparisons.grid("."), {})[0]
    comparisons.write_run(tmp_path, run, 0.002, lambda final: final.pop("final"))
    assert rows.make(run, "x", tmp_path, SPEAKERS, "dev") is None
