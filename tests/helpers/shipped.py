"""Every shipped config with each of its variants and methods, and facts of data to build them."""

from bljust_jax import recipes
from bljust_jax.common.config_schema.training import METHODS
from bljust_jax.data import bucket_lengths
from configs import birq, librispeech, m2asr, manifest, quickstart, tedlium, wav2vec2_just

SHRUNK = {"smoke", "overfit"}  # 40 steps, or one phase: no lengths to compare
ENCODERS = ("lstm", "gru", "parakeet")
# {config: variants besides methods}; "" is the config as it stands
VARIANTS = {
    librispeech: ("", *librispeech.VARIANTS, "parakeet"),
    tedlium: ("", *tedlium.VARIANTS),
    wav2vec2_just: ("", *wav2vec2_just.VARIANTS),
    manifest: ("sentences", "digits", *(f"digits,{name}" for name in ENCODERS)),
    quickstart: ("",),
    birq: ("", *birq.VARIANTS),
    # `linear` is a head of translations
    m2asr: ("", *(v for v in m2asr.VARIANTS if v != "linear"), "librispeech_aishell_covost,linear"),
}


def names() -> list[tuple[object, str]]:
    """(module, variants) of each shipped config but its methods and shrunken copies."""
    skipped = SHRUNK | {name for methods in METHODS.values() for name in methods}
    return [
        (module, name)
        for module, listed in VARIANTS.items()
        for name in dict.fromkeys(listed)
        if not {*name.split(",")} & skipped
    ]


def label(entry: object) -> str:
    """librispeech:S of (module, "S"); a method or a variant as it stands."""
    if isinstance(entry, str):
        return entry
    return entry.__name__.removeprefix("configs.")


def config(module: object, variant: str, method: str = "") -> object:
    """The config, with the method of its recipe."""
    made = module.get_config(variant or None)
    bucket_lengths.resolve_auto(made)  # as main does
    if method:
        made.method = method
    if made.method == "relabel":
        made.teacher_from = "runs/teacher"
    return made


def methods(made: object) -> tuple[str, ...]:
    """The methods that a config can take: levels of their own for recognition and translation need
    both."""
    translates = any(name.startswith("st/") for name in made.data.streams)
    listed = METHODS[made.recipe]
    return tuple(m for m in listed if translates or not m.startswith("vm_"))


def facts(made: object, mix=None, labelled: int = 300, unlabelled: int = 900) -> recipes.Facts:
    """Facts of data that a run might have: 30 classes, steps per epoch, a mix of batch shapes."""
    streams = tuple(made.data.streams) or ("labelled",)
    epochs = dict.fromkeys(streams, labelled) | {"unlabelled": unlabelled}
    return recipes.Facts(dict.fromkeys(streams, 30), epochs, mix)
