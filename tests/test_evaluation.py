"""Evaluation: the five systems, resuming, stale answers, bad clips."""

import json
import logging
import os
import signal

import pytest
import soundfile
import torch
from transformers import GenerationConfig

from blsp_plugin import starter
from blsp_plugin.adapters import ConvAdapter
from blsp_plugin.data.audio import read_speech
from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.errors import BadInput
from blsp_plugin.evaluation.metrics import ErrorRates
from blsp_plugin.evaluation.records import Records
from blsp_plugin.evaluation.report import report
from blsp_plugin.evaluation.runner import Evaluation
from blsp_plugin.evaluation.systems import (
    Cascade,
    Clip,
    GoldTextLLM,
    OtherAdapter,
    SpeechLLM,
    System,
    UntrainedAdapter,
    WhisperAlone,
)
from blsp_plugin.evaluation.tasks import Task
from blsp_plugin.evaluation.whisper_asr import (
    Answer,
    WhisperASR,
    split_at_pauses,
)
from blsp_plugin.hparams import load_hparams
from blsp_plugin.package import load_adapter, save_adapter
from tests.conftest import make_wavs
from tests.training import ROOT, run_recipe

NAMES = ["gold", "cascade", "speechllm", "untrained", "whisper"]


class Parrot(System):
    """Repeats the transcript; counts the clips, and can be killed."""

    hears = False

    def __init__(self, name="parrot", kill_after=None, version=1):
        super().__init__(name, "parrot")
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.kill_after = kill_after
        self.version = version
        self.seen = []

    def settings(self):
        return {"parrot": self.version}

    def answer(self, clips, task):
        if self.kill_after is not None and len(self.seen) >= self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += [clip.id for clip in clips]
        return [Answer(clip.text, 0.1) for clip in clips]


@pytest.fixture(scope="module")
def asr(whisper_folder):
    """The random Whisper as a recogniser."""
    return WhisperASR(whisper_folder, language="en", max_new_tokens=8)


@pytest.fixture
def task():
    """Speech recognition, short answers."""
    return Task(
        "asr",
        "Please repeat the following words.",
        ErrorRates(resamples=50),
        decoding={"max_new_tokens": 8},
    )


@pytest.fixture
def systems(model, prompt, asr):
    """All five rows of the table, on random models."""
    fresh = ConvAdapter(model.encoder.output_size, model.llm.hidden_size)
    return [
        GoldTextLLM(model, prompt),
        Cascade(asr, model, prompt),
        SpeechLLM(model, prompt),
        UntrainedAdapter(model, prompt, fresh),
        WhisperAlone(asr),
    ]


@pytest.fixture
def rows(corpus):
    """Twelve clips."""
    return read_manifest(corpus.train_csv, probe=True).rows


def evaluate(task, systems, folder, rows, **options):
    """Run quietly."""
    options = {"batch_size": 4, "progressbar": False, **options}
    return Evaluation(task, systems, str(folder), **options).run(rows)


def predictions(folder, name):
    """Lines of a predictions file, the settings left out."""
    path = os.path.join(folder, "predictions", f"asr.{name}.jsonl")
    with open(path, encoding="utf-8") as stream:
        return [json.loads(line) for line in stream][1:]


def test_five_systems(task, systems, rows, tmp_path):
    results = evaluate(task, systems, tmp_path, rows)
    with open(tmp_path / "metrics.json", encoding="utf-8") as stream:
        metrics = json.load(stream)
    for name in NAMES:
        for figure in ("wer", "wer_low", "wer_high", "cer", "rtf"):
            assert metrics[f"asr.{name}.{figure}"] >= 0
        said = predictions(tmp_path, name)
        assert [line["id"] for line in said] == [row["id"] for row in rows]
        assert [line["reference"] for line in said] == [
            row["text"] for row in rows
        ]
        assert all(line["seconds"] > 0 for line in said)
        assert all(line["score"] >= 0 for line in said)
    assert metrics["asr.clips"] == len(rows)
    assert metrics["asr.rejected"] == 0
    text = report(results, task, systems, n=5)
    assert text.count("reference") == 5
    for system in systems:
        assert text.count(system.label) == 6  # table and examples


def test_batch_size_changes_no_answer(task, systems, rows, tmp_path):
    for size in (1, 5):
        # Apart, so that the second run does not find Whisper's transcripts.
        systems[-1].asr._known = {}
        folder = tmp_path / str(size)
        evaluate(task, systems, folder, rows, batch_size=size)
    for name in NAMES:
        alone, together = (
            [line["hypothesis"] for line in predictions(tmp_path / size, name)]
            for size in ("1", "5")
        )
        assert alone == together
        # A random Whisper says the same of every clip.
        assert len(set(alone)) > 1 or name in ("whisper", "cascade")


