"""The table of steps that are compiled ahead of time, and the command's output; compiling itself
needs libtpu (`make aot`)."""

import json
import pathlib

import pytest

from bljust_jax import aot
from bljust_jax.benchmarks import chips, compile_ahead
from bljust_jax.common.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def figures(row, **changes):
    found = compile_ahead.Figures(
        name=row.name,
        level="",
        mesh="data 4 x fsdp 4",
        parameters=27_300_000,
        rows={"labelled": "48 x 25 s", "unlabelled": "48 x 25 s"},
        audio=150.0,
        flops=2.5e12,
        peak=3 * aot.GIB,
        memory=16 * aot.GIB,
        arguments=aot.GIB,
        temporaries=aot.GIB,
        collectives={"all-gather": [12, 3 * aot.MIB], "all-reduce": [7, aot.MIB // 2]},
        seconds=201.4,
        bytes=2.24e11,
        kernels=6088,
    )
    return found._replace(**changes)


@pytest.mark.parametrize(
    "row", compile_ahead.ROWS + compile_ahead.NIGHTLY, ids=lambda row: row.name
)
def test_rows_name_what_is_shipped(row, monkeypatch):
    """Config, phase and mesh exist; the batch has rows for every device that shares it."""
    monkeypatch.chdir(ROOT)
    config, recipe = compile_ahead.make_recipe(row)
    phase = next(p for p in recipe.phases if p.name == row.phase)
    part = chips.CHIPS[row.chips]
    devices, rest = divmod(part.count, part.slices * row.fsdp * row.tensor)
    assert rest == 0
    assert devices >= 1
    assert config.model.get("heads", row.tensor) % row.tensor == 0
    streams = sorted({s for o in recipe.active(phase) for s in o.streams})
    multiple = part.count // row.tensor * config.accumulate
    for bucket in compile_ahead.largest_buckets(config, streams, multiple).values():
        assert bucket.batch_size % multiple == 0


def test_every_recipe_encoder_and_generation_has_a_row(monkeypatch):
    monkeypatch.chdir(ROOT)
    configs = [compile_ahead.make_recipe(row)[0] for row in compile_ahead.ROWS]
    assert {c.recipe for c in configs} == {"bljust", "birq", "m2asr"}
    assert {c.encoder for c in configs} == {"conformer", "wav2vec2", "cnn_rnn"}
    assert {row.chips.split("-")[0] for row in compile_ahead.ROWS} == {
        "v4",
        "v5e",
        "v6e",
        "2 x v5e",
        "8 x H200",
    }
    names = [row.name for row in aot.ALL]
    assert len(set(names)) == len(names)


def test_rows_without_counted_bytes_stay_in_the_table():
    old = figures(compile_ahead.ROWS[0])._asdict() | {"date": "2026-11-27", "jax": "0.12"}
    for name in ("bytes", "kernels"):
        del old[name]
    assert "| - | - | 12 all-gather" in aot.table_line(old)


def test_a_gpu_needs_the_plugin_of_jax(monkeypatch):
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"NVIDIA H200: no jax-cuda13-plugin .* `make aot`"):
        chips.devices(chips.CHIPS["8 x H200"])


def test_bytes_of_collectives():
    text = """
      %a = bf16[2,3]{1,0} all-gather(%x), channel_id=1
      %b = (f32[4]{0}, /*index=1*/s32[]) all-reduce(%y, %z), channel_id=2
      %c = f32[8] all-reduce-start(%x)
      %d = f32[9] add(%all-reduce.1, %x)
    """
    assert compile_ahead.collectives(text) == {"all-gather": [1, 12], "all-reduce": [2, 52]}


def test_figures_are_kept_beside_those_of_other_rows(tmp_path):
    first, second = compile_ahead.ROWS[:2]
    aot.write(tmp_path, figures(second))
    aot.write(tmp_path, figures(first))
    aot.write(tmp_path, figures(second, peak=5 * aot.GIB))
    aot.write(tmp_path, figures(second, level="O0", peak=6 * aot.GIB))
    kept = json.loads((tmp_path / "aot.json").read_text())
    assert list(kept) == [first.name, second.name, f"{second.name} O0"]
    page = (tmp_path / "aot.md").read_text()
    *_, one, two, less = page.splitlines()
    assert one.startswith(f"| {first.name} | full | data 4 x fsdp 4 | 27.3 M | labelled 48 x 25 s,")
    assert "3.00 / 16 GiB" in one
    assert "5.00 / 16 GiB" in two
    assert less.startswith(f"| {second.name} | O0 | ")
    assert "6.00 / 16 GiB" in less
    assert "12 all-gather, 3.0 MiB; 7 all-reduce, 0.5 MiB" in one
    assert "| 1.00 GiB | 2.50 TFLOP | 3 ms | 224.0 GB | 6,088 | " in one
    columns = {row.count("|") for row in page.splitlines() if row.startswith("|")}
    assert len(columns) == 1


def test_a_step_that_does_not_fit_fails_the_command(monkeypatch, capsys):
    """With the line of its job, and the figures of those that fit kept."""

    def job(command, **_):
        name = command[command.index("--one") + 1]
        done = aot.subprocess.CompletedProcess(command, 0, "", "")
        if "large" in name:
            done.returncode, done.stderr = 2, f"noise\nerror: {name}: does not fit: 40.1 GiB\n"
        else:
            row = next(row for row in compile_ahead.ROWS if row.name == name)
            done.stdout = "noise\n" + json.dumps(figures(row)._asdict()) + "\n"
        return done

    monkeypatch.setattr(aot.subprocess, "run", job)
    assert aot.main(["--rows", "S joint,large joint on v6e"]) == 2
    said = capsys.readouterr().err
    assert "librispeech.py:S joint on v5e-16: 3.0 of 16 GiB; 201 s of CPU" in said
    last = said.splitlines()[-1]
    assert last == "error: wav2vec2_just.py:large joint on v6e-8: does not fit: 40.1 GiB"
    assert aot.main(["--rows", "S joint"]) == 0
    assert aot.main(["--rows", "none"]) == 2
