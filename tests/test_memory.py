"""Freed memory is kept for the next tensor; budgets are read as Kubernetes writes them."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from limbeck.memory import automatic_budget, quantity_bytes


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [("0", 0), ("100", 100), ("512Mi", 2**29), ("1.5Gi", 3 * 2**29), ("2G", 2 * 10**9), ("1k", 1000), ("3Ki", 3072)],
)
def test_a_quantity_is_read_as_bytes(quantity, expected):
    assert quantity_bytes(quantity) == expected


def test_the_budget_of_the_cpu_does_not_depend_on_what_is_free():
    assert automatic_budget(torch.device("cpu")) == 512 * 2**20


FAULTS = """
import resource, sys, torch
from limbeck.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(20):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told to")
def test_kept_memory_is_not_faulted_in_again():
    def faults(way):
        done = subprocess.run([sys.executable, "-c", FAULTS, way], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("kept") < faults("usual") / 2
