"""The device, its platform and the versions of packages, as records of benchmarks state them."""

import platform
from importlib import metadata
from typing import Any

import jax

from bljust_jax.benchmarks import torch_peer

PACKAGES = ("jax", "jaxlib", "optax", "torch", "transformers", "speechbrain")


def machine() -> dict[str, Any]:
    """Device, platform, threads, versions of Python and packages."""
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "threads": torch_peer.threads(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def version(package: str) -> str | None:
    """The version of an installed package, else None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
