"""Time and peak memory are those of the block."""

from __future__ import annotations

import sys

import pytest
import torch

from limbeck.measure import MemoryPeak

MIB = 2**20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark is reset on Linux only")


def allocate(mebibytes):
    torch.ones(mebibytes * MIB // 4)  # filled, and freed at once


def test_a_peak_is_the_blocks_own():
    with MemoryPeak() as large:
        allocate(300)
    with MemoryPeak() as small:
        allocate(10)
    assert large.resident_bytes - large.resident_before > 250 * MIB
    assert small.resident_bytes < large.resident_bytes - 200 * MIB


def test_a_block_inside_does_not_hide_what_the_outer_one_used_before_it():
    with MemoryPeak() as outer:
        allocate(300)
        with MemoryPeak() as inner:
            allocate(10)
    assert outer.resident_bytes - outer.resident_before > 250 * MIB
    assert inner.resident_bytes < outer.resident_bytes - 200 * MIB
    assert outer.seconds >= inner.seconds > 0


def test_the_outer_peak_counts_what_the_inner_block_used():
    with MemoryPeak() as outer, MemoryPeak() as inner:
        allocate(300)
    assert outer.resident_bytes >= inner.resident_bytes > inner.resident_before + 250 * MIB
