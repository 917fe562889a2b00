"""The server before a real vLLM, where `make vllm-env` has been run."""

import asyncio
import time

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from blsp_plugin.adapters import ConvAdapter
from blsp_plugin.encoder import WhisperEncoder
from blsp_plugin.errors import BadInput
from blsp_plugin.inference import SpeechLLM
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.model import BLSP
from blsp_plugin.package import save_adapter
from blsp_plugin.prompts import Prompt
from blsp_plugin.serving.embeddings import TokenEmbeddings
from blsp_plugin.serving.handshake import check_same_llm, find_server
from tests.conftest import make_wavs
from tests.front import as_file, front_server, spoken, typed
from tests.server import VLLM_PYTHON, vllm_server

QUESTION = "Please repeat the following words."
LIMIT = 24


def package(folder, llm, whisper_folder):
    """A package with an adapter that has learnt nothing."""
    llm = FrozenLLM(llm)
    encoder = WhisperEncoder(whisper_folder)
    torch.manual_seed(0)
    adapter = ConvAdapter(
        encoder.output_size,
        llm.hidden_size,
        bottleneck=16,
        gain=llm.embedding_rms,
    )
    model = BLSP(encoder, adapter, llm)
    save_adapter(model, Prompt(llm.tokenizer), folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(vllm_llm, whisper_folder, tmp_path_factory):
    return package(tmp_path_factory.mktemp("far"), vllm_llm, whisper_folder)


@pytest.fixture(scope="module")
def vllm(vllm_llm, tmp_path_factory):
    """Address of a vLLM server of the starter LLM."""
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    with vllm_server(VLLM_PYTHON, vllm_llm, log) as url:
        yield url


@pytest.fixture(scope="module")
def front(folder, vllm):
    with front_server(folder, "--vllm", vllm) as front:
        yield front


def ask(front, clips, **options):
    """Several callers at once."""

    async def call():
        async with openai.AsyncOpenAI(
            base_url=f"{front.url}/v1", api_key="none", max_retries=0
        ) as client:
            return await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="blsp",
                        messages=[
                            {
                                "role": "user",
                                "content": [spoken(clip), typed(QUESTION)],
                            }
                        ],
                        max_tokens=LIMIT,
                        **options,
                    )
                    for clip in clips
                )
            )

    return asyncio.run(call())


def clips(n):
    wavs = [wav * 50 for wav in make_wavs([0.5 + 0.1 * i for i in range(n)])]
    return wavs, [as_file(wav, subtype="FLOAT") for wav in wavs]


def test_vllm_answers_as_the_model(front, folder):
    """Many callers, continuous batching; in float32 near ties differ only."""
    speech_llm = SpeechLLM.from_hparams(
        folder, run_opts={"device": "cpu"}, dtype="float32"
    )
    wavs, files = clips(16)
    answers = ask(front, files)
    same = 0
    for wav, answer in zip(wavs, answers, strict=True):
        text = speech_llm.answer(wav, QUESTION, max_new_tokens=LIMIT)
        same += text == answer.choices[0].message.content
        usage = answer.usage
        ids = speech_llm.prompt.tokenizer(text)["input_ids"]
        assert 0 < usage.completion_tokens <= LIMIT and (ids or not text)
        assert usage.prompt_tokens_details.audio_tokens == (
            speech_llm.model.speech_tokens(len(wav))
        )
    assert same >= 0.9 * len(wavs)


def test_streams_pass_through(front):
    _, [file] = clips(1)
    [whole] = ask(front, [file])
    options = {"include_usage": True}
    with openai.OpenAI(
        base_url=f"{front.url}/v1", api_key="none", max_retries=0
    ) as client:
        chunks = list(
            client.chat.completions.create(
                model="blsp",
                messages=[
                    {"role": "user", "content": [spoken(file), typed(QUESTION)]}
                ],
                max_tokens=LIMIT,
                stream=True,
                stream_options=options,
            )
        )
    *chunks, last = chunks
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(map(bool, pieces)) > 3 and last.usage == whole.usage


def comes_to(vllm, wanted, seconds=5):
    """Whether vLLM soon is at so many requests."""
    limit = time.time() + seconds
    while time.time() < limit:
        lines = httpx.get(f"{vllm}/metrics").text.splitlines()
        running = sum(
            float(line.split()[-1])
            for line in lines
            if line.startswith("vllm:num_requests_running")
        )
        if running == wanted:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_given_up_in_vllm(front, vllm, stream):
    payload = {
        "messages": [{"role": "user", "content": "Tell me a long story."}],
        "max_tokens": 256,
        "temperature": 1.2,
        "stream": stream,
    }
    with httpx.Client(timeout=20 if stream else 1.5) as impatient:
        try:
            with impatient.stream(
                "POST", f"{front.url}/v1/chat/completions", json=payload
            ) as response:
                pieces = response.iter_bytes()  # leaves when forgotten
                next(pieces)
                assert comes_to(vllm, 1)
        except httpx.TimeoutException:
            pass
    assert comes_to(vllm, 0)


def test_what_does_not_fit_is_a_clear_400(front):
    payload = {"messages": [{"role": "user", "content": "word " * 600}]}
    answer = httpx.post(f"{front.url}/v1/chat/completions", json=payload)
    assert answer.status_code == 400
    assert "more than this LLM's 512" in answer.json()["error"]["message"]


def test_another_llm_is_refused(
    vllm, vllm_llm, llm_folder, whisper_folder, tmp_path
):
    """Of another width, and of the same width with other weights."""
    served = find_server(vllm)
    assert served.name == "llm" and served.room == 512
    other = tmp_path / "other"
    AutoTokenizer.from_pretrained(vllm_llm).save_pretrained(other)
    model = AutoModelForCausalLM.from_pretrained(vllm_llm)
    table = model.get_input_embeddings().weight.data
    table.copy_(table[torch.randperm(len(table))])
    model.save_pretrained(other)
    for llm in (llm_folder, other):
        far = SpeechLLM.from_hparams(
            package(tmp_path / "package", llm, whisper_folder),
            run_opts={"device": "cpu"},
            llm_class=TokenEmbeddings,
        )
        with pytest.raises(BadInput, match="is another LLM than the adapter's"):
            check_same_llm(served, far)
