"""python -m bljust_jax.export_checkpoint RUN --out DIR [--pretraining] ...

Writes the best weights of a run's newest checkpoint for PyTorch. A run that matches a class of
`transformers` (wav2vec 2.0, a Parakeet-like Conformer) becomes a folder that transformers loads:
config, safetensors, tokenizer, feature extractor, model card. Any other becomes safetensors beside
modeling.py, one file that needs PyTorch only. Both models are then run on the same audio: the
largest difference of their logits is printed and written into the card; if it is too large, or a
text differs, DIR is not made. Exit 0: done; 2: a mistake or no parity, reported in one line.
"""

import argparse
import contextlib
import json
import logging
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bljust_jax.common import cli, files
from bljust_jax.common.config_schema.field import Range
from bljust_jax.common.config_schema.ranges import AT_LEAST_1
from bljust_jax.common.console import log
from bljust_jax.common.errors import UserError
from bljust_jax.decoding import greedy
from bljust_jax.export import card, hf_folder, parity, torch_folder
from bljust_jax.inference.load import exported_recognizer
from bljust_jax.inference.trained_run import TrainedRun, load_trained_run
from bljust_jax.models import encoders, heads
from bljust_jax.monitoring import metrics
from bljust_jax.parallel.compile_cache import enable_compile_cache

BETWEEN_0_AND_1 = Range("between 0 and 1", lambda x: 0 < x < 1)


def export(args: argparse.Namespace) -> dict[str, Any]:
    """Write and check an export; returns what --json prints."""
    run = load_trained_run(args.model, in_float32).select_task(args.task)
    if run.task.translate:
        raise UserError(
            f"{run.task.name} is a translation by an attention decoder, which "
            f"{torch_folder.MODELING} lacks: give --task of recognition, such as asr/en; another "
            f"run starts from it by --config.init_from={args.model} "
            f"--config.init_parts=encoder,{run.task.head}"
        )
    enable_compile_cache(run.config.compile_cache)
    name, reasons = hf_folder.architecture(run.config, pretraining=args.pretraining)
    kind = "jax" if args.jax else "huggingface" if name else "torch"
    if args.jax and args.pretraining:
        raise UserError("--jax checks a recognizer, and --pretraining writes none: drop one")
    if reasons:
        log(f"no class of transformers fits ({'; '.join(reasons)}): writing modeling.py")
    reference = None
    if not args.unchecked:
        parity.check_installed(kind)
        reference = reference_output(run, args)
    folder = fresh_folder(args.out)
    write_weights(folder, name, run)
    batched = padding_is_harmless(run.config)
    certificate = None
    if reference is not None:
        what = "prediction" if args.pretraining else "logit"
        with contextlib.redirect_stdout(sys.stderr):  # some libraries print while they load
            if args.jax:
                load = load_own(folder)
            elif name:
                load = parity.load_huggingface(
                    folder, run.recipe.frames, pretraining=args.pretraining
                )
            else:
                load = parity.load_module(folder)
            certificate = parity.certify(
                reference, load, args.tolerance, kind=kind, batched=batched, what=what
            )
        log(certificate.describe())
    architecture = name or torch_folder.MODELING
    write_card(folder, run, architecture, certificate, batched)
    folder.rename(args.out)
    about = {"out": str(args.out), "architecture": architecture}
    checked = certificate._asdict() | {"relative": certificate.relative} if certificate else None
    return about | {"step": run.step, "parity": checked}


def write_weights(folder: pathlib.Path, name: str, run: TrainedRun) -> None:
    """Weights, config and tokenizer for class `name` of transformers; for "", modeling.py."""
    params, stats = jax.device_get(run.weights)
    about = {"config": run.config, "units": run.tokenizer, "params": params, "stats": stats}
    if name:
        hf_folder.write_folder(folder, name, **about)
    else:
        torch_folder.write_folder(folder, **about)


def padding_is_harmless(config: ConfigDict) -> bool:
    """Whether the exported model gives the same logits for padded batches."""
    return config.encoder != "wav2vec2" or hf_folder.padding_is_harmless(config.model.feat_norm)


def in_float32(config: ConfigDict) -> None:
    """Set float32 products: runs trained in bfloat16 are exported and compared in float32."""
    config.model.dtype = "float32"
    if config.encoder == "wav2vec2":
        config.model.hf_compat = False  # same results for single utterances, which are compared


