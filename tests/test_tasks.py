"""Tasks through every system: closed sets, references, kills, recipes."""

import json
import os
import random
import time

import pytest
import torch
from speechbrain.nnet.adapters import AdaptedModel, LoRA
from transformers import AutoModelForCausalLM

from blsp_plugin import starter
from blsp_plugin.adapters import ConvAdapter
from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.data.text import recase
from blsp_plugin.errors import BadInput
from blsp_plugin.evaluation.conversation import (
    AnswerAgreement,
    InstructionFollowing,
)
from blsp_plugin.evaluation.metrics import ErrorRates
from blsp_plugin.evaluation.runner import Evaluation
from blsp_plugin.evaluation.systems import (
    Cascade,
    Clip,
    GoldTextLLM,
    SpeechLLM,
    System,
    UntrainedAdapter,
)
from blsp_plugin.evaluation.tasks import Choices, Task
from blsp_plugin.evaluation.translation import TranslationScores
from blsp_plugin.evaluation.understanding import LabelAccuracy
from blsp_plugin.evaluation.whisper_asr import Answer, WhisperASR
from blsp_plugin.hparams import load_hparams
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.package import save_adapter
from blsp_plugin.prompts import Prompt
from tests.tiny import tiny_tasks
from tests.training import ROOT, run_recipe

LABELS = {"on": "switch it on", "off": "switch it off", "dim": "less light"}


@pytest.fixture
def rows(corpus):
    """Twelve clips with labels and translations."""
    rows = read_manifest(corpus.train_csv, probe=True).rows
    names = list(LABELS)
    return [
        {**row, "intent": names[n % 3], "translation": row["text"].lower()}
        for n, row in enumerate(rows)
    ]


@pytest.fixture
def systems(model, prompt, whisper_folder):
    """Four rows of a table, on random models."""
    asr = WhisperASR(whisper_folder, language="en", max_new_tokens=8)
    fresh = ConvAdapter(model.encoder.output_size, model.llm.hidden_size)
    return [
        GoldTextLLM(model, prompt),
        Cascade(asr, model, prompt),
        SpeechLLM(model, prompt),
        UntrainedAdapter(model, prompt, fresh),
    ]


def evaluate(task, systems, folder, rows, **options):
    """Run quietly; results, and metrics.json."""
    options = {"batch_size": 5, "progressbar": False, **options}
    results = Evaluation(task, systems, str(folder), **options).run(rows)
    with open(os.path.join(folder, "metrics.json"), encoding="utf-8") as file:
        return results, json.load(file)


@pytest.mark.parametrize("normalise", ["sum", "length"])
@pytest.mark.parametrize("calibrate", [None, "N/A"])
def test_chosen_labels_are_the_likeliest(
    systems, model, prompt, rows, tmp_path, normalise, calibrate
):
    """Against transformers' likelihood of each whole text."""
    task = Task(
        "slu",
        "What is the intent?",
        LabelAccuracy(LABELS, resamples=50),
        reference_key="intent",
        choices=Choices(LABELS, normalise, calibrate),
    )
    results, metrics = evaluate(task, systems, tmp_path, rows)
    plain = AutoModelForCausalLM.from_pretrained(model.llm.source).eval()
    tokenizer = model.llm.tokenizer

    @torch.no_grad()
    def likelihood(before, words):
        before = tokenizer(before, add_special_tokens=False)["input_ids"]
        words = tokenizer(words, add_special_tokens=False)["input_ids"]
        answer = [*words, model.llm.eos_id]
        logits = plain(torch.tensor([before + answer])).logits[0]
        after = logits[len(before) - 1 : -1].log_softmax(-1)
        total = after.gather(1, torch.tensor(answer)[:, None]).sum()
        return total / (len(answer) if normalise == "length" else 1)

    for clip, row in zip(results.clips, rows, strict=True):
        before, after = prompt.render("What is the intent?")
        text = recase(row["text"], "en")
        scores = {
            label: likelihood(before + text + after, words)
            - (
                0
                if calibrate is None
                else likelihood(before + calibrate + after, words)
            )
            for label, words in LABELS.items()
        }
        assert clip["answers"]["gold"] == max(scores, key=scores.get)
    for system in systems:
        assert metrics[f"slu.{system.name}.invalid_rate"] == 0
        assert f"slu.{system.name}.accuracy_low" in metrics
    # Labels that the references name, where none are given.
    task.choices = Choices()
    evaluate(task, systems[:1], tmp_path / "found", rows)
    assert task.choices.labels == sorted(LABELS)
    task.choices = Choices(["on", "off"])
    with pytest.raises(BadInput, match="'dim' is none of the 2 labels"):
        evaluate(task, systems[:1], tmp_path / "few", rows)
    with pytest.raises(BadInput, match="give sum or length"):
        Choices(normalise="mean")


