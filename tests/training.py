"""Running the training recipe on tiny models, as a user would."""

import os
import signal
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import torch

from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.llm import load_tokenizer
from blsp_plugin.losses import ResponseCrossEntropy
from tests.warm_python import shared_python

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class KillingLoss(ResponseCrossEntropy):
    """The real loss, but the process is killed (-9) on a given call."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def __call__(self, hidden, *others):
        """Count down in training only; validation has no gradient."""
        if hidden.requires_grad:
            self.calls -= 1
            if self.calls == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(hidden, *others)


class BreakingLoss(ResponseCrossEntropy):
    """The real loss, but not a number on a given call in training."""

    def __init__(self, call):
        super().__init__()
        self.calls = call

    def __call__(self, hidden, *others):
        """Count down in training only."""
        loss = super().__call__(hidden, *others)
        if hidden.requires_grad:
            self.calls -= 1
            if self.calls == 0:
                return loss * float("nan")
        return loss


def write_continuations(corpus, llm_folder, folder, response_tokens=8):
    """Parquet files as stage 1 writes them, with made-up responses."""
    tokenizer = load_tokenizer(llm_folder)
    generator = torch.Generator().manual_seed(1)
    os.makedirs(folder, exist_ok=True)
    for split in ("train", "valid"):
        rows = []
        manifest = read_manifest(
            getattr(corpus, f"{split}_csv"), data_root=corpus.data_root
        )
        for i, row in enumerate(manifest.rows):
            ids = torch.randint(
                10, 300, (response_tokens - i % 3,), generator=generator
            ).tolist()
            rows.append(
                {
                    "ID": row["id"],
                    "wav": row["wav"],
                    "duration": row["duration"],
                    "text": row["text"],
                    "instruction": "Please repeat the following words.",
                    "response": tokenizer.decode(ids),
                    "response_ids": ids,
                    "ended": i % 4 != 0,
                }
            )
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, f"{folder}/{split}.parquet")
    return folder


def run_recipe(
    script, hparams, *options, check=True, ranks=1, fresh=False, **overrides
):
    """Run a recipe in a process of its own, from the project's root.

    A fresh one does its own imports, and has a hash seed of its own.
    """
    python = sys.executable if fresh else shared_python()
    command = [python if ranks == 1 else sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={ranks}"]
        options = (*options, "--distributed_backend", "gloo")
    command += [f"recipes/{script}", str(hparams), "--device", "cpu"]
    command += ["--noprogressbar", *options]
    for key, value in overrides.items():
        command.append(f"--{key}={value}")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": ROOT,
        "PYTHON_EXEC": python,  # of torchrun's ranks
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done
