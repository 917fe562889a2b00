"""Loader workers: what holds a lock here does not stop them."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest
import torch

from blsp_plugin.adapters import ConvAdapter, CTCAdapter, SpelledCTCAdapter
from blsp_plugin.data.workers import worker_options
from blsp_plugin.dataio import weightless
from blsp_plugin.lengths import clip_tokens
from tests.training import ROOT

LOCK = threading.Lock()


class Locked(torch.utils.data.Dataset):
    """Numbers, each read under a lock of its module."""

    def __len__(self):
        return 4

    def __getitem__(self, number):
        with LOCK:
            return number


@pytest.mark.parametrize("workers", [1, 2])
def test_lock_of_a_thread_is_not_inherited(workers):
    """A forked worker would wait for it for ever (here: a minute)."""
    loader = torch.utils.data.DataLoader(
        Locked(), timeout=60, **worker_options(workers)
    )
    held, done = threading.Event(), threading.Event()

    def hold():
        with LOCK:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        held.wait()
        for _ in range(2):  # as the epochs of a training
            assert torch.cat(list(loader)).tolist() == [0, 1, 2, 3]
    finally:
        done.set()
        thread.join()


class Pids(Locked):
    """Who reads, and who forked it."""

    def __getitem__(self, number):
        return torch.tensor([os.getpid(), os.getppid()])


KILLED = """
import os, signal, torch
from blsp_plugin.data.workers import worker_options
from tests.test_workers import Pids
for pids in torch.utils.data.DataLoader(Pids(), **worker_options(2)):
    print(*pids.flatten().tolist(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_killed_training():
    done = subprocess.run(
        [sys.executable, "-c", KILLED],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL
    pids = done.stdout.split()
    assert len(pids) == 2
    until = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < until, "they live on"
        time.sleep(0.05)


def test_nothing_is_started_without_workers():
    options = worker_options(0)
    loader = torch.utils.data.DataLoader(Locked(), **options)
    assert options == {"num_workers": 0} and len(list(loader)) == 4


class Stubborn(ConvAdapter):
    """A user's own adapter, with a constructor of its own."""

    def __init__(self):
        super().__init__(8, 16, layers=2)


@pytest.mark.parametrize("kind", ["conv", "ctc", "spelled", "own"])
def test_workers_carry_no_weights(kind, llm):
    adapter = {
        "conv": lambda: ConvAdapter(64, 128, layers=3),
        "ctc": lambda: CTCAdapter(64, llm.hidden_size, layers=1),
        "spelled": lambda: SpelledCTCAdapter(
            64, llm.hidden_size, llm.vocabulary_size, layers=1
        ),
        "own": Stubborn,
    }[kind]()
    if hasattr(adapter, "bind"):
        adapter.bind(llm.table)
    light = weightless(adapter)
    assert all(p.is_meta for p in light.parameters())
    assert not any(p.is_meta for p in adapter.parameters())
    packed = pickle.dumps(partial(clip_tokens, adapter=light))
    assert len(packed) < 20_000
    for samples in (1, 16_000, 123_456):
        expected = clip_tokens(samples, adapter)
        assert pickle.loads(packed)(samples) == expected
