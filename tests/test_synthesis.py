"""Sentences for words that recordings lack, and a machine that speaks them."""

import itertools
import os
import pickle
import random
import shutil
from collections import Counter

import pytest
import soundfile
import torch

from blsp_plugin import starter
from blsp_plugin.data.audio import read_speech
from blsp_plugin.data.corpora import prepare_corpus
from blsp_plugin.data.manifest import read_manifest
from blsp_plugin.data.synthesis import (
    FliteVoice,
    PiperVoice,
    Voices,
    choose_sentences,
    read_words,
    speak,
    word_lists,
)
from blsp_plugin.data.tsv import read_tsv
from blsp_plugin.errors import BadInput
from blsp_plugin.llm import load_tokenizer
from tests.kit import tiny_kit
from tests.training import ROOT

TEXTS = ["A door, and a garden.", "It rains", "Nobody is there."]


class Words:
    """A tokenizer of words."""

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [text.lower().split() for text in texts]}


class Humming:
    """A voice of tones, quick to make; counts what it says."""

    name = "humming"

    def __init__(self, patience=None):
        self.said = []
        self.patience = patience

    def __call__(self, text, chance):
        if len(self.said) == self.patience:
            raise KeyboardInterrupt
        self.said.append(text)
        seconds = torch.arange(int(8000 * chance.uniform(0.4, 0.5))) / 8000
        return 0.3 * torch.sin(len(text) * 100 * seconds), 8000


def naive_choice(texts, number, counts):
    """All sentences valued anew each time."""
    counts, texts, chosen = dict(counts), list(texts), []
    for _ in range(number):

        def worth(text):
            ids = text.split()
            gains = (counts.get(i, 0) + 1 for i in set(ids))
            return sum(n**-0.7 for n in gains) / (len(ids) + 6)

        best = max(texts, key=worth)
        texts.remove(best)
        chosen.append(best)
        for i in best.split():
            counts[i] = counts.get(i, 0) + 1
    return chosen


def test_choice_is_the_greedy_one():
    chance = random.Random(0)
    texts = [
        " ".join(chance.choices("abcdefghijklmnop", k=chance.randint(2, 7)))
        for _ in range(60)
    ]
    texts = list(dict.fromkeys(texts))
    counts = {"a": 9, "b": 1}
    chosen = choose_sentences(texts, Words(), 25, counts)
    assert chosen == naive_choice(texts, 25, counts)


def test_choice_leaves_out_tests_and_twins():
    texts = ["One two.", "one  TWO", "Three", "...", "four five"]
    chosen = choose_sentences(texts, Words(), 9, without=["Four, five!"])
    assert sorted(chosen) == ["One two.", "Three"]
    assert choose_sentences([], Words(), 3) == []


def test_speech_is_a_corpus(tmp_path):
    folder = tmp_path / "speech" / "synthetic"
    list(speak(TEXTS, Humming(), folder, seed=1, speeds=[0.8, 1.2], noisy=0.5))
    rows = [row for _, row, _ in read_tsv(folder / "manifest.tsv", ("id",))]
    assert [row["text"] for row in rows] == TEXTS
    for row in rows:
        wav = read_speech(str(folder / row["wav"]))
        assert abs(len(wav) / 16000 - float(row["duration_s"])) < 1e-3
        assert 0.3 < len(wav) / 16000 < 0.7 and wav.abs().max() > 0.1
    options = {"valid_splits": [], "test_splits": []}
    files = prepare_corpus(tmp_path / "speech", tmp_path / "csv", **options)
    manifest = read_manifest(files.train_csv, data_root=files.data_root)
    assert {row["text"] for row in manifest.rows} == set(TEXTS)


def test_speaking_goes_on_where_it_was_stopped(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    list(speak(TEXTS, Humming(), whole, noisy=1.0))
    with pytest.raises(KeyboardInterrupt):
        list(speak(TEXTS, Humming(patience=2), parts, noisy=1.0))
    assert not os.path.exists(parts / "manifest.tsv")
    again = Humming()
    list(speak(TEXTS, again, parts, noisy=1.0))
    assert again.said == TEXTS[2:]
    for row, other in zip(
        read_tsv(whole / "manifest.tsv", ("id",)),
        read_tsv(parts / "manifest.tsv", ("id",)),
        strict=True,
    ):
        assert row == other
        samples, _ = soundfile.read(whole / row[1]["wav"])
        assert (soundfile.read(parts / row[1]["wav"])[0] == samples).all()


def test_many_speakers_say_the_same(tmp_path):
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        assert list(speak(TEXTS, Humming(), folder, workers=workers)) == TEXTS
    one, two = (
        list(read_tsv(tmp_path / n / "manifest.tsv", ("id",))) for n in "12"
    )
    assert one == two
    for _, row, _ in one:
        samples = [soundfile.read(tmp_path / n / row["wav"])[0] for n in "12"]
        assert (samples[0] == samples[1]).all()


def test_sentences_are_said_in_many_ways(tmp_path):
    """Another seed, speed or noise is another clip of its own."""
    for seed, speeds, noisy in itertools.product(
        (0, 1), ([1.0], [0.9]), (0, 1)
    ):
        list(speak(TEXTS[:1], Humming(), tmp_path, seed, speeds, noisy))
    clips = [
        os.path.join(path, name)
        for path, _, names in os.walk(tmp_path / "wav")
        for name in names
    ]
    assert len(clips) == 8
    assert len({soundfile.read(clip)[0].tobytes() for clip in clips}) == 8


def test_piper_speaks():
    """The real voice: the longer text takes longer."""
    voice = PiperVoice()
    short, rate = voice("Yes.", random.Random(0))
    long, _ = voice(
        "Yes, there is a garden behind the house.", random.Random(0)
    )
    assert 0.2 * rate < len(short) < len(long) / 2
    assert 0.05 < long.abs().max() <= 1
    with pytest.raises(BadInput, match="no such voice"):
        PiperVoice("nowhere.onnx")


class Vocabulary:
    """A tokenizer that knows which text its tokens are."""

    texts = (" and", " And", "ing", " Rome", " a", " no", " LAN", " über", "x")

    def get_vocab(self):
        return {text: n for n, text in enumerate(self.texts)}

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)