def fresh_folder(out: pathlib.Path) -> pathlib.Path:
    """An empty folder DIR.partial, renamed to DIR at the end."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


# The parity check


def load_own(folder: pathlib.Path) -> parity.Exported:
    """A folder as `bljust transcribe` loads it, without torch."""
    recognizer = exported_recognizer(folder)

    def exported(audio: Sequence[np.ndarray]) -> list[tuple[np.ndarray, str]]:
        lengths = np.array([len(x) for x in audio], np.int32)
        rows = [np.pad(x, (0, max(lengths) - len(x))) for x in audio]
        with jax.default_matmul_precision("highest"):
            logits, frames = recognizer.predict({"audio": np.stack(rows), "audio_lengths": lengths})
        own = [np.asarray(row)[:n] for row, n in zip(logits, frames, strict=True)]
        texts = (recognizer.decode(greedy.collapse(x.argmax(-1))) for x in own)
        return [(x, text.strip()) for x, text in zip(own, texts, strict=True)]

    return exported


def reference_output(run: TrainedRun, args: argparse.Namespace) -> parity.RunOutput:
    """Logits and texts of the run for the first utterances of dev, or of --data, in padded
    batches."""
    splits, dev = run.load_split("dev", args.data), run.task.split("dev")
    program = jax.jit(predictor(run, pretraining=args.pretraining))
    audio, logits, texts = [], [], []
    with jax.default_matmul_precision("highest"):
        for batch, utterances in splits.eval_batches(dev):
            out, lengths = jax.device_get(program(run.weights, batch))
            for n in range(min(len(utterances), args.utterances - len(audio))):
                audio.append(batch["audio"][n, : batch["audio_lengths"][n]])
                logits.append(out[n, : lengths[n]])
                units = [] if args.pretraining else greedy.collapse(logits[-1].argmax(-1))
                texts.append(run.tokenizer.decode(units).strip())
            if len(audio) == args.utterances:
                break
    if not audio:
        raise UserError("the parity check has no audio: none of dev is decodable, give --data URI")
    return parity.RunOutput(audio, logits, texts)


def predictor(run: TrainedRun, *, pretraining: bool) -> Callable:
    """(weights, batch) -> (logits [B, T, K], lengths [B]); with `pretraining`, the predictions of
    quantized latents [B, T, P] instead of logits."""
    if not pretraining:
        return lambda weights, batch: run.task.predict(weights.params, weights.stats, batch)
    encoder = encoders.load(run.config.encoder)(run.config)

    def predictions(weights, batch):
        audio = batch["audio"], batch["audio_lengths"]
        encoded = encoder.encode_audio(weights.params, weights.stats, *audio)
        head = weights.params["wav2vec2_head"]["project_hid"]
        return heads.apply(head, encoded.output), encoded.lengths

    return predictions


# The card


def read_if_whole(path: pathlib.Path, read: Callable[[pathlib.Path], Any]) -> Any:
    """`read(path)`; None for a missing file and, with a warning, for a damaged one: weights do not
    depend on it."""
    try:
        return read(path) if path.is_file() else None
    except ValueError as error:
        logging.warning("%s is damaged (%s): the model card lacks its content", path, error)
        return None


def write_card(
    folder: pathlib.Path,
    run: TrainedRun,
    architecture: str,
    certificate: parity.Certificate | None,
    batched: bool,
) -> None:
    rows = read_if_whole(run.workdir / "metrics.jsonl", metrics.read) or []
    text = card.text(
        run.config,
        scores_of_task(next((row for row in reversed(rows) if "final" in row), {}), run),
        read_if_whole(run.workdir / "run.json", files.read_json) or {},
        step=run.step,
        architecture=architecture,
        certificate=certificate.describe() if certificate else "Not checked",
        batched=batched,
        task=run.task.name,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def scores_of_task(final: dict[str, Any], run: TrainedRun) -> dict[str, Any]:
    """The final metrics without the scores of other tasks, and without means over tasks."""
    kept = tuple(f"{run.task.split(split)}/" for split in ("dev", "test"))
    scores = ("dev/", "test/")
    return {k: v for k, v in final.items() if k.startswith(kept) or not k.startswith(scores)}


def parser() -> cli.Parser:
    p = cli.Parser(__doc__)
    p.model("a trained run", positional=True)
    p.option("--task", "", "of a run of several: asr/en", metavar="TASK")
    p.option("--out", pathlib.Path, "a new folder", metavar="DIR", required=True)
    head = "Wav2Vec2ForPreTraining, with the self-supervised head instead of the CTC head"
    p.option("--pretraining", False, head)
    tolerance = "largest difference, as a share of the largest logit"
    p.option("--tolerance", 1e-4, tolerance, allowed=BETWEEN_0_AND_1)
    p.option("--data", "", "audio of the check (the run's dev)", metavar="URI")
    p.option("--utterances", 8, "number to compare", allowed=AT_LEAST_1)
    p.option("--jax", False, "check it without torch, as `bljust transcribe` reads it")
    p.option("--unchecked", False, "write without torch, and say so in the card")
    p.option("--json", False, "print the results as one JSON object")
    return p


def body(args: argparse.Namespace) -> None:
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise UserError(f"--out {args.out} exists: name another folder, or remove it")
    found = export(args)
    print(json.dumps(found) if args.json else f"{found['out']}: {found['architecture']}")


main = cli.command(parser, body)

if __name__ == "__main__":
    sys.exit(main())
