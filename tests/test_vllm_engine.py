"""The vLLM engine and a vLLM server, where `make vllm-env` has been run."""

import os
import subprocess

import pyarrow.parquet

from tests.server import VLLM_PYTHON
from tests.training import ROOT, run_recipe

PRESET = """
base: {root}/hparams/vllm_generate.yaml
llm: {llm}
llm_dtype: float32
max_new_tokens: 24
"""


def test_vllm_writes_what_transformers_writes(vllm_llm, corpus, tmp_path):
    """In float32; tables differ by near ties only."""
    preset = tmp_path / "vllm.yaml"
    preset.write_text(PRESET.format(root=ROOT, llm=vllm_llm))
    environment = {
        **os.environ,
        "PYTHONPATH": ROOT,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    options = {
        "data_folder": corpus.data_root,
        "llm": vllm_llm,
        "llm_dtype": "float32",
        "max_new_tokens": 24,
    }
    done = subprocess.run(
        [
            VLLM_PYTHON,
            os.path.join(ROOT, "recipes", "continuation", "generate.py"),
            str(preset),
            f"--data_folder={corpus.data_root}",
            f"--output_folder={tmp_path / 'vllm'}",
            "--device=cpu",
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run_recipe(
        "continuation/generate.py",
        os.path.join(ROOT, "hparams", "generate.yaml"),
        output_folder=tmp_path / "hf",
        **options,
    )
    texts = []
    for engine in ("vllm", "hf"):
        table = pyarrow.parquet.read_table(
            tmp_path / engine / "train.parquet",
            columns=["ID", "response", "response_ids", "ended"],
        ).to_pylist()
        texts.append({row.pop("ID"): row for row in table})
    both = set(texts[0]) & set(texts[1])
    same = sum(texts[0][key] == texts[1][key] for key in both)
    assert len(both) >= 12 and same >= 0.9 * len(both)