def test_lists_say_the_whole_vocabulary():
    """Words of it as often as asked for, each once before any again."""
    lists = word_lists(Vocabulary(), ["reading", "reading"], 3, 2, seed=1)
    said = [word for line in lists for word in line.split()]
    assert sorted(said) == sorted(3 * ["and", "Rome"] + ["reading"])
    assert {*said[:2]} == {*said[2:4]} == {"and", "Rome"}
    assert all(len(line.split()) == 2 for line in lists[:-1])
    again = word_lists(Vocabulary(), ["reading"], 3, 2, seed=1)
    assert lists == again
    other = [word_lists(Vocabulary(), [], 3, 2, seed=n) for n in range(9)]
    assert any(lists[:3] != some for some in other)


def test_starter_vocabulary_is_said():
    """Of SmolLM2: the tokens that are a word, and many of those within."""
    try:
        tokenizer = load_tokenizer(starter.smollm2())
    except BadInput as error:
        pytest.skip(f"no starter kit here: {error}")
    words = read_words(os.path.join(ROOT, "recipes/synthesis/words.txt"))
    lists = word_lists(tokenizer, words, repetitions=1)
    said = Counter(sum(tokenizer([f" {s}" for s in lists])["input_ids"], []))
    for text in (" frightened", " Honolulu", " the", " yards"):
        [token] = tokenizer(text)["input_ids"]
        assert said[token] >= 1
    assert len(said) > 29000  # of 49,152: the rest are marks, code, names


def test_voices_take_turns():
    class Named(Humming):
        def __init__(self, name):
            super().__init__()
            self.name = name

    voices = Voices([Named("one"), Named("two")])
    for n in range(20):
        voices(f"sentence {n}", random.Random(n))
    assert voices.name == "one+two"
    said = [voice.said for voice in voices.voices]
    assert len(said[0]) + len(said[1]) == 20 and min(map(len, said)) > 3


def test_flite_is_asked_for_in_one_line(tmp_path):
    missing = tmp_path / "flite"
    with pytest.raises(BadInput, match="install flite") as caught:
        FliteVoice("slt", program=str(missing))("Hello", random.Random(0))
    assert "\n" not in str(caught.value)


def test_flite_comes_with_the_kit(tmp_path, monkeypatch):
    """Where the machine has none; and it says which voices there are."""
    tiny_kit(tmp_path / "kit")
    monkeypatch.setenv("BLSP_STARTER", str(tmp_path / "kit"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    wav, rate = FliteVoice("awb")("one two three", random.Random(0))
    assert (len(wav), rate) == (3 * 2500, 16000)
    with pytest.raises(BadInput, match="no voice 'kal'.*slt rms awb"):
        FliteVoice("kal")("Hello", random.Random(0))


@pytest.mark.skipif(shutil.which("flite") is None, reason="needs flite")
def test_flite_speaks(tmp_path):
    """As other voices: 16 kHz, another way for another chance."""
    voice = FliteVoice("rms", pitch=100.0)
    one, rate = voice("It rains in the garden.", random.Random(0))
    same, _ = voice("It rains in the garden.", random.Random(0))
    other, _ = voice("It rains in the garden.", random.Random(1))
    assert rate == 16000 and 0.5 < len(one) / rate < 5 and one.abs().max() > 0.1
    assert torch.equal(one, same) and len(other) != len(one)
    # Pickled for another process; text that looks like an option is text.
    again = pickle.loads(pickle.dumps(voice))
    assert len(again("-v is an option", random.Random(0))[0]) > 8000
    with pytest.raises(BadInput, match="no voice 'nobody'.*slt"):
        FliteVoice("nobody")("Hello", random.Random(0))
