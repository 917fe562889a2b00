"""The server: real models, a real process, the real client of OpenAI."""

import asyncio
import time

import httpx
import openai
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
)

from blsp_plugin.adapters import ConvAdapter
from blsp_plugin.chat import embed_tokens
from blsp_plugin.conversation import Speech, conversation_ids
from blsp_plugin.errors import BadInput
from blsp_plugin.inference import SpeechLLM
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.model import BLSP
from blsp_plugin.package import save_adapter
from blsp_plugin.serving.app import make_app
from blsp_plugin.serving.embeddings import TokenEmbeddings
from blsp_plugin.serving.engine import Wish
from blsp_plugin.serving.handshake import (
    Served,
    check_same_llm,
    find_server,
)
from blsp_plugin.serving.limits import Limits
from blsp_plugin.serving.local import LocalEngine
from blsp_plugin.serving.service import Service
from blsp_plugin.serving.vllm import VLLMEngine
from blsp_plugin.streaming import Choice, Sequence, text_pieces
from tests.conftest import make_wavs
from tests.front import as_file, front_server, spoken, typed
from tests.hostile import hostile_requests, say
from tests.server import free_port
from tests.tiny import tiny_llm

QUESTION = "What is said?"
LIMIT = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encoder, llm, prompt):
    """A package of tiny models."""
    torch.manual_seed(3)
    adapter = ConvAdapter(
        encoder.output_size,
        llm.hidden_size,
        bottleneck=16,
        gain=llm.embedding_rms,
    )
    folder = tmp_path_factory.mktemp("served")
    save_adapter(BLSP(encoder, adapter, llm), prompt, folder)
    return folder


@pytest.fixture(scope="module")
def speech_llm(folder):
    return SpeechLLM.from_hparams(str(folder), run_opts={"device": "cpu"})


@pytest.fixture(scope="module")
def front(folder):
    """A server without vLLM."""
    with front_server(
        folder,
        *("--read-timeout", "1", "--max-mb", "4", "--max-seconds", "20"),
    ) as front:
        yield front


