"""Load a training run, or a folder written by export_checkpoint, as a Recognizer or Translator."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from bljust_jax.common.errors import UserError
from bljust_jax.export import own_folder, pretrained, torch_folder
from bljust_jax.inference.recognizer import Recognizer, Translator
from bljust_jax.inference.trained_run import TrainedRun, load_trained_run
from bljust_jax.models import heads
from bljust_jax.parallel.compile_cache import enable_compile_cache
from bljust_jax.parallel.mesh import put_batch

CACHE = "~/.cache/bljust_jax/xla"  # compiled programs of exported models


def load_model(folder: pathlib.Path, task: str = "") -> Recognizer | Translator:
    """The best weights of a training run, or the model of an exported folder.

    `task`: name of the task, for a run of several. Raises UserError if the folder is neither, is
    damaged, or has no such task.
    """
    if not (folder / "config.json").is_file():
        cure = "give --model a training run, or a folder that export_checkpoint wrote"
        raise UserError(f"{folder} holds no config.json: {cure}")
    if _model_type(folder):
        if task:
            raise UserError(f"--task {task}: {folder} is one exported task: leave the flag out")
        enable_compile_cache(CACHE)
        return exported_recognizer(folder)
    run = load_trained_run(folder).select_task(task)
    enable_compile_cache(run.config.compile_cache)
    return run_translator(run) if run.task.translate else run_recognizer(run)


def _model_type(folder: pathlib.Path) -> str:
    """The model_type of config.json, as in `transformers`; a training run has none, ""."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return ""
    return str(found.get("model_type", "")) if isinstance(found, dict) else ""


def run_recognizer(run: TrainedRun) -> Recognizer:
    """The recognizer of a run with one recognition task."""
    return Recognizer(
        predict=_on_mesh(run, jax.jit(run.task.predict)),
        symbols=run.tokenizer.symbols,
        frames=run.recipe.frames,
        **_common_fields(run),
    )


def run_translator(run: TrainedRun) -> Translator:
    """The translator of a run with one translation task."""
    program = jax.jit(run.task.translate, static_argnums=3)
    beam = run.config.decoder.beam
    return Translator(predict=_on_mesh(run, program), beam=beam, **_common_fields(run))


def _on_mesh(run: TrainedRun, program: Callable[..., Any]) -> Callable[..., Any]:
    """`program` of the run's weights as a function of a batch in host memory, and of `beam`."""

    def predict(batch: Mapping[str, Any], *beam: int) -> Any:
        return program(*run.weights, put_batch(dict(batch), run.mesh), *beam)

    return predict


def _common_fields(run: TrainedRun) -> dict[str, Any]:
    """Fields of both Recognizer and Translator; the name has workdir, task and checkpoint."""
    task = f", {run.task.name}" if run.task.name else ""
    return {
        "decode": run.tokenizer.decode,
        "sample_rate": run.config.data.sample_rate,
        "name": f"{run.workdir}{task}, checkpoint {run.step}",
        "multiple": run.mesh.size,
    }


def exported_recognizer(folder: pathlib.Path) -> Recognizer:
    """The recognizer of a folder that `bljust export` wrote: `Wav2Vec2ForCTC`, `ParakeetForCTC` or
    `modeling.py`.

    Raises UserError if the folder holds none, or lacks a CTC head or a vocabulary.
    """
    own = _model_type(folder) == torch_folder.MODEL_TYPE
    model = (own_folder if own else pretrained).read_ctc_model(folder)
    encoder = model.encoder

    @jax.jit
    def program(weights, batch):
        params, stats = weights
        audio = batch["audio"], batch["audio_lengths"]
        encoded = encoder.encode_audio(params, stats, *audio, context=model.context)
        return heads.apply(params["ctc_head"], encoded.output), encoded.lengths

    def predict(batch: Mapping[str, Any]) -> tuple[Any, Any]:
        used = {name: batch[name] for name in ("audio", "audio_lengths")}
        return program((model.params, model.stats), used)

    return Recognizer(
        predict=predict,
        decode=model.vocabulary.decode,
        symbols=model.vocabulary.symbols,
        frames=encoder.frames,
        sample_rate=model.sample_rate,
        name=str(folder),
    )
