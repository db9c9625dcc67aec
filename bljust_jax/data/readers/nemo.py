"""Reader of NeMo's tarred manifests: `nemo:MANIFEST.json?tars=PATTERN`.

A manifest of JSONL whose audio is in tar shards. Both may be patterns: `manifest__OP_0..7_CL_.json`
and `audio__OP_0..7_CL_.tar`, or `{0..7}`. By default the shards are `audio_*.tar` in the manifest's
folder or the one above it. (NeMo's scripts/speech_recognition/convert_to_tarred_audio_dataset.py)
"""

import concurrent.futures
import difflib
import itertools
import os
import pathlib
import re
import urllib.parse

from bljust_jax.common.errors import UserError
from bljust_jax.data import archives
from bljust_jax.data.byte_ranges import ByteRange
from bljust_jax.data.listings import report_unlabelled
from bljust_jax.data.readers import manifest
from bljust_jax.data.sources import Utterance, inside, read_lines, with_durations

# Entries of one recording after its first are named a-sub1.wav, a-sub2.wav
_SUB = re.compile(r"-sub\d+(?=(\.\w+)?$)")
Places = dict[str, tuple[str, ByteRange]]  # {name in its shard: (path of the shard, place)}


def read(rest: str, root: str = "") -> list[Utterance]:
    """The utterances of the manifests (`rest`, relative to a given `root`), in their order.

    Fields are those of a manifest; audio_filepath is the name in a shard. A recording that the
    shards lack has a `fault`. Raises UserError for a missing or compressed shard, a name that two
    shards hold, and a malformed line.
    """
    what = f"nemo:{rest}"
    pattern, mark, query = rest.partition("?")
    options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    if mark and set(options) != {"tars"}:
        raise UserError(f"{what}: has other options than tars; write MANIFEST.json?tars=PATTERN")
    lists = archives.find_shards(pattern, root, what)
    folder = os.path.dirname(os.path.abspath(lists[0]))
    tars = archives.find_shards(options["tars"], root, what) if mark else _beside(folder, what)
    tars = [inside(os.path.abspath(tar), root, what) for tar in tars]
    places, damage = _index(tars)
    found = []
    for path in lists:
        for where, line in read_lines(os.path.abspath(path)):
            found.append(_utterance(manifest.parse(line, where), where, places, damage))
    return report_unlabelled(with_durations(found, bounded=True), what)


def _beside(folder: str, what: str) -> list[str]:
    """The shards in the manifest's folder, or in the one above it."""
    for place in (folder, os.path.dirname(folder)):
        found = sorted(pathlib.Path(place).glob("audio_*.tar"))
        if found:
            return [str(path) for path in found]
    raise UserError(f"{what}: no audio_*.tar in {folder} or above it; name them: ?tars=PATTERN")


def _index(tars: list[str]) -> tuple[Places, str]:
    """The members of all shards, and what is damaged in them."""
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        indices = list(pool.map(archives.read_index, tars))
    places: Places = {}
    for tar, index in zip(tars, indices, strict=True):
        for member in index.members:
            name = pathlib.PurePosixPath(member.name).name
            first, _ = places.setdefault(name, (tar, member.place))
            if places[name][1] != member.place:
                raise UserError(f"{tar}#{member.name}: {first} holds that name, too; remove one")
    return places, "; ".join(index.damage for index in indices if index.damage)


def _utterance(entry: dict, where: str, places: Places, damage: str) -> Utterance:
    named = entry["audio_filepath"]
    name = pathlib.PurePosixPath(named).name
    held = name if name in places else _SUB.sub("", name)
    fields = manifest.fields(entry, where)
    if held in places:
        tar, place = places[held]
        return Utterance(path=f"{tar}#{held}", line=where, fetch=place, **fields)
    near = difflib.get_close_matches(name, list(itertools.islice(places, 20000)), n=1)
    hint = damage or (f"did you mean {near[0]!r}?" if near else "fetch the shards again")
    fault = f"{where}: no shard holds {named!r}: {hint}"
    return Utterance(path=named, line=where, fault=fault, **fields)