@pytest.fixture(scope="module")
def client(front):
    with openai.OpenAI(
        base_url=f"{front.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


def clips(seconds, seed=0):
    """Waveforms as a file holds them, and the files."""
    wavs = [wav * 50 for wav in make_wavs(seconds, seed)]
    files = [as_file(wav, subtype="FLOAT") for wav in wavs]
    return wavs, files


def ask(client, *messages, limit=LIMIT, **options):
    messages = [
        message
        if isinstance(message, dict)
        else {"role": "user", "content": message}
        for message in messages
    ]
    return client.chat.completions.create(
        model="blsp", messages=messages, max_tokens=limit, **options
    )


def text_of(answer):
    return answer.choices[0].message.content


def figures(front):
    return httpx.get(f"{front.url}/metrics").json()


def written(speech_llm, messages, limit=LIMIT, **choice):
    """The answer to a conversation, without a server."""
    ids = conversation_ids(speech_llm.prompt, messages)
    sequence = Sequence(speech_llm.model.llm)
    logits = sequence.read(embed_tokens(speech_llm.model, ids))
    tokens = list(sequence.write(logits, limit, Choice(**choice)))
    return "".join(text_pieces(speech_llm.prompt.tokenizer, tokens)), tokens


def test_answers_are_those_of_the_model(client, speech_llm):
    wavs, files = clips([1.0, 0.4, 2.0])
    for wav, file in zip(wavs, files, strict=True):
        answer = ask(client, [spoken(file), typed(QUESTION)])
        alone = speech_llm.answer(wav, QUESTION, max_new_tokens=LIMIT)
        assert text_of(answer) == alone
        [clip] = speech_llm.hear([wav])
        text, tokens = written(speech_llm, [("user", [QUESTION, Speech(clip)])])
        assert text == alone
        ended = len(tokens) < LIMIT
        assert answer.choices[0].finish_reason == (
            "stop" if ended else "length"
        )
        usage = answer.usage
        assert usage.completion_tokens == len(tokens) + ended
        assert usage.prompt_tokens_details.audio_tokens == len(clip.embeds)
        assert usage.prompt_tokens > len(clip.embeds)
        assert usage.total_tokens == usage.prompt_tokens + len(tokens) + ended


def test_a_clip_needs_no_text(client, speech_llm):
    [wav], [file] = clips([0.9], seed=3)
    reply = speech_llm.chat().send(audio=wav, max_new_tokens=LIMIT)
    assert text_of(ask(client, [spoken(file)])) == reply


def test_conversations_are_those_of_a_chat(client, speech_llm):
    """System, several clips in any place, replies as texts."""
    [one, two], files = clips([0.7, 1.3], seed=1)
    system = {"role": "system", "content": "Be brief."}
    chat = speech_llm.chat("Be brief.")
    first = chat.send(audio=one, max_new_tokens=LIMIT)
    assert text_of(ask(client, system, [spoken(files[0])])) == first
    heard = speech_llm.hear([one, two])
    expected, _ = written(
        speech_llm,
        [
            ("system", "Be brief."),
            ("user", [Speech(heard[0])]),
            ("assistant", "In the <|im_end|> garden."),
            ("user", ["And", Speech(heard[1]), "or", Speech(heard[0])]),
        ],
    )
    answer = ask(
        client,
        system,
        [spoken(files[0])],
        {"role": "assistant", "content": "In the <|im_end|> garden."},
        [typed("And"), spoken(files[1]), typed("or"), spoken(files[0])],
    )
    assert text_of(answer) == expected


def test_pieces_are_the_answer(client):
    _, [file] = clips([1.5], seed=2)
    message = [spoken(file), typed(QUESTION)]
    whole = ask(client, message, limit=30)
    chunks = list(
        ask(
            client,
            message,
            limit=30,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *chunks, last = chunks
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == text_of(whole)
    assert sum(map(bool, pieces)) > 1
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [
        whole.choices[0].finish_reason
    ]
    assert not last.choices and last.usage == whole.usage
    assert len({chunk.id for chunk in [*chunks, last]}) == 1
    plain = list(ask(client, message, limit=30, stream=True))
    assert len(plain) == len(chunks) and plain[-1].usage is None


def test_choices_are_respected(client, speech_llm):
    [wav], [file] = clips([1.1], seed=3)
    message = [spoken(file), typed(QUESTION)]
    [clip] = speech_llm.hear([wav])
    drawn, _ = written(
        speech_llm,
        [("user", [QUESTION, Speech(clip)])],
        temperature=1.5,
        top_p=0.9,
        seed=7,
    )
    options = {"temperature": 1.5, "top_p": 0.9, "seed": 7}
    assert text_of(ask(client, message, **options)) == drawn
    whole = text_of(ask(client, message, limit=40))
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    cut = whole[: whole.index(stop)].strip()
    for stream in (False, True):
        answer = ask(client, message, limit=40, stop=[stop], stream=stream)
        if stream:
            answer = list(answer)
            text = "".join(
                chunk.choices[0].delta.content or "" for chunk in answer
            )
            reason = answer[-1].choices[0].finish_reason
        else:
            text, reason = text_of(answer), answer.choices[0].finish_reason
        assert text == cut and reason == "stop"


def test_many_callers_get_the_same_texts(front, speech_llm):
    """Encoded and decoded together, in float32: as one by one."""
    seconds = [0.3 + 0.11 * n for n in range(24)]
    wavs, files = clips(seconds, seed=4)
    alone = [
        speech_llm.answer(wav, QUESTION, max_new_tokens=4 + n % 9)
        for n, wav in enumerate(wavs)
    ]
    before = figures(front)["encoder"]

    async def call():
        async with openai.AsyncOpenAI(
            base_url=f"{front.url}/v1", api_key="none", max_retries=0
        ) as client:
            return await asyncio.gather(
                *(
                    ask(
                        client, [typed(QUESTION), spoken(file)], limit=4 + n % 9
                    )
                    for n, file in enumerate(files)
                )
            )

    assert [text_of(answer) for answer in asyncio.run(call())] == alone
    after = figures(front)["encoder"]
    assert after["clips"] - before["clips"] == 24
    assert after["calls"] - before["calls"] < 24


def test_second_turn_encodes_nothing(front, client):
    _, files = clips([0.9, 0.8], seed=5)
    ask(client, [spoken(files[0]), typed(QUESTION)])
    before = figures(front)["encoder"]
    turns = [
        [spoken(files[0]), typed(QUESTION)],
        {"role": "assistant", "content": "A word."},
        [typed("Which one?")],
    ]
    ask(client, *turns)
    after = figures(front)["encoder"]
    assert after["calls"] == before["calls"]
    assert after["kept"] == before["kept"] + 1
    ask(client, *turns[:2], [spoken(files[1])])
    assert figures(front)["encoder"]["clips"] == before["clips"] + 1


def test_models_health_and_unknown_pages(front, client):
    [card] = client.models.list().data
    assert card.id == "blsp" and client.models.retrieve("blsp").id == "blsp"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")
    assert httpx.get(f"{front.url}/health").json() == {"status": "ok"}
    for path in ("/docs", "/openapi.json", "/v1/audio", "/../etc/passwd"):
        answer = httpx.get(front.url + path)
        assert answer.status_code == 404 and answer.json()["error"]["message"]
    with pytest.raises(openai.BadRequestError, match="no room|more than this"):
        ask(client, [spoken(as_file(make_wavs([19.0])[0]))] * 5)


def test_server_rejects_hostile_requests(front, client):
    """Each gets a clear line; nothing stays, and others are answered."""
    _, [file] = clips([1.2], seed=6)
    good = [spoken(file), typed(QUESTION)]
    expected = text_of(ask(client, good))
    hostile = hostile_requests(file)
    for _ in range(8):  # warm up
        ask(client, good)
    before, n_lines = front.rss(), len(front.lines)
    assert len(hostile) >= 50
    assert len({name for name, _, _ in hostile}) == len(hostile)
    for name, request, statuses in hostile:
        status, message = say(front.port, request)
        assert status in statuses, f"{name}: {status} {message}"
        if status is not None:
            assert message and "\n" not in message, f"{name}: {message}"
            assert len(message) <= 400, f"{name}: {message}"
            for secret in ("Traceback", "/tmp", "site-packages", "/root"):
                assert secret not in message, f"{name}: {message}"
    assert text_of(ask(client, good)) == expected
    limit = time.time() + 10
    while figures(front)["inside"] and time.time() < limit:
        time.sleep(0.1)
    assert figures(front)["inside"] == 0
    assert front.rss() < 1.1 * before
    assert "Traceback" not in "".join(front.lines[n_lines:])


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_is_not_written_for(front, stream):
    """The generation ends with the connection, streamed or not."""
    _, [file] = clips([0.6], seed=7)
    payload = {
        "model": "blsp",
        "messages": [{"role": "user", "content": [spoken(file)]}],
        "max_tokens": 250,
        "stream": stream,
        "temperature": 1.9,
    }
    before = figures(front)["requests"]["left"]
    # A tiny LLM may be faster than the one who leaves.
    for _ in range(20):
        with httpx.Client(timeout=20 if stream else 0.1) as impatient:
            try:
                with impatient.stream(
                    "POST", f"{front.url}/v1/chat/completions", json=payload
                ) as response:
                    pieces = response.iter_bytes()  # leaves when forgotten
                    next(pieces)
            except httpx.TimeoutException:
                pass
        limit = time.time() + 3
        while figures(front)["inside"] and time.time() < limit:
            time.sleep(0.05)
        now = figures(front)
        assert now["inside"] == 0
        if now["requests"]["left"] > before:
            return
    raise AssertionError("nobody was seen to leave")


def test_a_closed_answer_is_not_written_on(tmp_path):
    """The thread of the local engine goes on to others, or sleeps."""
    llm = FrozenLLM(tiny_llm(tmp_path, eos_scale=0.0))
    steps = []
    llm.model.get_output_embeddings().register_forward_hook(
        lambda *_: steps.append(1)
    )
    embeds = llm.embed(torch.arange(20))

    async def call():
        engine = LocalEngine(llm)
        pieces = engine.write(embeds, Wish(450), True)
        assert isinstance(await anext(pieces), str)
        await pieces.aclose()
        await asyncio.sleep(0.2)
        done = len(steps)
        await asyncio.sleep(0.2)
        assert len(steps) == done < 400
        # Two streams take turns.
        both = await asyncio.gather(
            *(anext(engine.write(embeds, Wish(450), True)) for _ in range(2))
        )
        assert len(steps) < done + 400 and both[0] == both[1]
        await engine.close()

    asyncio.run(call())


def app_of(speech_llm, **limits):
    engine = LocalEngine(speech_llm.model.llm)
    key = limits.pop("key", None)
    service = Service(speech_llm, engine, Limits(**limits), "blsp")
    return make_app(service, key), service


async def posted(app, n, **options):
    """Several requests to an application at once."""
    payload = {"messages": [{"role": "user", "content": "Hello"}]}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://here"
    ) as client:
        return await asyncio.gather(
            *(
                client.post("/v1/chat/completions", json=payload, **options)
                for _ in range(n)
            )
        )


def post(*args, **options):
    return asyncio.run(posted(*args, **options))


def test_too_many_wait_elsewhere(speech_llm):
    app, service = app_of(speech_llm, queue=2, new_tokens=5)
    answers = post(app, 6)
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200, 200, 429, 429, 429, 429]
    refused = next(a for a in answers if a.status_code == 429)
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert service.inside == 0 and post(app, 1)[0].status_code == 200
    asyncio.run(service.close())


def test_api_key(speech_llm):
    app, service = app_of(speech_llm, key="sesame", new_tokens=5)
    for headers in (
        {},
        {"Authorization": "Bearer ses"},
        {"Authorization": "x"},
    ):
        [answer] = post(app, 1, headers=headers)
        assert answer.status_code == 401
    [answer] = post(app, 1, headers={"Authorization": "Bearer sesame"})
    assert answer.status_code == 200
    asyncio.run(service.close())


@pytest.mark.parametrize("kind", ["tied", "untied", "sentencepiece", "gemma"])
def test_embeddings_without_the_llm(kind, request, tmp_path):
    """What is written for vLLM is what the whole LLM would read."""
    if kind in ("untied", "sentencepiece"):
        name = "llm_folder" if kind == "untied" else "sentencepiece_folder"
        folder = request.getfixturevalue(name)
    else:
        folder = str(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(
            request.getfixturevalue("llm_folder")
        )
        tokenizer.save_pretrained(folder)
        config = (LlamaConfig if kind == "tied" else Gemma3TextConfig)(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            tie_word_embeddings=True,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    whole, part = FrozenLLM(folder), TokenEmbeddings(folder)
    ids = torch.arange(50)
    assert torch.equal(part.embed(ids), whole.embed(ids))
    table = whole.embedding.weight.numel()
    assert table <= sum(p.numel() for p in part.parameters()) < table + 100
    assert part.stop_ids == whole.stop_ids
    assert part.fingerprint() is None


def test_adapter_opens_without_the_llm(folder, speech_llm):
    """Everything but the LLM is compared with what was trained."""
    far = SpeechLLM.from_hparams(
        str(folder), run_opts={"device": "cpu"}, llm_class=TokenEmbeddings
    )
    [wav] = make_wavs([1.0])
    assert torch.equal(
        far.hear([wav])[0].embeds, speech_llm.hear([wav])[0].embeds
    )


def test_what_is_not_vllm_is_one_line(front, folder):
    far = SpeechLLM.from_hparams(
        str(folder), run_opts={"device": "cpu"}, llm_class=TokenEmbeddings
    )
    with pytest.raises(BadInput, match="no vLLM server answers"):
        find_server(f"http://127.0.0.1:{free_port()}", seconds=0)
    for url in ("127.0.0.1:8000", "file:///etc/passwd", "http://:9"):
        with pytest.raises(BadInput, match="--vllm"):
            find_server(url, seconds=0)
    with pytest.raises(BadInput, match="does not serve other; it has blsp"):
        find_server(front.url, "other")
    served = find_server(front.url + "/v1/")
    assert served.name == "blsp" and served.room == 512
    with pytest.raises(BadInput, match="another LLM.*Not Found"):
        check_same_llm(served, far)


def test_without_its_llm_the_server_says_so(front, folder):
    """vLLM has gone, or is something else by now."""
    far = SpeechLLM.from_hparams(
        str(folder), run_opts={"device": "cpu"}, llm_class=TokenEmbeddings
    )
    nobody = f"http://127.0.0.1:{free_port()}/v1"

    async def call(url):
        engine = VLLMEngine(Served(url, "llm", 512, {}), [1])
        service = Service(far, engine, Limits(), "blsp")
        [answer] = await posted(make_app(service), 1)
        healthy = await engine.healthy()
        await service.close()
        return answer, healthy

    for url, says in (
        (nobody, "does not answer"),
        (f"{front.url}/v1", "server failed"),
    ):
        answer, healthy = asyncio.run(call(url))
        assert answer.status_code == 502
        assert says in answer.json()["error"]["message"]
        assert healthy == (url != nobody)
