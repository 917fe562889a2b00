"""Models are opened in a precision that the machine computes in."""

import os
import platform

import pytest
import torch

from blsp_plugin import pretrained
from blsp_plugin.pretrained import native_precision


@pytest.mark.parametrize("has", [True, False])
def test_no_bfloat16_where_it_is_emulated(has, monkeypatch):
    monkeypatch.setattr(pretrained, "_has_bfloat16", lambda: has)
    for name, single in (("bfloat16", "float32"), ("bf16", "fp32")):
        assert native_precision(name) == (name if has else single)
    for name in ("float32", "float16", "int8", "fp32", "fp16"):
        assert native_precision(name) == name


@pytest.mark.skipif(
    torch.cuda.is_available()
    or platform.machine() != "x86_64"
    or not os.path.exists("/proc/cpuinfo"),
    reason="reads the processor's flags",
)
def test_processor_has_bfloat16_as_linux_says():
    """The AVX-512 that oneDNN needs for it."""
    with open("/proc/cpuinfo") as stream:
        flags = next(line for line in stream if line.startswith("flags"))
    wide = {"avx512bw", "avx512vl", "avx512dq"} <= set(flags.split())
    assert native_precision("bfloat16") == ("bfloat16" if wide else "float32")
