"""The vLLM engine and a vLLM server, where `make vllm-env` has been run."""

import os
import subprocess

import pyarrow.parquet
import pytest

from tests.training import ROOT, run_recipe

VENV = os.path.join(ROOT, ".venv-vllm")
PYTHON = os.path.join(VENV, "bin", "python")
PRESET = """
base: {root}/hparams/vllm_generate.yaml
llm: {llm}
llm_dtype: float32
max_new_tokens: 24
"""


@pytest.fixture(scope="module")
def smollm2():
    """The starter LLM, if it is on this machine."""
    from blsp_plugin.starter import store

    folder = os.path.join(store.root(), "smollm2-135m-instruct")
    if not os.path.isfile(os.path.join(VENV, ".installed")):
        pytest.skip("no .venv-vllm: run make vllm-env")
    if not os.path.isdir(folder):
        pytest.skip("no starter LLM: run make starter")
    return folder


def test_vllm_writes_what_transformers_writes(smollm2, corpus, tmp_path):
    """In float32; tables differ by near ties only."""
    preset = tmp_path / "vllm.yaml"
    preset.write_text(PRESET.format(root=ROOT, llm=smollm2))
    environment = {
        **os.environ,
        "PYTHONPATH": ROOT,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    options = {
        "data_folder": corpus.data_root,
        "llm": smollm2,
        "llm_dtype": "float32",
        "max_new_tokens": 24,
    }
    done = subprocess.run(
        [
            PYTHON,
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