def test_precision_is_a_setting(task, systems, rows, tmp_path, caplog):
    evaluate(task, systems, tmp_path, rows[:4])
    caplog.clear()
    evaluate(task, systems, tmp_path, rows[:4], precision="bf16")
    stale = [record.getMessage() for record in caplog.records]
    assert len(stale) == 6  # five systems and Whisper's transcripts
    assert all("made with another precision;" in line for line in stale)
    assert len(predictions(tmp_path, "speechllm")) == 4


def test_each_row_uses_same_prompt(task, systems, rows):
    task.paraphrases = ["Say it again.", "Repeat this:"]
    asked = {task.instruction_for(row["id"]) for row in rows}
    assert asked == {task.instruction, *task.paraphrases}
    gold, cascade, speech, untrained, _ = systems
    for system in (cascade, speech, untrained):
        assert system.prompt is gold.prompt
        assert system.model.llm is gold.model.llm


def test_empty_transcript_is_answered(task, systems):
    clip = Clip("a", "k", "", None)
    [answer] = systems[0].answer_texts([clip], [""], task)
    assert answer.seconds > 0


def test_untrained_adapter_leaves_the_trained_one(task, systems, model, rows):
    speech, untrained = systems[2:4]
    before = {n: t.clone() for n, t in model.adapter.state_dict().items()}
    clips = [
        Clip(row["id"], "k", row["text"], read_speech(row["wav"]))
        for row in rows
    ]
    said = [answer.text for answer in speech.answer(clips, task)]
    floor = [answer.text for answer in untrained.answer(clips, task)]
    again = [answer.text for answer in speech.answer(clips, task)]
    assert said == again != floor
    assert untrained.model.encoder is model.encoder
    assert untrained.model.llm is model.llm
    for name, tensor in model.adapter.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert untrained.settings()["adapter"] != speech.settings()["adapter"]
    with pytest.raises(ValueError, match="copy of its own"):
        UntrainedAdapter(model, speech.prompt, model.adapter)


def test_another_adapter_on_the_same_base(systems, task, rows, tmp_path):
    speech, untrained = systems[2:4]
    save_adapter(untrained.model, speech.prompt, tmp_path)
    settings = ("other", "the other one")
    other = OtherAdapter(speech.model, speech.prompt, str(tmp_path), *settings)
    clips = [
        Clip(row["id"], "k", row["text"], read_speech(row["wav"]))
        for row in rows
    ]
    said = [
        [answer.text for answer in system.eval().answer(clips, task)]
        for system in (other, untrained, speech)
    ]
    assert said[0] == said[1] != said[2]
    assert other.settings()["adapter"] == untrained.settings()["adapter"]
    assert (other.name, other.label) == settings
    facts = json.loads((tmp_path / "adapter.json").read_text())
    facts["lora"] = {"rank": 2, "alpha": 2}
    (tmp_path / "adapter.json").write_text(json.dumps(facts))
    with pytest.raises(BadInput, match="has LoRA"):
        OtherAdapter(speech.model, speech.prompt, str(tmp_path), *settings)


def test_evaluation_resume(task, rows, tmp_path):
    child = os.fork()
    if child == 0:  # killed in its third batch
        parrot = Parrot(kill_after=8)
        evaluate(task, [parrot], tmp_path, rows)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    path = tmp_path / "predictions" / "asr.parrot.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + 8
    with open(path, "a", encoding="utf-8") as stream:
        stream.write('{"id": "train-000", "hypothe')  # torn by a full disk
    parrot = Parrot()
    results = evaluate(task, [parrot], tmp_path, rows)
    done = {json.loads(line)["id"] for line in lines[1:]}
    assert len(parrot.seen) == 4
    assert not done & set(parrot.seen)
    said = predictions(tmp_path, "parrot")
    assert [line["id"] for line in said] == [row["id"] for row in rows]
    assert results.figures["parrot"]["wer"] == 0
    again = Parrot()
    assert evaluate(task, [again], tmp_path, rows).figures == results.figures
    assert again.seen == []


