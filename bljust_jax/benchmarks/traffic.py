"""Count bytes read and written, kernels and bytes per group of layers in a compiled program.

A kernel is an instruction that runs on the device: a fusion, a copy, a call of a library. It reads
its operands and writes its results once, times the trip counts of the loops around it: an upper
bound on memory traffic, as caches are not modelled. Of an operand that is only sliced the slices
count; an update in place counts the update. Of a conditional the branch with the most bytes counts.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from bljust_jax.benchmarks.hlo import Computation, Instruction, Module, parse

# instructions without work on the device, or whose work is counted elsewhere
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "iota"}
FREE |= {"partition-id", "replica-id", "reshape", "opt-barrier", "domain", "add-dependency"}
FREE |= {"async-done", "async-update", "copy-done", "fusion-done", "send-done", "recv-done"}
FREE |= {"all-gather-done", "all-reduce-done", "collective-permute-done"}
SAME_BYTES = {"bitcast", "reshape"}
FILL = {"parameter", "constant", "broadcast", "bitcast", "tuple", "convert", "copy"}


class Kernel(NamedTuple):
    """One kernel and its bytes per call."""

    name: str
    op_name: str  # of the jax operation that gave it its name
    read: float
    written: float
    calls: int  # per run of the program
    looped: bool  # within a loop
    fill: bool  # fills or reorders arrays that a loop takes over, and nothing else
    update: bool  # writes into stacked arrays, and nothing else

    @property
    def bytes(self) -> float:
        """Of all calls."""
        return (self.read + self.written) * self.calls


# The first pattern that the operation's name matches gives the group; within loops, and outside.
IN_LOOPS = (
    (r"dynamic_(update_)?(slice|index)", "scan stacks"),
    (r"_norm/|/norm\d?/|layer_norm", "norms"),
    (r"/(\w*attention|positions?)/", "attention"),
    (r"/(ff\d?|feed_forward|mlp)/", "feed-forward"),
    (r"/(conv|convolution)/", "convolution"),
    (r"Block/", "residual sums"),
)
OUTSIDE = (
    (r"\(?(Subsampling|FeatureEncoder|frontend|log_mel)\b|/fft\b", "front end"),
    (r"jvp\(|checkpoint|rematted", "heads and losses"),
)
GROUPS = ("attention", "feed-forward", "convolution", "norms", "residual sums", "scan stacks")
GROUPS += ("front end", "heads and losses", "other loops", "tail")


def group_of(kernel: Kernel) -> str:
    """The name of its group, one of `GROUPS`; the tail is what follows the gradients: clipping,
    optimizer, EMA, metrics."""
    if kernel.fill or (kernel.looped and kernel.update):
        return "scan stacks"
    patterns, rest = (IN_LOOPS, "other loops") if kernel.looped else (OUTSIDE, "tail")
    for pattern, group in (*patterns, *(OUTSIDE[:1] if kernel.looped else ())):
        if re.search(pattern, kernel.op_name):
            return group
    return rest


class Group(NamedTuple):
    """Totals of a group of layers."""

    read: float
    written: float
    kernels: int


class Traffic(NamedTuple):
    """Memory traffic of a program."""

    bytes: float
    kernels: int
    groups: dict[str, Group]
    unknown_loops: int  # loops whose trip count the compiler does not know, counted once


def count(text: str) -> Traffic:
    """The traffic of one run of the program with this text."""
    module = parse(text)
    found, unknown = list_kernels(module)
    groups = dict.fromkeys(GROUPS, Group(0.0, 0.0, 0))
    for k in found:
        total = groups[group_of(k)]
        groups[group_of(k)] = Group(
            total.read + k.read * k.calls,
            total.written + k.written * k.calls,
            total.kernels + k.calls,
        )
    groups = {name: total for name, total in groups.items() if total.kernels}
    return Traffic(sum((k.bytes for k in found), 0.0), sum(k.calls for k in found), groups, unknown)


def list_kernels(module: Module) -> tuple[list[Kernel], int]:
    """(kernels that a run calls, number of loops with unknown trip counts)."""
    unknown = 0

    def walk(name: str, calls: int, looped: bool) -> Iterator[Kernel]:
        nonlocal unknown
        computation = module.computations[name]
        taken_over = loop_operands(computation)
        for i in computation.values():
            if i.opcode == "while":
                unknown += i.trips is None
                trips = 1 if i.trips is None else i.trips
                yield from walk(i.computation("body"), calls * trips, True)
            elif i.opcode == "conditional":
                branches = [list(walk(branch, calls, looped)) for branch in i.branches]
                yield from max(branches, key=lambda found: sum(k.bytes for k in found))
            elif i.opcode == "call":
                yield from walk(i.computation("to_apply"), calls, looped)
            elif i.opcode == "async-start" and i.computation("calls"):
                yield from walk(i.computation("calls"), calls, looped)
            elif i.opcode not in FREE and "AllocateBuffer" not in i.attributes:
                yield kernel(i, computation, module, calls, looped, i.name in taken_over)

    return list(walk(module.entry, 1, False)), unknown


def loop_operands(computation: Computation) -> set[str]:
    """Names of instructions whose results enter a loop."""
    loops = [computation.get(i.operands[0]) for i in computation.values() if i.opcode == "while"]
    found, todo = set(), [name for operand in loops if operand for name in operand.operands]
    while todo:
        i = computation[todo.pop()]
        if i.name not in found:
            found.add(i.name)
            if i.opcode in SAME_BYTES | {"get-tuple-element", "tuple", "copy"}:
                todo += i.operands
    return found


def kernel(
    i: Instruction, around: Computation, module: Module, calls: int, looped: bool, enters: bool
) -> Kernel:
    """The kernel of an instruction; `enters`: a loop takes its results over."""
    inside = module.computations.get(i.computation("calls"), {})
    names = [x.op_name for x in (*inside.values(), i) if x.op_name]
    op_name = names[-1] if names else ""
    update = fill = False
    if inside:
        read, written, update = fusion_bytes(inside)
        fill = enters and ({x.opcode for x in inside.values()} <= FILL or not op_name)
    elif i.opcode == "dynamic-update-slice":
        read = written = around[i.operands[1]].size
        update = True
    elif i.opcode in ("dynamic-slice", "slice", "gather"):
        read = written = i.size
    elif i.opcode == "copy-start":  # its results are the copy, the source and a context
        written = i.arrays[0].size
        read = i.arrays[1].size
    else:
        read = sum((around[name].size for name in i.operands if name in around), 0.0)
        written = i.size
        fill = enters and (i.opcode == "broadcast" or not op_name)
    return Kernel(i.name, op_name, read, written, calls, looped, fill, update)


def fusion_bytes(inside: Computation) -> tuple[float, float, bool]:
    """(bytes read, bytes written, whether only updates in place are written) of a fusion."""
    users: dict[str, list[Instruction]] = defaultdict(list)
    for i in inside.values():
        for name in i.operands:
            users[name].append(i)
    root = next(i for i in inside.values() if i.root)
    results = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    written, updated, in_place = 0.0, 0.0, set()
    for result in results:
        made = without_bitcasts(result, inside)
        if made.opcode == "dynamic-update-slice":
            size = inside[made.operands[1]].size if result.size else 0.0
            written, updated = written + size, updated + size
            in_place.add(made.name)
        elif made.opcode != "parameter":
            written += result.size
    parameters = [i for i in inside.values() if i.opcode == "parameter"]
    read = sum((bytes_read(i, users, in_place) for i in parameters), 0.0)
    return read, written, bool(in_place) and updated >= 0.9 * written


def without_bitcasts(i: Instruction, inside: Computation) -> Instruction:
    """The instruction whose bytes these are."""
    while i.opcode in SAME_BYTES:
        i = inside[i.operands[0]]
    return i


def bytes_read(
    parameter: Instruction, users: dict[str, list[Instruction]], in_place: set[str]
) -> float:
    """Bytes that a fusion reads of a parameter: those of its slices if it is only sliced, 0 if it
    is only updated in place."""
    uses, todo = [], [parameter.name]
    while todo:
        name = todo.pop()
        for user in users[name]:
            if user.opcode in SAME_BYTES:
                todo.append(user.name)
            elif not (user.name in in_place and user.operands[0] == name):
                uses.append((user, name))
    if not parameter.size:
        return 0.0
    sliced = ("dynamic-slice", "slice", "gather")
    if all(user.opcode in sliced and user.operands[0] == name for user, name in uses):
        return min(parameter.size, sum((user.size for user, _ in uses), 0.0))
    return parameter.size


def describe(traffic: Traffic, bandwidth: float = 0.0) -> list[str]:
    """A table in lines; with the milliseconds that the bytes take at `bandwidth`, bytes/s."""
    from bljust_jax.benchmarks.interleave import table

    def row(name: str, read: float, written: float, kernels: int) -> dict[str, Any]:
        cells = {"group": name, "GB read": f"{read / 1e9:.1f}"}
        cells |= {"GB written": f"{written / 1e9:.1f}", "GB": f"{(read + written) / 1e9:.1f}"}
        if bandwidth:
            cells["ms"] = f"{1e3 * (read + written) / bandwidth:.1f}"
        return cells | {"kernels": kernels}

    rows = [row(name, *total) for name, total in traffic.groups.items()]
    totals = [sum(column) for column in zip(*traffic.groups.values(), strict=True)]
    lines = table([*rows, row("total", *totals)]).splitlines()
    if traffic.unknown_loops:
        lines.append(f"{traffic.unknown_loops} loops of unknown length, counted once")
    return lines