def test_batch_size_changes_no_choice(systems, rows, tmp_path):
    said = []
    for size in (1, 7):
        task = Task(
            "slu",
            "What is the intent?",
            LabelAccuracy(LABELS, resamples=0),
            reference_key="intent",
            paraphrases=["Name the intent."],
            choices=Choices(LABELS),
        )
        results, _ = evaluate(
            task, systems[2:], tmp_path / str(size), rows, batch_size=size
        )
        said.append([clip["answers"] for clip in results.clips])
    assert said[0] == said[1]


@pytest.fixture(scope="module")
def starter_llm():
    """The starter's LLM, in float32 as everywhere where texts are compared."""
    try:
        return FrozenLLM(starter.smollm2())
    except BadInput as error:
        pytest.skip(f"no starter kit here: {error}")


def gold_answers(model, prompt, texts, folder, length):
    """What the runner's gold row says."""
    task = Task(
        "asr",
        "Please repeat the following words.",
        ErrorRates(resamples=0),
        decoding={"max_new_tokens": length},
    )
    rows = [
        {"id": str(n), "wav": wav, "text": text, "duration": 1.0}
        for n, (wav, text) in enumerate(texts)
    ]
    results, _ = evaluate(task, [GoldTextLLM(model, prompt)], folder, rows)
    return [clip["answers"]["gold"] for clip in results.clips]


