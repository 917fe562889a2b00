"""The web page: in a real browser, between visitors, and at its limits."""

import contextlib
import gc
import glob
import json
import os
import shutil
import subprocess
import sys
import urllib.request
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")

from speechbrain.nnet.adapters import AdaptedModel, LoRA  # noqa: E402

from blsp_plugin.adapters import ConvAdapter  # noqa: E402
from blsp_plugin.cli import main  # noqa: E402
from blsp_plugin.data.audio import read_speech  # noqa: E402
from blsp_plugin.data.text import normalise_transcript  # noqa: E402
from blsp_plugin.errors import BadInput  # noqa: E402
from blsp_plugin.evaluation.systems import Cascade, Clip  # noqa: E402
from blsp_plugin.evaluation.whisper_asr import WhisperASR  # noqa: E402
from blsp_plugin.inference import SpeechLLM  # noqa: E402
from blsp_plugin.llm import FrozenLLM  # noqa: E402
from blsp_plugin.model import BLSP  # noqa: E402
from blsp_plugin.package import save_adapter  # noqa: E402
from blsp_plugin.prompts import Prompt  # noqa: E402
from blsp_plugin.webpage.command import serve  # noqa: E402
from blsp_plugin.webpage.limits import Limits  # noqa: E402
from blsp_plugin.webpage.page import Page  # noqa: E402
from blsp_plugin.webpage.talk import Models, Talk  # noqa: E402
from tests.server import free_port  # noqa: E402
from tests.tiny import tiny_llm  # noqa: E402
from tests.training import ROOT  # noqa: E402

ASKED = "What is said?"
MORE = "Say that in fewer words."
TOKENS = 12
ROOM = 4096  # positions of the LLM
LIMITS = Limits(
    seconds=5, megabytes=0.25, characters=80, new_tokens=TOKENS, queue=2
)
CHROMIUM = next(
    filter(
        None,
        map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
    ),
    None,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encoder):
    """An adapter folder over random models.

    What the random Whisper writes is long, so the LLM has much room.
    """
    place = tiny_llm(tmp_path_factory.mktemp("llm"))
    path = os.path.join(place, "config.json")
    with open(path, encoding="utf-8") as stream:
        config = json.load(stream)
    config["max_position_embeddings"] = ROOM
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(config, stream)
    llm = FrozenLLM(place)
    torch.manual_seed(3)
    adapter = ConvAdapter(
        encoder.output_size, llm.hidden_size, 16, gain=llm.embedding_rms
    )
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(BLSP(encoder, adapter, llm), Prompt(llm.tokenizer), folder)
    return str(folder)


@pytest.fixture(scope="module")
def speech_llm(folder):
    return SpeechLLM.from_hparams(folder, run_opts={"device": "cpu"})


@pytest.fixture(scope="module")
def asr(whisper_folder):
    return WhisperASR(whisper_folder, max_new_tokens=8)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Files to upload, good and bad."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)

    def write(name, seconds, rate=16000, **format):
        path = str(folder / name)
        time = np.arange(int(seconds * rate)) / rate
        tone = np.sin(2 * np.pi * (200 + 100 * len(name)) * time)
        noise = 0.05 * rng.standard_normal(len(time))
        soundfile.write(path, 0.2 * tone + noise, rate, **format)
        return path

    notes = folder / "notes.wav"
    notes.write_text("these are notes, not a recording")
    return SimpleNamespace(
        first=write("first.wav", 1.3),
        second=write("second.flac", 0.8, 44100),
        long=write("long.wav", 5.5, 8000),
        large=write("large.wav", 4.0, 48000),
        notes=str(notes),
    )


@pytest.fixture(scope="module")
def served(speech_llm, asr, tmp_path_factory):
    """A page in this process, and its address."""
    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("uploads"))
    page = Page(Models(speech_llm, asr), LIMITS, "Speech LLM", "Random.")
    yield page, serve(page, "127.0.0.1", 0, wait=False)
    page.blocks.close(verbose=False)
    del os.environ["GRADIO_TEMP_DIR"]


