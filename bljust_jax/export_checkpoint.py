"""python -m bljust_jax.export_checkpoint --workdir RUN --out DIR [--pretraining] ...

Writes the best weights of a run's newest checkpoint for PyTorch. A run that is one of the classes
of `transformers` (wav2vec 2.0, a Parakeet-like Conformer) becomes a folder that it loads by itself:
config, safetensors, tokenizer, feature extractor, model card. Any other becomes safetensors beside
modeling.py, one file that needs PyTorch alone. Both models then hear the same audio: the largest
difference of their logits is printed and goes into the card; where it is too large, or a text
differs, DIR is not made. Exit 0: done; 2: a mistake or no parity, in one line.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from bljust_jax.common import cli
from bljust_jax.common.errors import UserError
from bljust_jax.decoding import greedy
from bljust_jax.export import card, hf_folder, parity, torch_folder
from bljust_jax.inference.trained_run import Run, open_run, open_split
from bljust_jax.models import encoders
from bljust_jax.monitoring import metrics
from bljust_jax.parallel.compile_cache import keep_compiled


def export(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that the command does; returns what --json prints."""
    opened = open_run(args.workdir, args.task, in_float32)
    if opened.task.translate:
        raise UserError(
            f"{opened.task.name} is a translation, and what is exported is a recogniser: give "
            "--task of recognition, such as asr/en"
        )
    config = opened.config
    keep_compiled(config.compile_cache)
    name, reasons = hf_folder.architecture(config, pretraining=args.pretraining)
    kind = "huggingface" if name else "torch"
    if reasons:
        say(f"no class of transformers fits ({'; '.join(reasons)}): writing modeling.py")
    if not args.unchecked:
        parity.check_installed(kind)
    heard = None if args.unchecked else hear(opened, args)
    folder = fresh_folder(args.out)
    params, stats = jax.device_get(opened.weights)
    write = torch_folder.write_folder
    if name:
        write = functools.partial(hf_folder.write_folder, name=name)
    write(folder, config=config, units=opened.tokenizer, params=params, stats=stats)
    batched = config.encoder != "wav2vec2" or hf_folder.padding_is_harmless(config.model.feat_norm)
    certificate = None
    if heard is not None:
        what = "prediction" if args.pretraining else "logit"
        with contextlib.redirect_stdout(sys.stderr):  # some libraries print while they load
            load = loader(name, folder, opened.recipe.frames)
            certificate = parity.certify(
                heard, load, args.tolerance, kind=kind, batched=batched, what=what
            )
        say(certificate.describe())
    write_card(folder, opened, name, certificate, batched)
    folder.rename(args.out)
    about = {"out": str(args.out), "architecture": name or torch_folder.MODELING}
    checked = certificate._asdict() | {"relative": certificate.relative} if certificate else None
    return about | {"step": opened.step, "parity": checked}


def in_float32(config: ConfigDict) -> None:
    """Float32 products: what was trained in bfloat16 is exported, and compared, so."""
    config.model.dtype = "float32"
    if config.encoder == "wav2vec2":
        config.model.hf_compat = False  # the same for utterances alone, which are compared