def test_gold_row_equals_plain_llm(model, rows, starter_llm, tmp_path):
    """The transcript in the slot: `generate` on the chat, token for token."""
    wav = rows[0]["wav"]
    texts = [
        "Please enter your password, followed by the pound key.",
        "The cat sat on the mat.",
        "All our agents are busy. You are caller number",
        "Goodbye!",
        "Where is the nearest station, and when does it open?",
    ]
    # The random pair too: it writes longer and stranger texts.
    for number, llm in enumerate((starter_llm, model.llm)):
        model.llm = llm
        prompt = Prompt(llm.tokenizer)
        plain = AutoModelForCausalLM.from_pretrained(
            llm.source, dtype=torch.float32
        ).eval()
        said = gold_answers(
            model, prompt, [(wav, t) for t in texts], tmp_path / str(number), 24
        )
        for text, answer in zip(texts, said, strict=True):
            chat = [
                {
                    "role": "user",
                    "content": f"Please repeat the following words.\n{text}",
                }
            ]
            ids = llm.tokenizer.apply_chat_template(
                chat,
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
            out = plain.generate(
                **ids,
                max_new_tokens=24,
                do_sample=False,
                pad_token_id=llm.tokenizer.pad_token_id,
            )
            new = out[0, ids["input_ids"].shape[1] :]
            wanted = llm.tokenizer.decode(new, skip_special_tokens=True)
            assert answer == " ".join(wanted.split())


def test_conversation_is_measured_against_the_text_llm(systems, rows, tmp_path):
    task = Task(
        "chat",
        "Please answer.",
        AnswerAgreement(resamples=20),
        decoding={"max_new_tokens": 6},
        reference_system="gold",
    )
    results, metrics = evaluate(task, systems, tmp_path, rows)
    for clip in results.clips:
        assert clip["reference"] == clip["answers"]["gold"]
    assert metrics["chat.gold.same_rate"] == 100
    assert metrics["chat.gold.word_f1"] == 100
    assert metrics["chat.speechllm.word_f1"] < 100
    assert 0 < metrics["chat.speechllm.p_vs_cascade"] <= 1
    assert "chat.untrained.p_vs_cascade" not in metrics
    # Another task in the same folder leaves these figures alone.
    other = Task(
        "following",
        "Continue.",
        InstructionFollowing(resamples=0),
        decoding={"max_new_tokens": 6},
    )
    _, more = evaluate(other, systems, tmp_path, rows)
    assert {**more, **metrics} == more
    assert more["following.gold.followed_rate"] >= 0
    path = tmp_path / "evaluation.json"
    with open(path, encoding="utf-8") as stream:
        tasks = json.load(stream)["tasks"]
    assert list(tasks) == ["chat", "following"]
    assert tasks["chat"]["main"] == "word_f1"
    assert tasks["chat"]["systems"]["gold"] == "gold transcript -> LLM"
    assert tasks["chat"]["clips"] == 12


def test_timings_of_what_is_written(systems, rows, tmp_path):
    task = Task(
        "st",
        "Translate.",
        TranslationScores("fr", resamples=0),
        reference_key="translation",
        decoding={"max_new_tokens": 6},
    )
    for beams in (1, 2):  # both ways of decoding
        task.decoding["num_beams"] = beams
        results, metrics = evaluate(task, systems, tmp_path / str(beams), rows)
        for system in systems:
            first = metrics[f"st.{system.name}.first_token_seconds"]
            path = tmp_path / str(beams) / "predictions"
            with open(path / f"st.{system.name}.jsonl") as stream:
                lines = [json.loads(line) for line in stream][1:]
            for line in lines:
                assert 0 < line["tokens"] <= 6
                assert 0 < line["first_token"]
                assert line["wav"].endswith(".flac") and line["text"]
            whole = sum(line["seconds"] for line in lines)
            assert metrics[f"st.{system.name}.tokens_per_second"] == (
                pytest.approx(sum(x["tokens"] for x in lines) / whole)
            )
            mean = sum(x["first_token"] for x in lines) / len(lines)
            assert first == pytest.approx(mean)


def test_references_in_a_column_of_json():
    """One slot of several; a clip that has not got it is asked all the same."""
    task = Task("size", "Which size?", None, reference_key="slots.size")
    assert task.columns == ["slots"]
    said = ['{"size": "small", "roast": "dark"}', '{"roast": "dark"}', ""]
    rows = [{"id": str(n), "slots": value} for n, value in enumerate(said)]
    assert [task.reference(row) for row in rows] == ["small", "none", "none"]
    for wrong in ("small", "[1, 2]", "3"):
        with pytest.raises(BadInput, match="7: slots is no JSON object"):
            task.reference({"id": "7", "slots": wrong})


def test_no_transcripts(systems, rows, corpus, tmp_path):
    """A corpus of labels only; the systems that hear do without."""
    read = read_manifest(corpus.train_csv, text_key=None, probe=True).rows
    assert {row["text"] for row in read} == {""}
    labelled = [
        {**row, "intent": full["intent"]}
        for row, full in zip(read, rows, strict=True)
    ]
    task = Task(
        "slu",
        "What is the intent?",
        LabelAccuracy(LABELS, resamples=0),
        text_key=None,
        reference_key="intent",
        choices=Choices(LABELS),
    )
    _, metrics = evaluate(task, systems[1:], tmp_path, labelled)
    assert metrics["slu.cascade.invalid_rate"] == 0


def test_the_floor_has_no_trained_lora(model, prompt, rows):
    """LoRA of the trained model is off in the row of the untrained one."""
    fresh = ConvAdapter(model.encoder.output_size, model.llm.hidden_size)
    floor = UntrainedAdapter(model, prompt, fresh)
    task = Task("asr", "Repeat.", ErrorRates(), decoding={"max_new_tokens": 6})
    clips = [Clip("a", "", "", torch.randn(16000, generator=_seed()))]
    before, settings = floor.answer(clips, task), floor.settings()
    speech = SpeechLLM(model, prompt)
    plain = speech.settings()
    llm = FrozenLLM(model.llm.source)
    AdaptedModel(
        model_to_adapt=llm,
        adapter_class=LoRA,
        all_linear=True,
        adapter_kwargs={"rank": 4},
    )
    for name, weight in llm.named_parameters():
        if "adapter_" in name:
            torch.nn.init.normal_(weight, std=1.0, generator=_seed())
    model.llm = floor.model.llm = llm
    assert floor.answer(clips, task)[0].text == before[0].text
    assert floor.settings() == settings
    assert speech.settings()["lora"]
    assert "lora" not in plain
    with floor.model.llm.without_lora():
        alone = speech.answer(clips, task)[0].text
    assert speech.answer(clips, task)[0].text != alone


def _seed():
    return torch.Generator().manual_seed(0)


class Slow(System):
    """Takes its time, so that it can be killed anywhere."""

    hears = False

    def __init__(self, name):
        super().__init__(name, name)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def settings(self):
        return {"slow": 1}

    def answer(self, clips, task):
        time.sleep(0.02)
        text = f"{self.name} "
        return [Answer(text + clip.text[::-1], 0.1, 3, 0.1) for clip in clips]


def test_ten_kills_change_no_number(rows, tmp_path):
    """kill -9 at ten random moments; figures and predictions are the same."""
    task = Task("asr", "Repeat.", ErrorRates(resamples=50))
    systems = [Slow("one"), Slow("two")]

    def run(folder):
        return evaluate(task, systems, folder, rows, batch_size=1)[1]

    whole = run(tmp_path / "whole")
    moments, kills = random.Random(0), 0
    for _ in range(10):
        child = os.fork()
        if child == 0:
            run(tmp_path / "killed")
            os._exit(0)
        time.sleep(moments.uniform(0.02, 0.12))
        os.kill(child, 9)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
    assert kills >= 5  # the last ones may find that all is done
    assert run(tmp_path / "killed") == whole
    for system in systems:
        name = f"predictions/asr.{system.name}.jsonl"
        one, two = (tmp_path / x / name for x in ("whole", "killed"))
        assert one.read_text() == two.read_text()


@pytest.fixture(scope="module")
def labelled(corpus, whisper_folder, llm_folder, tmp_path_factory):
    """Random models, an adapter for them, and a corpus for every task."""
    folder = tmp_path_factory.mktemp("labelled")
    options = {"whisper": whisper_folder, "llm": llm_folder}
    hparams, _, _ = load_hparams(f"{ROOT}/hparams/asr.yaml", options)
    adapter = str(folder / "adapter")
    save_adapter(hparams["model"], hparams["prompt"], adapter)
    data = tiny_tasks(corpus, folder, list(LABELS))
    options.update(adapter_folder=adapter, data_folder=data)
    return {**options, "max_new_tokens": 6, "resamples": 20}


@pytest.mark.parametrize(
    "recipe, preset, figures",
    [
        ("st", "st", ["st.speechllm.bleu", "st.cascade.chrf"]),
        ("slu", "slu", ["slu.gold.accuracy", "slu_written.gold.macro_f1"]),
        ("slu", "slots", ["slots.untrained.slu_f1_low"]),
        (
            "chat",
            "chat",
            ["chat.cascade.word_f1", "following.speechllm.followed_rate"],
        ),
    ],
)
def test_recipes_of_every_task(labelled, tmp_path, recipe, preset, figures):
    run_recipe(
        f"{recipe}/evaluate.py",
        f"hparams/{preset}.yaml",
        output_folder=tmp_path,
        **labelled,
    )
    with open(tmp_path / "metrics.json", encoding="utf-8") as stream:
        metrics = json.load(stream)
    for figure in figures:
        assert 0 <= metrics[figure] <= 100
    with open(tmp_path / "table.md", encoding="utf-8") as stream:
        table = stream.read()
    assert table.count("| speech LLM") == table.count("\n| system")
