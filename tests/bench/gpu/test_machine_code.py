"""Tests of `bench.gpu.machine_code`: loops and products of machine code, and real kernels for the shipped targets."""

import pytest
import torch

from bench.gpu.kernel_cases import CASES, Implementations, results
from bench.gpu.machine_code import Issued, MismatchError, count, issued, loops_of, trip_counts
from pgat_kernels.instrumentation import Launch, record_launches

CODE = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   MOV R2, RZ ;
.L_x_1:
        /*0020*/                   HGMMA.64x32x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
        /*0030*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0040*/                   FADD R3, R3, R4 ;
        /*0050*/                   ISETP.NE.AND P0, PT, R2, 0x3, PT ;
        /*0060*/               @P0 BRA `(.L_x_1) ;
        /*0070*/                   STL [R1], R3 ;
        /*0080*/                   EXIT ;
.L_x_2:
        /*0090*/                   BRA `(.L_x_2);
        /*00a0*/                   NOP;
"""


def test_body_of_loop_counts_as_often_as_it_runs() -> None:
    assert loops_of(CODE) == [(2, 6)]
    one_warp = 2 + 3 * 5 + 3  # the branch to itself at the end is no loop, and padding is not executed
    assert count(CODE, [3], warps=4) == Issued(4 * one_warp, 3 * 2 * 64 * 32 * 16, 4)


def test_warps_beyond_a_group_compute_duplicates() -> None:
    assert count(CODE, [3], warps=8).product_flops == 2 * count(CODE, [3], warps=4).product_flops


def test_shortest_loops_may_be_unrolled() -> None:
    assert count(CODE, [2, 3], warps=4) == count(CODE, [3], warps=4)


def test_unmatched_loops_are_an_error() -> None:
    with pytest.raises(MismatchError, match="1 loops in the machine code, 2 in triton's IR"):
        count(CODE, [3, 3], warps=4)
    with pytest.raises(MismatchError, match="1 loops in the machine code, 2 in triton's IR"):
        count(CODE, [9, 30], warps=4)


@pytest.mark.parametrize(
    ("bounds", "trips"),
    [
        ("%c0_i32 to %c169_i32 step %c64_i32", 3),
        ("%c0_i32 to %c208_i32_5 step %c32_i32", 7),
        ("%c0_i32 to %steps step %c1_i32", 250),
        ("%first to %2 step %c1_i64", 32),
    ],
)
def test_trip_counts_of_bounds(bounds: str, trips: int) -> None:
    ir = f"""
    %0 = arith.addi %first, %c32_i64 : i64
    %2 = arith.minsi %0, %1 : i64
    %x:4 = scf.for %i = {bounds} iter_args(%y = %z) -> (i32) : i32 {{
    """
    assert trip_counts(ir, {"steps": 250}) == [trips]
    with pytest.raises(MismatchError, match="%unknown"):
        trip_counts("scf.for %i = %c0_i32 to %unknown step %c1_i32", {})


def launches_of(shape: str, target: str, dtype: torch.dtype) -> list[Launch]:
    case = next(case for case in CASES if case.shape == shape)
    with record_launches(target) as launches, Implementations():
        results(case, case.leaves(dtype, torch.device("meta"), 16), kernels=True)
    return launches


def test_twice_the_warps_issue_twice_as_much_for_a_tile_of_64_rows() -> None:
    launch = launches_of("169 edges", "sm_90", torch.bfloat16)[0]
    narrow, wide = (
        issued(launch._replace(configuration=launch.configuration._replace(warps=warps)), "sm_90") for warps in (4, 8)
    )
    # Scores have 64 columns, which two groups of warps share; results have 32, which both compute.
    assert wide.product_flops == 1.5 * narrow.product_flops
    assert 1.5 < wide.instructions / narrow.instructions < 2.2