@contextlib.contextmanager
def visitor(served):
    """Somebody who sends and reads without a browser."""
    client = gradio_client.Client(served[1], verbose=False)

    def say(text="", clip=None):
        clip = None if clip is None else gradio_client.handle_file(clip)
        client.predict(text, clip, api_name="/say")
        speech, cascade, figures, note, heard = client.predict(
            api_name="/answer"
        )
        return SimpleNamespace(
            speech=spoken(speech),
            cascade=spoken(cascade),
            figures=figures,
            note=note,
            heard=heard,
        )

    try:
        yield SimpleNamespace(say=say, client=client)
    finally:
        client.close()


@pytest.fixture(scope="module")
def regular(served):
    """A visitor who has said something, for several tests."""
    with visitor(served) as who:
        who.last = who.say(ASKED)
        yield who


def spoken(messages):
    """Texts of the messages of a side, clips as None."""
    return [
        (message["role"], [part.get("text") for part in message["content"]])
        for message in messages
    ]


def answers(side):
    return [parts[0] for role, parts in side if role == "assistant"]


def in_own_words(text):
    """An answer as the page shows it."""
    return text or "(no answer)"


@contextlib.contextmanager
def later(page, seconds):
    """Some time has passed for the page."""
    clock = page.visitors.clock
    now = clock() + seconds
    page.visitors.clock = lambda: now
    yield
    page.visitors.clock = clock


