"""Bytes and kernels of a program's text, counted by hand: written texts, and programs of jax."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from bljust_jax.benchmarks import hlo, traffic

# A loop of 3 over a stack f32[3,8]: each iteration reads its row (32 bytes), doubles it and writes
# it into the stack that the loop carries. The stack is filled before, and reduced after the loop.
LOOP = """\
HloModule jit_f, is_scheduled=true

%fill () -> (f32[3,8], f32[2]) {
  %zero = f32[] constant(0)
  %a.1 = f32[3,8]{1,0} broadcast(%zero), dimensions={}
  %b.1 = f32[2]{0} broadcast(%zero), dimensions={}
  ROOT %both = (f32[3,8]{1,0}, f32[2]{0}) tuple(%a.1, %b.1)
}

%save (stack: f32[3,8], xs: f32[3,8], n: s32[]) -> f32[3,8] {
  %stack = f32[3,8]{1,0} parameter(0)
  %xs = f32[3,8]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,8]{1,0} dynamic-slice(%xs, %n, %zero), dynamic_slice_sizes={1,8}
  %twice = f32[1,8]{1,0} add(%row, %row)
  ROOT %new = f32[3,8]{1,0} dynamic-update-slice(%stack, %twice, %n, %zero)
}

%body (carry: (s32[], f32[3,8], f32[3,8])) -> (s32[], f32[3,8], f32[3,8]) {
  %carry = (s32[], f32[3,8]{1,0}, f32[3,8]{1,0}) parameter(0)
  %n.1 = s32[] get-tuple-element(%carry), index=0
  %stack.1 = f32[3,8]{1,0} get-tuple-element(%carry), index=1
  %xs.1 = f32[3,8]{1,0} get-tuple-element(%carry), index=2
  %saved = f32[3,8]{1,0} fusion(%stack.1, %xs.1, %n.1), kind=kLoop, calls=%save, \
metadata={op_name="jit(f)/while/body/jit(dynamic_update_index_in_dim)/dynamic_update_slice"}
  %one = s32[] constant(1)
  %next = s32[] add(%n.1, %one), metadata={op_name="jit(f)/while/body/add"}
  ROOT %out = (s32[], f32[3,8]{1,0}, f32[3,8]{1,0}) tuple(%next, %saved, %xs.1)
}

%condition (carry.1: (s32[], f32[3,8], f32[3,8])) -> pred[] {
  %carry.1 = (s32[], f32[3,8]{1,0}, f32[3,8]{1,0}) parameter(0)
  %n.2 = s32[] get-tuple-element(%carry.1), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%n.2, %three), direction=LT
}

ENTRY %main (x.1: f32[3,8]) -> f32[24] {
  %x.1 = f32[3,8]{1,0} parameter(0)
  %start = s32[] constant(0)
  %filled = (f32[3,8]{1,0}, /*index=1*/f32[2]{0}) fusion(), kind=kLoop, calls=%fill
  %empty = f32[3,8]{1,0} get-tuple-element(%filled), index=0
  %init = (s32[], f32[3,8]{1,0}, f32[3,8]{1,0}) tuple(%start, %empty, %x.1)
  %loop = (s32[], f32[3,8]{1,0}, f32[3,8]{1,0}) while(%init), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}
  %last = f32[3,8]{1,0} get-tuple-element(%loop), index=1
  %flat = f32[24]{0} bitcast(%last)
  ROOT %sum = f32[24]{0} add(%flat, %flat), metadata={op_name="jit(f)/add"}
}
"""


def test_a_loop_reads_and_writes_one_row_per_iteration():
    found = traffic.count(LOOP)
    # a row read with a counter of 4 bytes, and a row written: the stack is updated in place; the
    # counter reads two numbers and writes one
    save, counter = 3 * (32 + 4 + 32), 3 * (4 + 4 + 4)
    fill, final = 96 + 8, 2 * 96 + 96
    assert found.bytes == save + counter + fill + final
    assert found.kernels == 3 + 3 + 1 + 1
    assert found.unknown_loops == 0
    assert found.groups == {
        "scan stacks": (3 * 36, 3 * 32 + fill, 4),
        "other loops": (3 * 8, 3 * 4, 3),
        "tail": (192, 96, 1),
    }


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    found = traffic.count(LOOP.replace('"known_trip_count":{"n":"3"},', ""))
    assert found.unknown_loops == 1
    assert found.kernels == 4
    assert traffic.describe(found)[-1] == "1 loops of unknown length, counted once"


BRANCHES = """\
%small (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %n.0 = f32[4]{0} negate(%p)
}

%large (q: f32[4]) -> f32[4] {
  %q = f32[4]{0} parameter(0)
  %copied = f32[4]{0} copy(%q)
  ROOT %m = f32[4]{0} negate(%copied)
}