def fresh_folder(out: pathlib.Path) -> pathlib.Path:
    """An empty DIR.partial, which becomes DIR at the end."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def loader(name: str, folder: pathlib.Path, frames: Callable[[int], int]) -> parity.Exported:
    if not name:
        return parity.load_module(folder)
    if name == "Wav2Vec2ForPreTraining":
        return parity.load_pretraining(folder, frames)
    return parity.load_huggingface(folder, frames)


# What the run makes of some audio


def hear(opened: Run, args: argparse.Namespace) -> parity.Heard:
    """The first utterances of dev, or of --data, through the run, in padded batches."""
    splits, dev = open_split(opened, "dev", args.data), opened.task.split("dev")
    run = jax.jit(predictor(opened, pretraining=args.pretraining))
    audio, logits, texts = [], [], []
    with jax.default_matmul_precision("highest"):
        for batch, utterances in splits.eval_batches(dev):
            out, lengths = jax.device_get(run(opened.weights, batch))
            for n in range(min(len(utterances), args.utterances - len(audio))):
                audio.append(batch["audio"][n, : batch["audio_lengths"][n]])
                logits.append(out[n, : lengths[n]])
                units = [] if args.pretraining else greedy.collapse(logits[-1].argmax(-1))
                texts.append(opened.tokenizer.decode(units).strip())
            if len(audio) == args.utterances:
                break
    if not audio:
        raise UserError("the parity check hears nothing: dev has no sound audio, give --data URI")
    return parity.Heard(audio, logits, texts)


def predictor(opened: Run, *, pretraining: bool) -> Callable:
    """(weights, batch) -> (logits [B, T, K], lengths [B]); in pretraining, the predictions of
    quantised latents [B, T, P]."""
    if not pretraining:
        return lambda weights, batch: opened.task.predict(weights.params, weights.stats, batch)
    encoder = encoders.load(opened.config.encoder)(opened.config)

    def predictions(weights, batch):
        x, lengths, _ = encoder.features(batch["audio"], batch["audio_lengths"], train=False)
        h, lengths, _, _ = encoder.apply(weights.params["encoder"], x, lengths)
        head = weights.params["wav2vec2_head"]["project_hid"]
        return h @ head["kernel"] + head["bias"][None, None, :], lengths

    return predictions


# The card


def write_card(
    folder: pathlib.Path,
    opened: Run,
    name: str,
    certificate: parity.Certificate | None,
    batched: bool,
) -> None:
    rows = metrics.read(opened.workdir / "metrics.jsonl") if _has(opened, "metrics.jsonl") else []
    about = (
        json.loads((opened.workdir / "run.json").read_text()) if _has(opened, "run.json") else {}
    )
    loaders = {"": "modeling.py", "Wav2Vec2ForPreTraining": "AutoModelForPreTraining"}
    facts = card.Facts(
        config=opened.config,
        final=of_task(next((row for row in reversed(rows) if "final" in row), {}), opened),
        about=about,
        step=opened.step,
        loader=loaders.get(name, "AutoModelForCTC"),
        architecture=name or torch_folder.MODELING,
        certificate=certificate.describe() if certificate else "Not checked",
        batched=batched,
    )
    (folder / "README.md").write_text(card.text(facts), encoding="utf-8")


def of_task(final: dict[str, Any], opened: Run) -> dict[str, Any]:
    """The final metrics without the scores of other tasks, and without means over tasks."""
    kept = tuple(f"{opened.task.split(split)}/" for split in ("dev", "test"))
    scores = ("dev/", "test/")
    return {k: v for k, v in final.items() if k.startswith(kept) or not k.startswith(scores)}


def _has(opened: Run, name: str) -> bool:
    return (opened.workdir / name).is_file()


def parser() -> argparse.ArgumentParser:
    p = cli.Parser(__doc__)
    p.add_argument(
        "--workdir", type=pathlib.Path, required=True, metavar="RUN", help="a trained run"
    )
    p.add_argument("--task", default="", metavar="TASK", help="of a run of several: asr/en")
    p.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="a new folder")
    p.add_argument(
        "--pretraining",
        action="store_true",
        help="Wav2Vec2ForPreTraining, with the self-supervised head instead of the CTC head",
    )
    p.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference, as a share of the largest logit (%(default)s)",
    )
    p.add_argument("--data", default="", metavar="URI", help="audio of the check (the run's dev)")
    p.add_argument("--utterances", type=int, default=8, help="that are compared (%(default)s)")
    p.add_argument(
        "--unchecked", action="store_true", help="write without torch, and say so in the card"
    )
    p.add_argument("--json", action="store_true", help="print the results as one JSON object")
    return p


def check(args: argparse.Namespace) -> None:
    """UserError for flags that are out of range, and where DIR holds anything."""
    if not 0 < args.tolerance < 1:
        raise UserError(f"--tolerance {args.tolerance:g} must be between 0 and 1")
    if args.utterances < 1:
        raise UserError(f"--utterances {args.utterances} must be at least 1")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise UserError(f"--out {args.out} exists: name another folder, or remove it")


def body(args: argparse.Namespace) -> None:
    check(args)
    found = export(args, lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps(found) if args.json else f"{found['out']}: {found['architecture']}")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
