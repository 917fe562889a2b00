"""kill -9 at any moment changes nothing, with a local LLM and with a server."""

import pytest

from benchmarks.kill_anywhere import compare
from tests.server import transformers_server
from tests.training import ROOT

LOCAL = """
base: {root}/hparams/generate.yaml
llm: {llm}
llm_dtype: float32
batch_size: 8
window: 32
max_new_tokens: 12
"""
SERVER = """
base: {root}/hparams/server_generate.yaml
llm: {llm}
window: 32
max_new_tokens: 8
engine: !new:blsp_plugin.continuation.engines.ServerEngine
    model: {llm}
    prompt_as: text
    concurrency: 2
    extra_body: null
"""


def check(result, kills):
    assert result["identical"], result
    assert not result["lost"] and not result["duplicates"], result
    assert result["kills"] == kills, result
    between = [n for n in result["resumed_from"] if 0 < n < result["responses"]]
    assert between, result


@pytest.mark.parametrize("engine", ["hf", "server"])
def test_kill_anywhere_same_result(engine, llm_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    preset = tmp_path / "preset.yaml"
    text = LOCAL if engine == "hf" else SERVER
    preset.write_text(text.format(root=ROOT, llm=llm_folder))
    options = [str(preset), ["--device=cpu"], str(tmp_path)]
    if engine == "hf":
        check(compare(*options, rows=200, kills=5), 5)
        return
    with transformers_server(llm_folder, tmp_path / "server.txt") as url:
        options[1].append(f"--engine={{url: {url}}}")
        check(compare(*options, rows=60, kills=4), 4)
