"""Freed memory stays with the process, and is not filled with zeros anew."""

import os
import subprocess
import sys

import pytest

from tests.training import ROOT

# 20 tensors of 16 MB, one after the other; and the page faults that they cost.
ALLOCATE = """
import resource, sys, torch
from blsp_plugin.allocator import keep_freed_memory
if "keep" in sys.argv and not keep_freed_memory():
    sys.exit(77)
for _ in range(12):
    torch.ones(4 << 20).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(4 << 20).sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments):
    environment = {k: v for k, v in os.environ.items() if "MALLOC" not in k}
    # What glibc does unless it has seen such a block freed before.
    environment["MALLOC_MMAP_THRESHOLD_"] = "131072"
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATE, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode == 77:
        pytest.skip("no glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_freed_memory_is_kept():
    assert faults("keep") < faults() / 10
