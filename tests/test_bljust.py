"""The console script: its commands, its start-up time, and shipped configs from any folder."""

import os
import pathlib
import resource
import subprocess
import sys

import pytest

from bljust_jax import __main__ as console
from bljust_jax.common import shipped_configs

ROOT = pathlib.Path(__file__).resolve().parents[1]


def bljust(folder, *args):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bljust_jax", *args]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_every_command_is_a_module_with_a_main():
    for module, help_text in console.COMMANDS.values():
        source = (ROOT / "bljust_jax" / f"{module}.py").read_text(encoding="utf-8")
        assert "def main(" in source or "main = cli.command(" in source
        assert help_text
    modules = {p.stem for p in (ROOT / "bljust_jax").glob("[a-z]*.py")}
    assert {module for module, _ in console.COMMANDS.values()} == modules


def test_help_is_fast_and_imports_no_jax(tmp_path):
    code = "import sys; from bljust_jax.__main__ import main; main(['--help']); print('jax' in "
    code += "sys.modules or 'numpy' in sys.modules)"
    spent = []
    for _ in range(3):
        before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        spent.append(sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before)
    assert done.stdout.splitlines()[-1] == "False"
    assert all(name in done.stdout for name in console.COMMANDS)
    assert min(spent) < 0.3  # seconds of CPU time, whatever else runs; 0.05 on an idle core


def test_unknown_commands_are_one_line(capsys):
    assert console.main(["trian"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: no command 'trian', did you mean 'train'?")
    assert len(captured.err.splitlines()) == 1


def test_arguments_reach_the_command(capsys, tmp_path):
    assert console.main(["report", str(tmp_path)]) == 2
    assert "is no run" in capsys.readouterr().err
    assert console.main(["--version"]) == 0
    assert capsys.readouterr().out.count(".") == 2


# Shipped configs


def test_names_are_resolved_and_files_stay(tmp_path, monkeypatch):
    assert {"quickstart", "librispeech", "m2asr"} <= set(shipped_configs.names())
    assert not {"variants", "defaults"} & set(shipped_configs.names())
    monkeypatch.chdir(tmp_path)
    shipped = f"{shipped_configs.FOLDER}/quickstart.py"
    for given in ("quickstart", "quickstart.py", "configs/quickstart.py"):
        assert shipped_configs.resolve(given) == shipped
        assert shipped_configs.resolve(f"{given}:ptft,smoke") == f"{shipped}:ptft,smoke"
    for given in ("quikstart", "other/quickstart.py", "variants"):
        assert shipped_configs.resolve(given) == given
    (tmp_path / "quickstart.py").write_text("")
    assert shipped_configs.resolve("quickstart.py:smoke") == "quickstart.py:smoke"
    flags = ["main", "--config", "birq:smoke", "--workdir=quickstart"]
    assert shipped_configs.resolve_flag(flags) == [
        *("main", "--config", f"{shipped_configs.FOLDER}/birq.py:smoke", "--workdir=quickstart")
    ]


CONFIG = """from configs import mine, variants
def get_config(arg=None):
    from configs import quickstart
    config = quickstart.get_config(arg)
    config.seed = mine.SEED
    return config
"""


@pytest.mark.parametrize("own", [False, True])
def test_a_folder_configs_of_the_user_s_coexists(own, tmp_path):
    """With a module of its own that imports shipped ones, or, with `own` False, unrelated."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("")
    (tmp_path / "configs" / "mine.py").write_text("SEED = 7\n")
    (tmp_path / "configs" / "task.py").write_text(CONFIG)
    config = "configs/task.py:smoke" if own else "quickstart:smoke"
    done = bljust(tmp_path, "train", f"--config={config}", "--help_config")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    (seed,) = [row[1] for row in rows if row and row[0] == "config.seed"]
    assert seed == ("7" if own else "0")


def test_an_unknown_config_lists_the_shipped_ones(tmp_path):
    done = bljust(tmp_path, "train", "--config=quikstart")
    assert done.returncode == 2
    assert "did you mean 'quickstart'?" in done.stderr
