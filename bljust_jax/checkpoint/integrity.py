"""Integrity of checkpoints: SHA-256 checksums of files and fingerprints of arrays on devices."""

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bljust_jax.common.trees import keyed_leaves

Tree = Any
SUMS = "SHA256SUMS"  # `sha256sum --check` reads it


def write_sums(folder: pathlib.Path) -> None:
    """Write `SHA256SUMS` of all files under `folder`; its last line, a comment, is the checksum of
    the lines before it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = "".join(f"{_sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in files)
    with (folder / SUMS).open("w", encoding="utf-8") as file:
        file.write(lines + f"# {hashlib.sha256(lines.encode()).hexdigest()}\n")
        file.flush()
        os.fsync(file.fileno())


def find_damage(folder: pathlib.Path, items: Sequence[str] | None = None) -> str | None:
    """The first problem with a file of `folder` (missing, unreadable, changed), or None. `items`:
    verify only these of the folders in it."""
    if not folder.is_dir():
        return "it is no folder"
    if not any(folder.iterdir()):
        return "it is empty"
    if not (folder / SUMS).is_file():
        return f"{SUMS} is missing"
    content = (folder / SUMS).read_bytes()
    lines, _, own = content.rpartition(b"# ")
    if own != hashlib.sha256(lines).hexdigest().encode() + b"\n":
        return f"{SUMS} was changed"
    for line in lines.decode().splitlines():
        expected, _, name = line.partition("  ")
        item, inside, _ = name.partition("/")
        if items is not None and inside and item not in items:
            continue
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            found = _sha256(path)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found != expected:
            return f"{name} was changed or cut short"
    return None


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprints(tree: Tree) -> dict[str, int]:
    """{key of a leaf: hash of its elements and their positions}, computed on the devices.

    The sum, modulo 2^32, of mix(bits_i xor i * odd) over the elements i. It is exact, so it does
    not depend on mesh or number of hosts. A change within one element always changes it, any other
    change except with probability 2^-32. A collective operation: all processes call it.
    """
    keys, leaves = zip(*keyed_leaves(tree), strict=True)
    hashes = np.asarray(_hash_all(list(leaves)))
    return {key: int(value) for key, value in zip(keys, hashes, strict=True)}


@jax.jit
def _hash_all(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_hash(leaf) for leaf in leaves])


@jax.jit
def _hash(x: jax.Array) -> jax.Array:
    """uint32 hash of an array with elements of 1, 2, 4 or 8 bytes; mixing as in MurmurHash3."""
    words = _words(x)
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        index = index * np.uint32(size % 2**32) + place
    mixed = words ^ (index * np.uint32(0x9E3779B1))
    for odd in (0x85EBCA6B, 0xC2B2AE35):
        mixed = (mixed ^ (mixed >> 15)) * np.uint32(odd)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def _words(x: jax.Array) -> jax.Array:
    """The bits of each element as uint32; eight bytes give two words, on a new last axis."""
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    return lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
