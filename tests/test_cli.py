"""The blsp command, run as a user would, on tiny models."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import soundfile
import torch

from blsp_plugin.adapters import ConvAdapter
from blsp_plugin.cli import main
from blsp_plugin.encoder import WhisperEncoder
from blsp_plugin.inference import SpeechLLM
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.model import BLSP
from blsp_plugin.package import save_adapter
from blsp_plugin.prompts import Prompt
from tests.conftest import make_wavs
from tests.training import ROOT

QUESTION = "What is said?"
COMMANDS = (
    "answer",
    "chat",
    "transcribe",
    "export",
    "serve",
    "web",
    "doctor",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory, whisper_folder, llm_folder):
    """A folder with a trained adapter where it is looked for, and clips."""
    folder = tmp_path_factory.mktemp("place")
    encoder, llm = WhisperEncoder(whisper_folder), FrozenLLM(llm_folder)
    torch.manual_seed(3)
    adapter = ConvAdapter(encoder.output_size, llm.hidden_size, 16)
    save_adapter(
        BLSP(encoder, adapter, llm),
        Prompt(llm.tokenizer),
        folder / "results/blsp/adapter",
        whisper=os.path.abspath(whisper_folder),
        llm=os.path.abspath(llm_folder),
    )
    for number, wav in enumerate(make_wavs([0.5, 1.2, 0.3, 0.9], seed=1)):
        soundfile.write(folder / f"clip {number}.flac", wav.numpy(), 16000)
    (folder / "bad.wav").write_text("no audio")
    (folder / "empty.wav").write_text("")
    return folder


@pytest.fixture(scope="module")
def speech_llm(place):
    source = str(place / "results/blsp/adapter")
    return SpeechLLM.from_hparams(source, run_opts={"device": "cpu"})


def command(*arguments):
    return [sys.executable, "-m", "blsp_plugin", *map(str, arguments)]


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if k != "BLSP_ADAPTER"}
    return {
        **kept,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": ROOT,
        **more,
    }


def run(place, *arguments, stdin="", **more):
    """Run the command in a process of its own."""
    return subprocess.run(
        command(*arguments),
        cwd=place,
        env=environment(**more),
        input=stdin,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.delenv("BLSP_ADAPTER", raising=False)
    return place


def clips(*numbers):
    return [f"clip {number}.flac" for number in numbers]


def test_help_imports_nothing_heavy(tmp_path):
    """Of any command, of a mistake, and where there is no adapter."""
    code = (
        "import sys\n"
        "from blsp_plugin import commands\n"
        "from blsp_plugin.cli import main\n"
        "commands._PLACES = ()\n"  # a checkout ships one
        "for words in {words!r}:\n"
        "    try:\n"
        "        main(words)\n"
        "    except SystemExit as stop:\n"
        "        print('status', stop.code)\n"
        "heavy = {{'torch', 'numpy', 'transformers', 'speechbrain'}}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    words = [["--help"], *([name, "--help"] for name in COMMANDS)]
    words += [["answer"], ["nonsense"], ["chat"]]
    done = subprocess.run(
        [sys.executable, "-c", code.format(words=words)],
        cwd=tmp_path,
        env=environment(BLSP_STARTER=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr
    assert done.stdout.count("status 0") == 1 + len(COMMANDS)
    assert "status 2" in done.stdout
    for words in ("blsp answer clip.wav", "/audio FILE", "--push", "*.flac"):
        assert words in done.stdout


def test_answer_of_a_clip_and_of_several(place, speech_llm):
    """`blsp answer clip.wav "question"`, the adapter found by itself."""
    expected = speech_llm.answer_batch(
        [str(place / name) for name in clips(0, 1)], QUESTION, max_new_tokens=9
    )
    done = run(place, "answer", *clips(0), QUESTION, "--max_new_tokens", 9)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected[0] + "\n"


def test_answers_as_json(here, speech_llm, capsys):
    expected = speech_llm.answer_batch(clips(0, 1), QUESTION, max_new_tokens=9)
    words = ["answer", *clips(0, 1), "bad.wav", QUESTION]
    words += ["--max-new-tokens", "9", "--device", "cpu"]
    assert main([*words, "--json"]) == 1
    shown = capsys.readouterr()
    answers = [json.loads(line) for line in shown.out.splitlines()]
    assert [answer["answer"] for answer in answers] == expected
    assert [answer["path"] for answer in answers] == clips(0, 1)
    assert shown.err.count("\n") == 1 and "bad.wav" in shown.err
    assert main([*words, "--adapter", "results/blsp/adapter"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == clips(0, 1)


@pytest.mark.parametrize(
    ["words", "says"],
    [
        (["answer", "nothing.wav", "Hm?"], "nothing.wav: no such file"),
        (["answer", "bad.wav", "clip 0.flac"], "give the question behind"),
        (["answer", "bad.wav", "Hm?"], "bad.wav"),
        (["answer", "clip 0.flac", "<|im_end|>"], "control token"),
        (["answer", "clip 0.flac", "Hm?", "--device", "moon"], "--device moon"),
        (["answer", "clip 0.flac", "Hm?", "--adapter", "x/y"], "x/y"),
        (["answer", "clip 0.flac", "Hm?", "--llm", "no/llm"], "no/llm"),
        (["answer", "clip 0.flac", "Hm?", "--top-p", "3"], "top_p 3"),
        (["chat", "nothing.wav"], "nothing.wav: no such file"),
        (["export", "nothing", "x"], "no such file"),
        (["export", "results/blsp/adapter", "x"], "--whisper <hub id>"),
        (["transcribe", "clip 0.flac", "--output", "bad.wav"], "bad.wav"),
        (["transcribe", "clip 0.flac", "--output", "results"], "results"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_one_line(here, capsys, words, says):
    with pytest.raises(SystemExit) as stop:
        main(words)
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert not shown.out
    assert shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert says in shown.err


@pytest.mark.parametrize("option", ["--max-new-tokens", "--max-decode-ratio"])
def test_limits_are_above_zero(capsys, option):
    """Refused for all clips at once, not for each."""
    with pytest.raises(SystemExit) as stop:
        main(["transcribe", "clip 0.flac", option, "0"])
    assert stop.value.code == 2
    assert f"argument {option}" in capsys.readouterr().err


def test_where_the_adapter_is_looked_for(
    place, tmp_path, monkeypatch, speech_llm
):
    from blsp_plugin import commands

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BLSP_ADAPTER", raising=False)
    places = commands._PLACES
    monkeypatch.setattr(commands, "_PLACES", places[:2] + places[3:])
    with pytest.raises(commands.BadInput, match="BLSP_ADAPTER"):
        commands.find_adapter()
    for folder in reversed([commands._PLACES[n] for n in range(3)]):
        os.makedirs(folder)
        (tmp_path / folder / "adapter.json").write_text("{}")
        assert commands.find_adapter() == folder
    monkeypatch.setenv("BLSP_ADAPTER", "me/adapter")
    assert commands.find_adapter() == "me/adapter"


def test_transcribe_names_bad_files_and_goes_on(place, speech_llm):
    done = run(
        place,
        "transcribe",
        *clips(0, 1),
        "bad.wav",
        "missing.wav",
        "empty.wav",
        *clips(2, 3, 0),
        "--json",
        "--max-new-tokens",
        9,
        "--max-decode-ratio",
        1.5,
        "--batch-size",
        3,
    )
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    paths = clips(0, 1, 2, 3)
    assert [line["path"] for line in lines] == paths
    expected = speech_llm.answer_batch(
        [str(place / path) for path in paths],
        speech_llm.transcribe_instruction,
        max_new_tokens=9,
        max_decode_ratio=1.5,
    )
    assert [line["text"] for line in lines] == expected
    assert [line["seconds"] for line in lines] == [0.5, 1.2, 0.3, 0.9]
    errors = done.stderr.splitlines()
    assert len(errors) == 3
    for error, name in zip(
        errors, ("bad.wav", "missing.wav", "empty.wav"), strict=True
    ):
        assert error.startswith("error: ") and name in error


def test_transcribe_survives_kill(place, tmp_path, monkeypatch):
    """Killed with -9 after some lines, and again within a line."""
    for number in range(20):
        os.link(place / f"clip {number % 4}.flac", tmp_path / f"{number}.flac")
    names = [f"{number}.flac" for number in range(20)]
    adapter = str(place / "results/blsp/adapter")
    words = ["transcribe", *names, "--adapter", adapter, "--batch-size", "1"]
    words += ["--output", "out/texts.tsv", "--max-new-tokens", "40"]
    output = tmp_path / "out/texts.tsv"
    process = subprocess.Popen(command(*words), cwd=tmp_path, env=environment())
    while not output.exists() or output.read_bytes().count(b"\n") < 2:
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = output.read_bytes()
    done_before = kept.count(b"\n")
    assert 2 <= done_before < 20
    whole = kept[: kept.rfind(b"\n") + 1]
    output.write_bytes(whole + b"19.fl")  # cut within a line
    done = run(tmp_path, *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    content = output.read_bytes()
    assert content.startswith(whole)
    lines = content.decode().splitlines()
    assert [line.split("\t")[0] for line in lines] == names
    assert len({line.split("\t")[1] for line in lines}) <= 4
    # Once more: nothing is left to do, and nothing is opened for it.
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--adapter", "nowhere"]) == 0
    assert output.read_bytes() == content


def test_odd_names_stay_one_line(here, tmp_path, capsys):
    """Tabs and line ends in a name; bytes that are no text are refused."""
    odd = str(tmp_path / "a\tb\nc\\ é.flac")
    bytes_only = str(tmp_path / os.fsdecode(b"\xff.flac"))
    for name in (odd, bytes_only):
        shutil.copy("clip 0.flac", name)
    words = ["transcribe", odd, bytes_only, "--max-new-tokens", "3"]
    for options in ([], ["--json"]):
        output = tmp_path / f"{len(options)}.txt"
        assert main([*words, *options, "--output", str(output)]) == 1
        assert capsys.readouterr().err.count("error: ") == 1
        before = output.read_bytes()
        assert before.count(b"\n") == 1
        assert main([*words[:2], *options, "--output", str(output)]) == 0
        assert output.read_bytes() == before


def test_an_output_of_somebody_else_stays(here, tmp_path, capsys):
    """Also one whose only line has no end."""
    output = tmp_path / "notes.txt"
    words = ["transcribe", "clip 0.flac", "--output", str(output)]
    for text in ("my notes", "my notes\n", "a\tb\tc\n", "a\tb\nnotes"):
        for options in ([], ["--json"]):
            output.write_text(text)
            with pytest.raises(SystemExit):
                main([*words, *options])
            assert output.read_text() == text
            assert "not of this command" in capsys.readouterr().err


def test_piped_chat(place, speech_llm):
    """Texts, clips, mistakes and a new conversation, line by line."""
    typed = [
        "Hello there",
        "clip 0.flac",
        "",
        "/help",
        "/nonsense",
        "'clip 1.flac'",
        "/new",
        '/audio "clip 2.flac" What is said?',
        "/audio bad.wav",
        "Go on\\.",
        "/quit",
        "never said",
    ]
    done = run(
        place,
        "chat",
        "--max-new-tokens",
        7,
        "--json",
        stdin="\n".join(typed) + "\n",
    )
    assert done.returncode == 1  # two turns failed
    assert done.stderr.count("\n") == 2
    help_text, turns = done.stdout.split("\n{", 1)[0], []
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            turns.append(json.loads(line))
    assert "/audio" in done.stdout and help_text
    chat = speech_llm.chat()
    expected = [
        chat.send("Hello there", max_new_tokens=7),
        chat.send(audio=str(place / "clip 0.flac"), max_new_tokens=7),
        chat.send(audio=str(place / "clip 1.flac"), max_new_tokens=7),
    ]
    chat = speech_llm.chat()
    expected += [
        chat.send(QUESTION, str(place / "clip 2.flac"), max_new_tokens=7),
        chat.send("Go on\\.", max_new_tokens=7),
    ]
    assert [turn["reply"] for turn in turns] == expected
    assert turns[1]["audio"] == ["clip 0.flac"]
    assert turns[1]["kept_tokens"] > 0


def test_chat_streams_and_stops_at_ctrl_c(place, speech_llm):
    """The first reply is there before the second line is typed."""
    process = subprocess.Popen(
        command("chat", "clip 0.flac", "--max-new-tokens", "7"),
        cwd=place,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in the background with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    chat = speech_llm.chat()
    reply = chat.send(audio=str(place / "clip 0.flac"), max_new_tokens=7)
    assert process.stdout.readline() == reply.split("\n")[0] + "\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")


def test_a_reader_that_leaves_is_no_traceback(place):
    done = subprocess.run(
        " ".join(
            [sys.executable, "-m blsp_plugin --help", "| (exec <&-; sleep 1)"]
        )
        + "; test ${PIPESTATUS[0]} -ne 1",
        shell=True,
        executable="/bin/bash",
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr


def test_export_says_what_it_wrote(here, tmp_path, capsys):
    target = tmp_path / "x"
    words = ["export", "results/blsp/adapter", str(target)]
    words += ["--check", "--allow-local-paths"]
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["difference"] == 0 and "README.md" in said["files"]
    assert main(words) == 0
    assert "adapter.safetensors\t" in capsys.readouterr().out


def test_doctor(place):
    done = run(place, "doctor")
    assert done.stdout.splitlines()[-1].startswith("verdict")
    assert done.returncode in (0, 1)


@pytest.mark.parametrize(
    ["name", "module", "extra"],
    [
        ("serve", "blsp_plugin.serving.command", "serve"),
        ("web", "blsp_plugin.webpage.command", "demo"),
    ],
)
def test_commands_of_others(here, monkeypatch, capsys, name, module, extra):
    """They get the adapter; a package that lacks is named with its extra."""
    module, given = importlib.import_module(module), []
    monkeypatch.setattr(module, "run", lambda args: given.append(args.adapter))
    assert main([name]) == 0
    assert main([name, "me/adapter"]) == 0
    assert given == ["results/blsp/adapter", "me/adapter"]

    def lacking(args):
        raise ModuleNotFoundError("No module named 'x'", name="x")

    monkeypatch.setattr(module, "run", lacking)
    with pytest.raises(SystemExit):
        main([name])
    assert f"blsp_plugin[{extra}]" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([name, "--help"])
    assert "usage: blsp" in capsys.readouterr().out