ENTRY %main (which: s32[], x: f32[4]) -> f32[4] {
  %which = s32[] parameter(0)
  %x = f32[4]{0} parameter(1)
  %y = f32[4]{0} call(%x), to_apply=%small
  ROOT %z = f32[4]{0} conditional(%which, %y, %y), branch_computations={%large, %small}
}
"""


def test_of_a_conditional_the_larger_branch_counts_and_a_call_is_followed():
    found = traffic.count(BRANCHES)
    assert found.bytes == 32 + 64
    assert found.kernels == 3
    by_role = "true_computation=%small, false_computation=%large"
    by_role = BRANCHES.replace("branch_computations={%large, %small}", by_role)
    assert traffic.count(by_role).bytes == 32 + 64


# On a TPU: a copy from the memory of the device, S(1) is that of the core; a product reads both.
NEAR = """\
ENTRY %main (w: bf16[8,8], x: bf16[4,8]) -> f32[4,8] {
  %w = bf16[8,8]{1,0:T(8,128)(2,1)} parameter(0)
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(1)
  %start = (bf16[8,8]{1,0:T(8,128)(2,1)S(1)}, bf16[8,8]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) \
copy-start(%w)
  %near = bf16[8,8]{1,0:T(8,128)(2,1)S(1)} copy-done(%start)
  ROOT %y = f32[4,8]{1,0:T(4,128)} convolution(%x, %near), dim_labels=bf_io->bf
}
"""


def test_memory_of_a_tpu_core_is_not_that_of_the_device():
    found = traffic.count(NEAR)
    assert found.bytes == 128 + (64 + 128)
    assert found.kernels == 2


def cpu_text(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arrays).compile().as_text()


def test_one_fusion_reads_its_operands_once():
    found = traffic.count(cpu_text(lambda x, y: jnp.sin(x) * y + x, (50, 20), (50, 20)))
    assert found.bytes == 3 * 4 * 1000
    assert found.kernels == 1
    assert found.groups == {"tail": (8000, 4000, 1)}


def test_a_scan_of_jax_counts_its_rows():
    """Of 7 x [200]: a row read and one written per iteration, beside carry and counter."""

    def total(x):
        return lax.scan(lambda carry, row: (carry + row, jnp.sin(row) * carry), jnp.zeros(200), x)

    found = traffic.count(cpu_text(total, (7, 200)))
    assert found.unknown_loops == 0
    stacks = found.groups["scan stacks"]
    least = 7 * 3 * 800  # row and carry read, row written
    assert least <= stacks.read + stacks.written
    # whole stacks in each iteration would be 7 x 2 x 5,600 bytes
    assert found.bytes < 7 * 10 * 800 + 4 * 5600


@pytest.mark.parametrize(
    ("op_name", "looped", "group"),
    [
        ("jit(train_step)/jvp()/while/body/eval_jaxpr/ConformerBlock/ff1_norm/mul", True, "norms"),
        ("jit(s)/transpose(jvp())/while/body/ConformerBlock/conv/norm/mul", True, "norms"),
        ("jit(s)/jvp()/while/body/ConformerBlock/attention/query/dot_general", True, "attention"),
        ("jit(s)/jvp()/while/body/ConformerBlock/ff2/up/dot_general", True, "feed-forward"),
        ("jit(s)/jvp()/while/body/ConformerBlock/conv/depthwise/mul", True, "convolution"),
        ("jit(s)/jvp()/while/body/ConformerBlock/add", True, "residual sums"),
        ("jit(s)/while/body/jit(dynamic_index_in_dim)/dynamic_slice", True, "scan stacks"),
        ("jit(s)/transpose(jvp(Subsampling))/conv1/dot_general", False, "front end"),
        ("jit(s)/jvp(log_mel)/mul", False, "front end"),
        ("jit(s)/jvp(kbqp,bnp->kbqn)/dot_general", False, "heads and losses"),
        ("jit(s)/jvp()/while/body/add", True, "other loops"),
        ("jit(s)/sqrt", False, "tail"),
    ],
)
def test_groups(op_name, looped, group):
    kernel = traffic.Kernel("k", op_name, 1.0, 1.0, 1, looped, False, False)
    assert traffic.group_of(kernel) == group


def test_sizes_of_types():
    arrays = hlo.arrays("(bf16[2,3]{1,0:T(8,128)(2,1)}, /*index=1*/s32[], pred[5]{0}, c64[2]{0})")
    assert [a.size for a in arrays] == [12, 4, 5, 16]
    assert hlo.arrays("f32[<=7]{0}")[0].dims == (7,)


@pytest.mark.parametrize("text", ["", "%main () -> f32[] {\n}\n"])
def test_a_text_without_an_entry_is_refused(text):
    with pytest.raises(ValueError, match="ENTRY"):
        traffic.count(text)


def test_a_line_that_is_no_instruction_is_refused():
    with pytest.raises(ValueError, match="not an instruction"):
        traffic.count("ENTRY %main () -> f32[] {\n  ROOT %x = f32[] \n}\n")