def test_stale_answers_are_made_again(task, rows, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    both = [Parrot("old"), Parrot("new")]
    evaluate(task, both, tmp_path, rows)
    both = [Parrot("old"), Parrot("new", version=2)]
    evaluate(task, both, tmp_path, rows)
    assert both[0].seen == []
    assert len(both[1].seen) == 12
    [message] = [record.getMessage() for record in caplog.records]
    assert "12 records were made with another parrot; " in message
    assert (tmp_path / "predictions" / "asr.new.jsonl.stale").exists()
    # Another instruction, decoding or precision concerns every system.
    task.decoding = {"max_new_tokens": 9}
    both = [Parrot("old"), Parrot("new", version=2)]
    evaluate(task, both, tmp_path, rows)
    assert len(both[0].seen) == len(both[1].seen) == 12
    # Another transcript concerns that clip only.
    rows = [dict(row) for row in rows]
    rows[3]["text"] = "something else"
    both = [Parrot("old"), Parrot("new", version=2)]
    evaluate(task, both, tmp_path, rows)
    assert both[0].seen == both[1].seen == [rows[3]["id"]]


def test_settings_follow_every_part(systems, model):
    gold, cascade, speech, untrained, whisper = systems
    before = [system.settings() for system in systems]
    with torch.no_grad():
        model.adapter.up.weight += 1.0
    after = [system.settings() for system in systems]
    assert [a == b for a, b in zip(before, after, strict=True)] == [
        True,
        True,
        False,
        True,
        True,
    ]
    assert {"llm", "prompt"} <= set(gold.settings())
    assert {"llm", "prompt", "whisper"} <= set(cascade.settings())
    assert {"llm", "prompt", "encoder", "adapter"} <= set(speech.settings())


def test_bad_clips_are_rejected(task, rows, tmp_path):
    rows = [dict(row) for row in rows]
    bad = {}
    for kind, row in zip(
        ("missing", "nan", "cut", "empty"), rows[1:5], strict=True
    ):
        path = str(tmp_path / f"{kind}.{'wav' if kind == 'nan' else 'flac'}")
        if kind == "nan":
            soundfile.write(path, [0.1, float("nan")] * 800, 16000, "FLOAT")
        elif kind == "cut":
            with open(row["wav"], "rb") as stream:
                content = stream.read()
            with open(path, "wb") as stream:
                stream.write(content[: len(content) // 2])
        elif kind == "empty":
            soundfile.write(path, [], 16000)
        row["wav"] = path
        bad[row["id"]] = path
    parrots = [Parrot("one"), Parrot("two")]
    results = evaluate(task, parrots, tmp_path, rows)
    assert {clip.id: clip.file for clip in results.rejected} == bad
    for clip in results.rejected:
        assert clip.reason.startswith(clip.file)
        assert "\n" not in clip.reason
    good = [row["id"] for row in rows if row["id"] not in bad]
    assert [clip["id"] for clip in results.clips] == good
    for parrot in parrots:
        assert sorted(parrot.seen) == sorted(good)
    with pytest.raises(BadInput, match="no clip is left"):
        evaluate(task, parrots, tmp_path / "none", rows[1:5])
    with pytest.raises(BadInput, match="no clip is left"):
        evaluate(task, parrots, tmp_path / "none", [])


def test_each_clip_is_transcribed_once(task, systems, rows, tmp_path):
    _, cascade, *_, whisper = systems
    asr = whisper.asr
    heard = []
    transcribe = asr.transcribe
    asr.transcribe = lambda wavs: heard.extend(wavs) or transcribe(wavs)
    evaluate(task, [whisper, cascade], tmp_path, rows)
    assert len(heard) == len(rows)
    asr._known = {}  # another process, later: the transcripts are on disk
    os.remove(tmp_path / "predictions" / "asr.cascade.jsonl")
    evaluate(task, [whisper, cascade], tmp_path, rows)
    assert len(heard) == len(rows)
    del asr.transcribe
    alone, full = (predictions(tmp_path, n) for n in ("whisper", "cascade"))
    for transcript, answer in zip(alone, full, strict=True):
        assert answer["seconds"] > transcript["seconds"]


def test_records_of_several_processes(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    records = Records(path, {"llm": "x"})
    records.append([{"id": "1"}])
    monkeypatch.setattr("blsp_plugin.evaluation.records.ranks", lambda: (1, 2))
    records.append([{"id": "2"}])
    monkeypatch.undo()
    assert len(path.read_text().splitlines()) == 2
    assert set(Records(path, {"llm": "x"}).known) == {"1", "2"}
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_split_at_pauses():
    [short] = make_wavs([29.0])
    assert [len(piece) for piece in split_at_pauses(short)] == [len(short)]
    wav = torch.randn(95 * 16000, generator=torch.Generator().manual_seed(0))
    wav[23 * 16000 : 24 * 16000] *= 0.01
    pieces = split_at_pauses(wav)
    assert torch.equal(torch.cat(pieces), wav)
    assert len(pieces) == 4
    assert 23 * 16000 < len(pieces[0]) < 24 * 16000
    assert all(len(piece) <= 30 * 16000 for piece in pieces)


def test_long_clips_are_transcribed_whole(asr):
    long, short = make_wavs([61.0, 1.0], loud=(0, 1))
    together = asr.transcribe([short, long])
    pieces = [asr.transcribe([piece])[0] for piece in split_at_pauses(long)]
    assert together == [*asr.transcribe([short]), " ".join(pieces)]


def test_whisper_languages(whisper_folder, tmp_path):
    assert WhisperASR(whisper_folder, "french").decoding["language"] == "fr"
    with pytest.raises(BadInput, match="has no language 'klingon'"):
        WhisperASR(whisper_folder, "klingon")
    with pytest.raises(BadInput, match="cannot open this Whisper"):
        WhisperASR(tmp_path, "en")
    # English-only models refuse the arguments that others need.
    for name in os.listdir(whisper_folder):
        os.symlink(os.path.join(whisper_folder, name), tmp_path / name)
    os.remove(tmp_path / "generation_config.json")
    config = GenerationConfig.from_pretrained(whisper_folder)
    config.is_multilingual = False
    del config.lang_to_id, config.task_to_id
    config.save_pretrained(tmp_path)
    english = WhisperASR(tmp_path, "english", max_new_tokens=4)
    assert english.decoding == {"num_beams": 1}
    assert len(english.transcribe(make_wavs([0.5, 1.0]))) == 2
    with pytest.raises(BadInput, match="knows English only"):
        WhisperASR(tmp_path, "fr")


def test_cascade_hears_real_speech(model, prompt, task, tmp_path):
    parts = [starter.PARTS[name] for name in ("whisper-tiny.en", "corpus-en")]
    if not all(map(starter.is_ready, parts)):
        pytest.skip(
            "the starter kit is not there; python -m blsp_plugin.starter"
        )
    folder = starter.corpus()
    rows = read_manifest(os.path.join(folder, "test.csv"), probe=True).rows
    rows = sorted(rows, key=lambda row: -row["duration"])[:4]
    asr = WhisperASR(starter.whisper_tiny_en(), language="en")
    both = [WhisperAlone(asr), Cascade(asr, model, prompt)]
    results = evaluate(task, both, tmp_path, rows)
    assert results.figures["whisper"]["wer"] < 20
    assert len(asr._known) == 4


@pytest.fixture(scope="module")
def trained(whisper_folder, llm_folder, tmp_path_factory):
    """Options naming the random models, and an adapter for them."""
    folder = str(tmp_path_factory.mktemp("trained") / "adapter")
    options = {"whisper": whisper_folder, "llm": llm_folder}
    hparams, _, _ = load_hparams(f"{ROOT}/hparams/asr.yaml", options)
    save_adapter(hparams["model"], hparams["prompt"], folder)
    return {**options, "adapter_folder": folder, "max_new_tokens": 8}


def test_recipe_on_two_processes(trained, corpus, tmp_path):
    options = {
        **trained,
        "data_folder": corpus.data_root,
        "output_folder": str(tmp_path / "two"),
    }
    done = run_recipe("asr/evaluate.py", "hparams/asr.yaml", ranks=2, **options)
    with open(tmp_path / "two" / "table.md", encoding="utf-8") as stream:
        table = stream.read()
    assert "\n| Whisper -> LLM (cascade) |" in table
    assert table in done.stdout + done.stderr
    assert (tmp_path / "two" / "rejected.jsonl").read_text() == ""
    hparams, _, _ = load_hparams(f"{ROOT}/hparams/asr.yaml", options)
    load_adapter(hparams["model"], hparams["prompt"], trained["adapter_folder"])
    rows = read_manifest(corpus.test_csv, probe=True).rows
    one = tmp_path / "one"
    evaluate(hparams["task"], hparams["systems"], one, rows)
    files = set(os.listdir(one / "predictions"))
    assert files == set(os.listdir(tmp_path / "two" / "predictions"))
    for name in NAMES:
        here, there = (
            [
                (line["id"], line["hypothesis"], line["score"])
                for line in predictions(folder, name)
            ]
            for folder in (one, tmp_path / "two")
        )
        assert len(here) == 4
        assert here == there


def test_recipe_needs_an_adapter(trained, corpus, tmp_path):
    options = {**trained, "adapter_folder": tmp_path / "none"}
    options["data_folder"] = corpus.data_root
    options["output_folder"] = tmp_path / "out"
    done = run_recipe(
        "asr/evaluate.py", "hparams/asr.yaml", check=False, **options
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    [line] = [x for x in done.stderr.splitlines() if x.startswith("error:")]
    assert "train an adapter first (recipes/blsp/train.py)" in line


def test_paper_preset(trained):
    path = f"{ROOT}/hparams/paper_asr.yaml"
    options = {key: trained[key] for key in ("whisper", "llm")}
    with pytest.raises(BadInput, match="give --data_folder"):
        load_hparams(path, options)
    hparams, _, _ = load_hparams(path, {**options, "data_folder": "x"})
    speech, untrained = hparams["systems"][2:4]
    assert speech.model.encoder.pad_to_30s
    for system in (speech, untrained):
        assert set(system.model.adapter.norm.weight.tolist()) == {1.0}
    assert untrained.model.adapter is not speech.model.adapter
