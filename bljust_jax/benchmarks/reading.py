"""Estimate the audio that each host must read for a config, from the FLOPs of its steps.

    python -m bljust_jax.benchmarks.reading [CONFIG ...]

CONFIG is a value of --config, such as librispeech:L; default: one per shipped system. The figures
are of padded audio, an upper bound, at the best utilisation that the dry run assumes.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from bljust_jax.common import cli, shipped_configs
from bljust_jax.common.errors import UserError
from bljust_jax.monitoring import peak_flops
from bljust_jax.reporting.text import table
from bljust_jax.train import dry_run, phase_table
from bljust_jax.train.system import build_recipe

DEVICE, DEVICES = "h200", 8  # of a host
# bytes per second of audio, 16 kHz mono: FLAC of speech, as `prepare` writes it (65 MB per hour);
# 16-bit WAV; MP3 at 64 kbit/s
FORMATS = {"FLAC": 18_000, "WAV": 32_000, "MP3": 8_000}
DECODED = 1.65  # hours of FLAC that one core decodes per second (results/README.md)
CONFIGS = (
    *("librispeech:S", "librispeech:M", "librispeech:L"),
    *("librispeech:h960", "librispeech:parakeet", "tedlium:L", "m2asr:librispeech_aishell_covost"),
    *("birq", "birq:librispeech", "wav2vec2_just"),
)


class Reading(NamedTuple):
    """The phase of a run that reads most: its name, and seconds of audio read per second on a host
    of `DEVICES`."""

    phase: str
    audio: float

    def gigabytes(self, form: str) -> float:
        """Gigabytes per second of audio in a format of FORMATS."""
        return self.audio * FORMATS[form] / 1e9

    @property
    def cores(self) -> int:
        """Cores that decode FLAC at this rate."""
        return math.ceil(self.audio / 3600 / DECODED)


def estimate(config: Any) -> Reading:
    """Audio per second, for each phase

        devices * peak * utilisation * audio / FLOPs

    of its steps, where losses of one stream read its audio once; the largest of all phases.
    """
    from bljust_jax.data import bucket_lengths

    bucket_lengths.resolve_auto(config)
    peak = peak_flops.flops([peak_flops.DEVICES[DEVICE].kind], config.model.dtype)
    rate = DEVICES * dry_run.UTILISATION[0] * peak
    facts = dry_run.assume(config).facts
    recipe = build_recipe(config, facts)
    streams = {o.name: o.streams[0] for o in recipe.objectives}
    found = []
    for row in phase_table.phase_table(config, recipe, facts):
        audio: dict[str, float] = {}
        for name, hours in row.hours.items():
            stream = streams[name]
            audio[stream] = max(audio.get(stream, 0.0), 3600 * hours)
        found.append(Reading(row.name, rate * sum(audio.values()) / row.total))
    return max(found, key=lambda reading: reading.audio)


def rows(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Lines of the table."""
    made = []
    for name in names:
        reading = estimate(shipped_configs.load(name))
        sizes = (f"{reading.gigabytes(form):.2g}" for form in FORMATS)
        hours = f"{reading.audio / 3600:.3g}"
        made.append((f"`{name}`", reading.phase, hours, *sizes, f"{reading.cores}"))
    return made


def lines(names: Sequence[str]) -> list[str]:
    """The table in Markdown."""
    gigabytes = (f"{form}, GB/s" for form in FORMATS)
    return table(("config", "phase", "hours per second", *gigabytes, "cores"), rows(names))


def parser() -> cli.Parser:
    p = cli.Parser(__doc__)
    p.add_argument("configs", nargs="*", default=list(CONFIGS), metavar="CONFIG")
    return p


def body(args: argparse.Namespace) -> None:
    for name in args.configs:
        if not name:
            raise UserError("CONFIG is empty; name one, such as librispeech:L")
    print("\n".join(lines(args.configs)))


main = cli.command(parser, body)

if __name__ == "__main__":
    sys.exit(main())