@contextlib.contextmanager
def started(folder, temporary, *options):
    """``blsp web`` in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "blsp_plugin", "web", str(folder)]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": ROOT,
        "TMPDIR": str(temporary),
    }
    environment.pop("GRADIO_TEMP_DIR", None)
    with subprocess.Popen(
        [*command, "--port", str(port), *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            line = process.stdout.readline()
            assert f"http://127.0.0.1:{port}/" in line
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()
            process.wait(30)
    assert process.returncode == 0


@contextlib.contextmanager
def browser(folder):
    """A window of Chromium, and the addresses that it asks."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(folder),
            executable_path=CHROMIUM,
            headless=True,
            args=[
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        window = context.new_page()
        asked = set()
        window.on("request", lambda request: asked.add(request.url))
        yield window, asked
        context.close()


def send(window, text=None, clip=None, turns=0):
    """Type, upload, click, and wait for the answers of so many turns."""
    if clip is not None:
        window.set_input_files("#clip input[type=file]", clip)
        window.wait_for_selector("#clip audio", state="attached")
    if text is not None:
        window.fill("#words textarea", text)
    window.click("#send")
    window.wait_for_function(
        "turns => document.querySelector('#halt').disabled"
        " && !document.querySelector('#send').disabled && (turns"
        " ? document.querySelectorAll('#text .bot-row').length == turns"
        " : document.querySelector('#note p'))",
        arg=turns,
        timeout=60000,
    )
    return [
        window.locator(f"#{side} .bot-row").last.inner_text().strip()
        for side in ("speech", "text")
    ]


def converse(url, speech_llm, clips, window, tokens):
    """Two turns and an error, as a visitor sees them."""
    window.goto(url)
    window.wait_for_selector("#words textarea")
    chat = speech_llm.chat()
    expected = chat.send(ASKED, clips[0], max_new_tokens=tokens)
    answer, compared = send(window, ASKED, clips[0], 1)
    assert answer == in_own_words(expected).strip()
    assert compared
    figures = window.inner_text("#figures")
    cells = figures.split("\n")[1].split("\t")
    assert cells[0] == "Speech LLM"
    assert cells[2] == str(chat.figures.speech_tokens)
    assert cells[3] == str(chat.figures.prompt_tokens)
    assert cells[5] == str(chat.figures.reply_tokens)
    expected = chat.send(MORE, max_new_tokens=tokens)
    answer, _ = send(window, MORE, None, 2)
    assert answer == in_own_words(expected).strip()
    cells = window.inner_text("#figures").split("\n")[1].split("\t")
    assert cells[4] == str(chat.figures.kept_tokens) != "0"
    # No recording: a sentence, and all that was said is still there.
    answer, _ = send(window, None, clips[1])
    assert "notes.wav is not readable as audio" in window.inner_text("#note")
    assert answer == in_own_words(expected).strip()
    assert window.locator("#speech .user-row").count() == 2


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_web_page_in_chromium(folder, speech_llm, clips, tmp_path):
    """Type, upload, click, read: served by the command, in a browser."""
    files = [clips.first, clips.notes]
    uploads = tmp_path / "tmp"
    uploads.mkdir()
    options = ["--max-new-tokens", str(TOKENS), "--device", "cpu"]
    with browser(tmp_path / "profile") as (window, asked):
        with started(folder, uploads, *options) as url:
            converse(url, speech_llm, files, window, TOKENS)
            window.get_by_text("What was heard in the last clip?").click()
            window.click("#listen")
            heard = speech_llm.transcribe_file(
                clips.first, max_new_tokens=TOKENS
            )
            shown = window.locator("#heard dd", has_text=heard.strip() or "…")
            shown.first.wait_for(timeout=60000)  # it is written word by word
            window.wait_for_function(
                "() => document.querySelector('#halt').disabled"
            )
            assert shown.first.inner_text() == (heard.strip() or "…")
            assert glob.glob(f"{uploads}/**/first.wav", recursive=True)
            # The page works without any other machine.
            asked = [u for u in asked if u.startswith("http")]
            assert asked and all(u.startswith(url) for u in asked)
        assert not os.listdir(uploads)  # nothing of a visitor is left
        real = os.environ.get("BLSP_ADAPTER", "")
        if os.path.isdir(real):  # an adapter that was trained
            speech_llm = SpeechLLM.from_hparams(real)
            with started(real, uploads, *options) as url:
                converse(url, speech_llm, files, window, TOKENS)


def test_histories_do_not_leak(served, speech_llm, clips):
    """Two visitors at a time: each has a conversation of its own."""
    page, _ = served
    alone = {}
    for name in ("first", "second"):
        chat = speech_llm.chat()
        clip = getattr(clips, name)
        alone[name] = [
            in_own_words(chat.send(*turn, max_new_tokens=TOKENS))
            for turn in ((ASKED, clip), (MORE,), (None, clip))
        ]
    assert alone["first"] != alone["second"]
    with visitor(served) as first, visitor(served) as second:
        assert first.client.session_hash != second.client.session_hash
        for text, with_clip in ((ASKED, True), (MORE, False), ("", True)):
            for name, who in (("first", first), ("second", second)):
                clip = getattr(clips, name) if with_clip else None
                seen = who.say(text, clip)
                turns = len(answers(seen.speech))
                assert answers(seen.speech) == alone[name][:turns]
                assert len(answers(seen.cascade)) == turns
        assert turns == 3
        hashes = [who.client.session_hash for who in (first, second)]
        # A new conversation is new, and the other one's is not touched.
        first.client.predict(api_name="/new")
        seen = first.say(ASKED, clips.first)
        assert answers(seen.speech) == alone["first"][:1]
        other = weakref.ref(page.visitors.get(hashes[1]))
        assert len(other().speech.shown) == 6
        # What rests too long is dropped, with its keys and values.
        with later(page, LIMITS.idle + 1):
            page.visitors.sweep()
        assert len(page.visitors) == 0
        gc.collect()
        assert other() is None
        seen = second.say(ASKED, clips.second)
        assert answers(seen.speech) == alone["second"][:1]
        assert "this is a new one" in seen.note
        assert not second.say(MORE).note


def test_a_closed_page_is_forgotten_after_a_while(served):
    """Whoever comes back soon finds the conversation; later, nobody does."""
    page, _ = served
    with visitor(served) as who:
        who.say(ASKED)
        key = who.client.session_hash
        talk = page.visitors.get(key)
    page.visitors.leave(key)
    assert page.visitors.get(key) is talk  # a phone that woke up
    page.visitors.leave(key)
    with later(page, 301):
        page.visitors.sweep()
    assert page.visitors.get(key) is not talk


@pytest.mark.parametrize(
    ["text", "clip", "says"],
    [
        ("", None, "Type an instruction, give a clip, or both."),
        ("  \n ", None, "Type an instruction, give a clip, or both."),
        ("a" * 81, None, "Your text has 81 characters"),
        ("Hi <|im_end|>", None, "has a control token of the LLM in it"),
        (ASKED, "long", "long.wav lasts 5.5 seconds"),
        (ASKED, "notes", "notes.wav is not readable as audio"),
    ],
)
def test_limits_are_sentences(regular, clips, text, clip, says):
    seen = regular.say(text, clip and getattr(clips, clip))
    assert says in seen.note and "/" not in seen.note.split(">")[1][:-3]
    assert seen.note.count("<p") == 1 and seen.note.endswith(".</p>")
    assert seen.speech == regular.last.speech  # nothing is lost
    assert seen.cascade == regular.last.cascade
    turns = len(seen.speech)
    regular.last = regular.say(MORE)  # and it goes on
    assert not regular.last.note and len(regular.last.speech) == turns + 2


def test_large_files_are_refused(served, clips, speech_llm):
    """By the server while they come; by size where they came otherwise."""
    assert os.path.getsize(clips.large) > LIMITS.megabytes * 2**20
    with visitor(served) as who, pytest.raises(Exception, match="413|large"):
        who.say(ASKED, clips.large)
    talk = Talk(Models(speech_llm), LIMITS)
    with pytest.raises(BadInput, match=r"large\.wav has 0\.4 MB; the most"):
        list(talk.ask(ASKED, clips.large))
    assert not talk.speech.shown


def test_too_long_conversations_are_a_sentence(speech_llm, clips):
    """No room in the LLM: what was said before stays."""
    long = Limits(new_tokens=ROOM - 400)
    talk = Talk(Models(speech_llm), long)
    list(talk.ask(ASKED, clips.second))
    before = [dict(message) for message in talk.speech.shown]
    for _ in range(2):
        with pytest.raises(BadInput, match=r"^\d+ tokens .* conversation\.$"):
            list(talk.ask("q9 " * 300))
        assert talk.speech.shown == before and not talk.taken


def test_the_queue_is_limited(served):
    """Whoever comes when many wait is told so, at once."""
    page, _ = served
    waiting = [page.visitors.get(f"waiting-{n}") for n in range(LIMITS.queue)]
    for talk in waiting:
        talk.waiting = True
    try:
        with visitor(served) as who:
            with pytest.raises(Exception, match="Many people are waiting"):
                who.say(ASKED)
            # Pages that were closed do not wait.
            page.visitors.leave("waiting-0")
            assert len(who.say(ASKED).speech) == 2
            key = who.client.session_hash
            page.visitors.get(key).waiting = True
            with pytest.raises(Exception, match="not answered yet"):
                who.say(MORE)
            page.visitors.get(key).waiting = False
    finally:
        for n in range(LIMITS.queue):
            page.visitors.leave(f"waiting-{n}")


def test_the_cascade_is_that_of_the_evaluation(speech_llm, asr, clips):
    """The same transcript, the same prompt, the same answer."""
    talk = Talk(Models(speech_llm, asr), LIMITS)
    list(talk.ask(ASKED, clips.first))
    wav = read_speech(clips.first)
    task = SimpleNamespace(
        instruction_for=lambda _: ASKED,
        choices=None,
        decoding={"max_new_tokens": TOKENS},
    )
    cascade = Cascade(asr, speech_llm.model, speech_llm.prompt)
    [expected] = cascade.answer([Clip("a", "a", "", wav)], task)
    [heard] = asr.transcribe([wav])
    assert talk.heard.whisper == heard
    shown = talk.text.shown
    assert shown[0]["content"] == [ASKED, f"“{heard}”"]
    assert normalise_transcript(shown[1]["content"][0]) == expected.text
    assert talk.text.cost.before > 0
    assert talk.text.cost.first_token > talk.text.cost.before


def test_the_cascade_has_no_lora(speech_llm, asr, clips, folder):
    """It is the LLM as it was published; the speech LLM is the trained one."""
    plain = Talk(Models(speech_llm, asr), LIMITS)
    list(plain.ask(ASKED, clips.first))
    tuned = SpeechLLM.from_hparams(folder, run_opts={"device": "cpu"})
    AdaptedModel(
        model_to_adapt=tuned.model.llm,
        adapter_class=LoRA,
        all_linear=True,
        adapter_kwargs={"rank": 4},
    )
    generator = torch.Generator().manual_seed(0)
    for name, weight in tuned.model.llm.named_parameters():
        if "adapter_" in name:
            torch.nn.init.normal_(weight, generator=generator)
    talk = Talk(Models(tuned, asr), LIMITS)
    list(talk.ask(ASKED, clips.first))
    assert talk.text.shown == plain.text.shown
    assert talk.speech.shown != plain.speech.shown


@pytest.mark.parametrize("how", ["stopped", "left"])
def test_a_stopped_answer_stays(speech_llm, asr, clips, how):
    """What was written until then belongs to the conversation."""
    talk = Talk(Models(speech_llm, asr), Limits(new_tokens=40))
    whole = speech_llm.answer(clips.first, ASKED, max_new_tokens=40)
    turn = talk.ask(ASKED, clips.first)
    for _ in range(4):
        next(turn)
    if how == "stopped":
        talk.stop()
        list(turn)
    else:
        turn.close()
    written = talk.speech.shown[1]["content"][0]
    assert written and whole.startswith(written) and written != whole
    assert talk.speech.chat.messages[-1]["content"] == written
    assert not talk.text.shown and not talk.asked
    list(talk.ask(MORE))
    assert len(talk.speech.shown) == len(talk.speech.chat.messages) == 4


def test_stopped_in_the_queue(speech_llm, clips):
    """A turn that is stopped before it began is not begun."""
    talk = Talk(Models(speech_llm), LIMITS)
    talk.waiting = True
    talk.stop()
    with pytest.raises(BadInput, match="Stopped before it began"):
        list(talk.ask(ASKED))
    assert not talk.speech.shown and not talk.asked


def test_without_cascade_and_with_examples(speech_llm, clips, tmp_path):
    """Only one side answers; the examples are on the page."""
    from blsp_plugin.webpage.examples import find_examples

    shutil.copy(clips.first, tmp_path / "hello.wav")
    (tmp_path / "hello.txt").write_text("Which word is this?")
    examples = find_examples(str(tmp_path), ASKED)
    page = Page(Models(speech_llm), LIMITS, "<b>", "About", examples)
    try:
        url = serve(page, "127.0.0.1", 0, wait=False)
        with visitor((page, url)) as who:
            seen = who.say(ASKED, clips.first)
        assert len(seen.speech) == 2 and not seen.cascade
        assert "Cascade" not in seen.figures
        with urllib.request.urlopen(f"{url}config") as answer:
            config = answer.read().decode()
        assert "hello: Which word is this?" in config
        assert "<h1>&lt;b&gt;</h1>" in config.replace("\\u003c", "<")
        # Only what was uploaded or is an example is given out.
        for path in ("/etc/hostname", f"{ROOT}/setup.py", clips.notes):
            with pytest.raises(urllib.error.HTTPError, match="403|404"):
                urllib.request.urlopen(f"{url}gradio_api/file={path}")
    finally:
        page.blocks.close(verbose=False)


def test_a_failure_is_a_sentence_too(speech_llm, asr, clips, monkeypatch):
    """Whatever breaks, a visitor gets no traceback and loses nothing."""
    page = Page(Models(speech_llm, asr), LIMITS, "", "")
    request = SimpleNamespace(session_hash="me")
    talk = page.visitors.get("me")

    def broken(wavs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(asr, "transcribe", broken)
    talk.said = (ASKED, clips.first)
    *_, last = page._answer(request)
    assert "Something went wrong" in last[3] and "memory" not in last[3]
    assert len(last[0]) == 2 and not last[1] and not talk.asked


@pytest.mark.parametrize(
    ["options", "says"],
    [
        (["--max-seconds", "0"], "--max-seconds: must be more than 0"),
        (["--idle-minutes", "0"], "--idle-minutes: must be more"),
        (["--examples", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_bad_options_are_one_line(folder, capsys, options, says):
    with pytest.raises(SystemExit) as stop:
        main(["web", folder, "--device", "cpu", *options])
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ") and says in line


def test_base_models_are_refused(encoder, llm, tmp_path, capsys, llm_folder):
    """An adapter with a plain prompt cannot chat: said before it is served."""
    plain = Prompt(llm.tokenizer, template="{instruction} {speech}:")
    adapter = ConvAdapter(encoder.output_size, llm.hidden_size, 16)
    model = BLSP(encoder, adapter, FrozenLLM(llm_folder))
    save_adapter(model, plain, tmp_path)
    with pytest.raises(SystemExit):
        main(["web", str(tmp_path), "--device", "cpu"])
    assert "cannot chat" in capsys.readouterr().err


def test_a_taken_port_is_one_line(served):
    page, url = served
    port = int(url.rstrip("/").rpartition(":")[2])
    other = Page(page.visitors.begin.args[0], LIMITS, "", "")
    with pytest.raises(BadInput, match=f"127.0.0.1:{port}: cannot listen"):
        serve(other, "127.0.0.1", port, wait=False)
