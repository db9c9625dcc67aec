"""The scripts of continuous integration, with fakes of what they start."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.helpers.documents import ROOT

MAKE = "#!/usr/bin/env bash\necho make $*\n[ $1 != $FAIL ]\n"
# python -c runs; a training prints its last line
PYTHON = f"""#!/usr/bin/env bash
[ $1 != -c ] || exec {sys.executable} "$@"
echo $* >&2
echo '{{"test/wer": '$WER', "dev/wer": '$WER'}}'
"""


@pytest.fixture
def ci(tmp_path):
    """ci(script, *arguments, **environment) -> the finished process, in a copy of `.ci`."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    for name, text in (("bin/make", MAKE), (".venv/bin/python", PYTHON)):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(script, *arguments, **environment):
        path = f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}"
        given = {"PATH": path, "FAIL": "nothing", "PYTHON": sys.executable, "WER": "0", "VENV": ""}
        return subprocess.run(
            [tmp_path / ".ci" / script, *arguments],
            env={**os.environ, **given, **environment},
            capture_output=True,
            text=True,
        )

    return run


def test_every_stage_is_timed(ci):
    done = ci("run")
    assert done.returncode == 0, done.stderr
    times = done.stdout.partition("time per stage:\n")[2].splitlines()
    words = [line.split(" s  ") for line in times]
    assert all(int(seconds) >= 0 for seconds, _ in words)
    assert [name.split(" ARGS")[0] for _, name in words] == [
        *("make setup", "make lint", "make test", "make compare-smoke", "make aot-smoke"),
        *("make peers", "in all"),
    ]


def test_a_stage_that_fails_ends_the_run_and_the_times_are_printed(ci):
    done = ci("run", FAIL="lint")
    assert done.returncode == 1
    assert "s  make lint" in done.stdout
    assert "make test" not in done.stdout


@pytest.mark.parametrize(("wer", "code"), [("0.2", 0), ("0.21", 1), ("NaN", 1)])
def test_the_nightly_quickstart_fails_above_its_error_rate(ci, wer, code):
    done = ci("nightly", "quickstart", WER=wer)
    assert done.returncode == code, done.stderr
    seeds = done.stderr.count("--config.seed=")
    assert seeds == (1 if code else 3)


def test_only_bl_just_has_a_limit_on_real_recordings(ci, tmp_path):
    missing = ci("nightly", "digits", SPEECH=str(tmp_path / "none"))
    assert missing.returncode == 0
    assert "digits skipped" in missing.stderr
    pathlib.Path(tmp_path, "speech", "digits_ar").mkdir(parents=True)
    given = {"SPEECH": str(tmp_path / "speech"), "RUNS": str(tmp_path / "runs")}
    assert ci("nightly", "digits", WER="0.16", **given).returncode == 1
    done = ci("nightly", "digits", WER="0.15", **given)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("--config=configs/manifest.py:digits,") == 5


def test_a_bare_debian_is_skipped_where_it_cannot_be_made(ci, tmp_path):
    for name in ("bash", "env", "dirname", "mktemp", "rm", "id"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    done = ci("nightly", "bare", PATH=str(tmp_path / "bin"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == "bare skipped: needs root and debootstrap\n"


def test_a_part_of_the_nightly_that_does_not_exist_is_refused(ci):
    done = ci("nightly", "coffee")
    assert done.returncode == 2
    assert "choose from slow, miniatures, newest" in done.stderr
