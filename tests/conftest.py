"""Fixtures: tiny random models made at test time, the starter kit on demand."""

import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from blsp_plugin.adapters import ConvAdapter  # noqa: E402
from blsp_plugin.encoder import WhisperEncoder  # noqa: E402
from blsp_plugin.llm import FrozenLLM  # noqa: E402
from blsp_plugin.model import BLSP  # noqa: E402
from blsp_plugin.prompts import Prompt  # noqa: E402
from blsp_plugin.starter import store  # noqa: E402
from tests.server import VLLM_PYTHON  # noqa: E402
from tests.tiny import (  # noqa: E402
    tiny_corpus,
    tiny_llm,
    tiny_sentencepiece_llm,
    tiny_whisper,
)


@pytest.fixture(scope="session")
def llm_folder(tmp_path_factory):
    """A random Llama with byte-level BPE and ChatML."""
    return tiny_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="session")
def vllm_llm():
    """The starter LLM, where vLLM's environment is there too."""
    folder = os.path.join(store.root(), "smollm2-135m-instruct")
    if not os.path.isfile(VLLM_PYTHON):
        pytest.skip("no .venv-vllm: run make vllm-env")
    if not os.path.isdir(folder):
        pytest.skip("no starter LLM: run make starter")
    return folder


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory):
    """A random Llama with a SentencePiece-like tokenizer and [INST]."""
    return tiny_sentencepiece_llm(tmp_path_factory.mktemp("sp"))


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory):
    """A random Whisper with 80 mels."""
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Tones with transcripts, as the toolkit's CSV files."""
    return tiny_corpus(tmp_path_factory.mktemp("corpus"), n=12)


@pytest.fixture(scope="session")
def llm(llm_folder):
    """The random Llama, opened in float32."""
    return FrozenLLM(llm_folder)


@pytest.fixture(scope="session")
def prompt(llm):
    """The default chat prompt of the random Llama."""
    return Prompt(llm.tokenizer)


@pytest.fixture(scope="session")
def encoder(whisper_folder):
    """The random Whisper's encoder."""
    return WhisperEncoder(whisper_folder)


@pytest.fixture
def model(encoder, llm):
    """A BLSP model with a fresh adapter, the same every time."""
    torch.manual_seed(0)
    adapter = ConvAdapter(
        encoder.output_size,
        llm.hidden_size,
        bottleneck=16,
        gain=llm.embedding_rms,
    )
    return BLSP(encoder, adapter, llm)


def make_wavs(seconds, seed=0, loud=()):
    """Noisy tones of some lengths; those in ``loud`` are 100 times louder."""
    generator = torch.Generator().manual_seed(seed)
    wavs = []
    for i, length in enumerate(seconds):
        samples = int(16000 * length)
        tone = torch.sin(torch.arange(samples) * 0.05 * (i + 1))
        noise = torch.randn(samples, generator=generator)
        wavs.append((0.005 * tone + 0.001 * noise) * (100 if i in loud else 1))
    return wavs
