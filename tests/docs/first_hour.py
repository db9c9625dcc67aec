"""Run the commands of docs/first_hour.md at full size on a folder of real recordings.

    make first-hour SPEECH=DIR        (python -m tests.docs.first_hour DIR ...)

DIR has train.jsonl and dev.jsonl, as docs/data.md describes, of whole files. They are copied as a
user has them: audio beside its text; talk.mp3 and talk.wav are recordings of dev one after the
other. Each command is printed with its duration and last lines; the first that fails ends the
script. Output is kept in OUT.
"""

import argparse
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

import numpy as np
import soundfile

from bljust_jax.data.sources import open_source, read_audio
from tests.helpers.documents import ROOT, as_module, commands

PAGE = ROOT / "docs" / "first_hour.md"
RATE = 16000
PAUSE = 0.6  # seconds between the recordings of the talk
FINDINGS = 1  # exit code of doctor


def make_folder(speech: pathlib.Path, folder: pathlib.Path, talk_seconds: float = 90.0) -> None:
    """recordings/{train,dev}/*, talk.mp3 and talk.wav in `folder`, from manifests in `speech`."""
    talk, pause = [], np.zeros(round(PAUSE * RATE), np.int16)
    for split in ("train", "dev"):
        into = folder / "recordings" / split
        into.mkdir(parents=True)
        for u in open_source(str(speech / f"{split}.jsonl")):
            source = pathlib.Path(u.path)
            shutil.copyfile(source, into / source.name)
            (into / f"{source.stem}.txt").write_text(f"{u.text}\n", encoding="utf-8")
            if split == "dev" and sum(map(len, talk)) < talk_seconds * RATE:
                talk += [read_audio(u), pause]
    for name in ("talk.mp3", "talk.wav"):
        soundfile.write(folder / name, np.concatenate(talk), RATE)


def steps(args: argparse.Namespace) -> list[list[str]]:
    """The commands of the page, with the options of this script in them."""
    given = {
        "--config=manifest": f"--config={args.config}",
        "--config.budget=10": f"--config.budget={args.minutes:g}",
    }
    found = []
    for words in commands(PAGE.read_text(encoding="utf-8")):
        words = [given.get(word, word) for word in words]
        if given["--config=manifest"] in words:
            words += args.flag
        if args.unspaced and words[1] == "ngram":
            words += ["--model", "runs/first", "--over", "units"]
        if args.unspaced and words[1] == "evaluate":
            words += ["--lm_over", "units"]
        if words[0] == "python" and args.elsewhere is None:
            print(f"skipped without --elsewhere: {shlex.join(words)}", flush=True)
        else:
            found.append(words)
    return found


def check(words: list[str], lines: list[str], folder: pathlib.Path) -> None:
    """AssertionError unless the command did what the page says."""
    if "--config=manifest:overfit" in words:
        assert json.loads(lines[-1])["dev/wer"] == 0, "the first eight utterances are not learned"
    if words[1] == "doctor":
        assert any("checks have findings" in line for line in lines), "no findings are counted"
    if "--srt" in words:
        assert " --> " in (folder / "talk.srt").read_text(encoding="utf-8"), "no subtitles"


def execute(words: list[str], folder: pathlib.Path, elsewhere: str | None) -> tuple[float, str]:
    """(seconds, last line) of a command; SystemExit if it fails."""
    module = as_module(words)
    local = module[:2] == ["python", "-m"]
    interpreter = sys.executable if local else elsewhere
    print(f"\n$ {shlex.join(words)}", flush=True)
    began = time.monotonic()
    done = subprocess.run(
        [interpreter, *module[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)} if local else {},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - began
    name = f"{words[1]}-{round(time.time())}.log".replace("/", "_")
    (folder / "logs" / name).write_text(f"$ {shlex.join(words)}\n{done.stdout}", encoding="utf-8")
    lines = done.stdout.splitlines() or [""]
    print("\n".join(f"  {line[:200]}" for line in lines[-6:]))
    print(f"  exit {done.returncode} after {seconds:.0f} s (logs/{name})", flush=True)
    allowed = (0, FINDINGS) if words[1] == "doctor" else (0,)
    if done.returncode not in allowed:
        raise SystemExit(f"failed: {shlex.join(words)}")
    check(words, lines, folder)
    return seconds, lines[-1]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=pathlib.Path, help="folder with train.jsonl and dev.jsonl")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/first_hour"))
    parser.add_argument("--minutes", type=float, default=10.0, help="config.budget of the run")
    parser.add_argument("--config", default="manifest", help="or manifest:digits, for words")
    parser.add_argument("--flag", action="append", default=[], help="appended to the training")
    parser.add_argument("--unspaced", action="store_true", help="language model over characters")
    parser.add_argument("--elsewhere", help="Python of an environment with torch alone")
    args = parser.parse_args(argv)
    folder = args.out.resolve()
    if folder.exists():
        parser.error(f"--out {args.out} exists: name a new folder")
    make_folder(args.speech, folder)
    (folder / "logs").mkdir()
    took = [(words, *execute(words, folder, args.elsewhere)) for words in steps(args)]
    print("\n| command | seconds |\n|---|---|")
    for words, seconds, _ in took:
        print(f"| `{shlex.join(words)}` | {seconds:.0f} |")
    print(f"| all | {sum(seconds for _, seconds, _ in took):.0f} |")


if __name__ == "__main__":
    main()
