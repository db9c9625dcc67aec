"""Fakes for the programs of platforms that no test can reach."""

import os
import pathlib
import shlex
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
PROGRAMS = ("gcloud", "kubectl", "sbatch", "srun", "scontrol", "sky", "docker", "sleep")
MOUNTING = ("sudo", "gcsfuse", "mountpoint")
FLAGS = ["--config=configs/quickstart.py:smoke", "--workdir=/mnt/my runs/it's $HOME", '--x="1";ls']

# Writes down its arguments, does what `NAME.hook` says, and answers with a code and words: those of
# the next line of NAME, the last one ever after.
FAKE = """#!/usr/bin/env bash
name="${0##*/}"
call="$FAKES/calls/$(printf %03d "$(ls "$FAKES/calls" | wc -l)")"
printf '%s\\0' "$name" "$@" > "$call"
[ ! -f "$FAKES/$name.hook" ] || . "$FAKES/$name.hook"
answers="$FAKES/$name"
[ -s "$answers" ] || exit 0
read -r code text < "$answers"
[ "$(wc -l < "$answers")" -eq 1 ] || sed -i 1d "$answers"
[ -z "$text" ] || echo "$text"
exit "$code"
"""


class Platform:
    """Fakes on PATH; `answers(gcloud=["0 READY", "75"])` are the codes and words of their calls."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "calls").mkdir(parents=True)
        (folder / "bin").mkdir()
        for name in PROGRAMS:
            self.fake(name)

    def fake(self, name, source=FAKE):
        path = self.folder / "bin" / name
        path.write_text(source)
        path.chmod(0o755)
        return path

    def answers(self, **lines):
        for name, said in lines.items():
            (self.folder / name).write_text("".join(f"{line}\n" for line in said))

    def environ(self, given):
        kept = {k: v for k, v in os.environ.items() if k in ("HOME", "LANG", "TMPDIR")}
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        # a key that no command line may show
        return {
            **kept,
            "PATH": path,
            "FAKES": str(self.folder),
            "WANDB_API_KEY": "key-123",
            **given,
        }

    def run(self, script, *arguments, cwd=ROOT, **given):
        done = subprocess.run(
            ["bash", LAUNCH / script, *arguments],
            env=self.environ(given),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert "key-123" not in done.stdout + done.stderr + str(self.calls())
        return done

    def calls(self):
        """The words of every call of a fake, in their order, but for pauses."""
        return [call for call in self._calls() if call[0] != "sleep"]

    def pauses(self):
        return [int(call[1]) for call in self._calls() if call[0] == "sleep"]

    def _calls(self):
        paths = sorted((self.folder / "calls").iterdir())
        return [path.read_bytes().decode().split("\0")[:-1] for path in paths]


def words_of(dry):
    """The words of each line that a dry run printed, as a shell reads them."""
    return [shlex.split(line) for line in dry.splitlines()]
