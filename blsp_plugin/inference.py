"""A trained adapter in use: SpeechBrain's inference interface.

Authors
 * The blsp_plugin team 2026
"""

import logging
import os
from functools import partial
from typing import NamedTuple

import torch
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.fetching import fetch

from blsp_plugin.chat import Chat, Clip, embed_tokens
from blsp_plugin.conversation import Speech
from blsp_plugin.data.audio import to_speech
from blsp_plugin.errors import BadInput
from blsp_plugin.llm import FrozenLLM
from blsp_plugin.model import BLSP
from blsp_plugin.package import (
    ADAPTER_FILES,
    LORA_FILE,
    load_adapter,
    open_package,
    opening_yaml,
    read_facts,
)
from blsp_plugin.pretrained import open_pretrained
from blsp_plugin.scoring import Choices, choice_scores
from blsp_plugin.speech import SpeechEmbeddings
from blsp_plugin.streaming import Choice, Sequence, text_pieces

__all__ = ["Classification", "SpeechLLM"]

logger = logging.getLogger(__name__)


class Classification(NamedTuple):
    """One label chosen from some.

    Arguments
    ---------
    label : str
        The likeliest.
    shares : dict of float
        label -> its share of what the LLM believes of all of them, in (0, 1).
    """

    label: str
    shares: dict


class SpeechLLM(Pretrained):
    """A text LLM that hears: any instruction on any clip.

    Made by ``SpeechLLM.from_hparams(folder)``, where the folder (or hub id) is
    the ``adapter_folder`` that training wrote or ``blsp export`` packed.

    A clip (``audio``) is, everywhere: a file of any rate, mono or stereo; a
    float tensor of shape (samples,) at 16 kHz; or ``(samples, rate)`` as
    torchaudio loads it. It may be as long as the LLM has room for.

    Example
    -------
    >>> from blsp_plugin.inference import SpeechLLM
    >>> llm = SpeechLLM.from_hparams("results/blsp/adapter")  # doctest: +SKIP
    >>> llm.answer("clip.wav", "Which city is named?")  # doctest: +SKIP
    'Paris.'
    """

    HPARAMS_NEEDED = ["prompt"]
    MODULES_NEEDED = ["encoder", "adapter", "llm"]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model = BLSP(
            self.mods["encoder"], self.mods["adapter"], self.mods["llm"]
        )
        self.prompt = self.hparams.prompt

    @classmethod
    def from_hparams(
        cls,
        source,
        hparams_file=None,
        savedir=None,
        whisper=None,
        llm=None,
        dtype=None,
        encoder_dtype=None,
        run_opts=None,
        llm_class=FrozenLLM,
        **kwargs,
    ):
        """Open a trained adapter with its base.

        The folder's ``adapter.json`` is read, and nothing of the folder is
        executed. Only a YAML that is named is: it builds whatever objects it
        wants, so name one only in a folder that you trust.

        Arguments
        ---------
        source : str
            Folder or hub id.
        hparams_file : str, optional
            ``hyperparams.yaml``, to open the folder by its YAML: for adapters
            of classes of your own, and for ``overrides``.
        savedir : str, optional
            Where files of a hub are kept.
        whisper : str, optional
            Folder or hub id of the encoder, where it is not found under the
            name in the folder. It must be the one that was trained with.
        llm : str, optional
            Folder or hub id of the LLM, likewise.
        dtype : str, optional
            Of the LLM's weights: "float32", "bfloat16" or "int8"; if not
            given, the one that it was trained with, but float32 on a CPU
            that would emulate bfloat16.
        encoder_dtype : str, optional
            Of the encoder's weights: "float32" or "bfloat16", likewise.
        run_opts : dict, optional
            SpeechBrain's, such as ``{"device": "cuda"}``.
        llm_class : type
            What opens the LLM: a kind of `FrozenLLM`; without a YAML.
        **kwargs : dict
            Passed on to SpeechBrain with a YAML: ``overrides``, ...

        Returns
        -------
        SpeechLLM

        Raises
        ------
        BadInput
            If a file is missing or damaged, the adapter belongs to another
            base, or the folder can be opened by its YAML only.
        """
        folder = _fetched(source, savedir)
        if hparams_file is None:
            if kwargs:
                raise BadInput(
                    f"{source}: {', '.join(kwargs)} are for its YAML; if you "
                    f"trust the folder, open it by {opening_yaml(folder)}"
                )
            model, prompt = open_package(
                folder, whisper, llm, dtype, encoder_dtype, llm_class
            )
            facts = read_facts(folder)
            hparams = {
                "prompt": prompt,
                "transcribe_instruction": facts.get("transcribe_instruction"),
            }
            modules = {
                "encoder": model.encoder,
                "adapter": model.adapter,
                "llm": model.llm,
            }
            return cls(modules, hparams, run_opts)
        if any((whisper, llm, dtype, encoder_dtype)):
            raise BadInput(
                f"{source}: whisper, llm and dtypes go without a YAML; with "
                "one, give `overrides`"
            )
        if os.path.isdir(source):
            path = os.path.join(source, hparams_file)
            if not os.path.isfile(path):
                raise BadInput(f"{source}: has no {hparams_file}")
            logger.info("%s: %s", source, opening_yaml(folder, hparams_file))
        speech_llm = super().from_hparams(
            source, hparams_file, savedir=savedir, run_opts=run_opts, **kwargs
        )
        load_adapter(speech_llm.model, speech_llm.prompt, folder)
        return speech_llm

    def answer(self, audio, instruction, max_new_tokens=128, **decoding):
        """Follow an instruction on one clip.

        Arguments
        ---------
        audio : object
            A clip, see above.
        instruction : str
            What to do with the speech, in words.
        max_new_tokens : int
            Longest answer, in tokens.
        **decoding : dict
            As in `BLSP.generate` (``max_decode_ratio``, ``num_beams``).

        Returns
        -------
        str

        Raises
        ------
        BadInput
            If the clip cannot be read or is too long, or the instruction has
            control tokens of the LLM in it.
        """
        decoding["max_new_tokens"] = max_new_tokens
        return self.answer_batch([audio], [instruction], **decoding)[0]

    @torch.no_grad()
    def answer_batch(
        self, clips, instructions, max_new_tokens=128, batch_size=16, **decoding
    ):
        """Follow an instruction on each clip; the same answers as one by one.

        Arguments
        ---------
        clips : list
            Clips, see above.
        instructions : list of str, or str
            One a clip, or one for all.
        max_new_tokens : int
            Longest answer, in tokens.
        batch_size : int
            Clips that are read and answered together.
        **decoding : dict
            As in `BLSP.generate` (``max_decode_ratio``, ``num_beams``).

        Returns
        -------
        list of str
        """
        if isinstance(instructions, str):
            instructions = [instructions] * len(clips)
        answers = []
        for start in range(0, len(clips), batch_size):
            part = slice(start, start + batch_size)
            rows, speech = self._rows(
                clips[part], instructions[part], max_new_tokens
            )
            with self.inference_ctx:
                answers += self.model.generate(
                    rows, speech, max_new_tokens=max_new_tokens, **decoding
                )
        return [answer.text for answer in answers]

    def stream(self, audio, instruction, max_new_tokens=128, **choice):
        """Follow an instruction on one clip, and show the answer as it comes.

        Arguments
        ---------
        audio : object
            A clip, see above.
        instruction : str
            What to do with the speech.
        max_new_tokens : int
            Longest answer, in tokens.
        **choice : dict
            ``temperature``, ``top_p``, ``seed``; greedy if not given.

        Returns
        -------
        iterator of str
            Pieces that together are what `answer` gives. The clip is read
            (and errors are raised) before.
        """
        choice = Choice(**choice)
        [clip] = self.hear([audio])
        prefix, suffix = self.prompt.ids(instruction)
        ids = [*prefix, Speech(clip), *suffix]
        self.check_room(len(ids) - 1 + len(clip.embeds), max_new_tokens)
        sequence = Sequence(self.model.llm)
        logits = sequence.read(embed_tokens(self.model, ids))
        written = sequence.write(logits, max_new_tokens, choice)
        return text_pieces(self.prompt.tokenizer, written)

    def chat(self, system=None):
        """Begin a conversation of speech and text.

        Arguments
        ---------
        system : str, optional
            System message; the prompt's own if not given.

        Returns
        -------
        Chat
            ``send(text, audio)``, ``stream(text, audio)``, ``messages``,
            ``figures``.
        """
        return Chat(self, system)

    def transcribe_file(self, path, **decoding):
        """Transcribe a file.

        Arguments
        ---------
        path : str
            Any rate, mono or stereo, any length.
        **decoding : dict
            As in `answer`.

        Returns
        -------
        str
        """
        return self.answer(path, self.transcribe_instruction, **decoding)

    def transcribe_batch(self, wavs, wav_lens, **decoding):
        """Transcribe a padded batch, the toolkit's way.

        Arguments
        ---------
        wavs : torch.Tensor
            Shape (batch, samples), 16 kHz, zero-padded at the end.
        wav_lens : torch.Tensor
            Shape (batch,), lengths relative to the longest clip.
        **decoding : dict
            As in `answer`.

        Returns
        -------
        list of str
        """
        clips = _cut(wavs, wav_lens)
        return self.answer_batch(clips, self.transcribe_instruction, **decoding)

    forward = transcribe_batch

    def translate(self, audio, language, **decoding):
        """Translate a clip.

        Arguments
        ---------
        audio : object
            A clip, see above.
        language : str
            Its English name, "German".
        **decoding : dict
            As in `answer`.

        Returns
        -------
        str
        """
        instruction = f"Please translate the following text into {language}."
        return self.answer(audio, instruction, **decoding)

    @torch.no_grad()
    def classify(self, audio, labels, instruction, calibrate="N/A"):
        """Choose one of some labels, by what the LLM finds likeliest.

        Arguments
        ---------
        audio : object
            A clip, see above.
        labels : list of str, or dict
            The labels, or label -> its wording for the LLM.
        instruction : str
            The question to which they are the answers.
        calibrate : str, optional
            A text without content; what the LLM thinks of each label when it
            hears that is subtracted (Zhao et al., ICML 2021). None: nothing
            is.

        Returns
        -------
        Classification
        """
        choices = Choices(labels, normalise="length", calibrate=calibrate)
        names = list(choices.wordings())
        if not names:
            raise BadInput("labels: give at least one")
        rows, speech = self._rows([audio], [instruction], 1)
        with self.inference_ctx:
            scores = choice_scores(
                self.model, self.prompt, choices, [instruction], rows, speech
            )[0]
        shares = dict(zip(names, scores.softmax(0).tolist(), strict=True))
        return Classification(max(shares, key=shares.get), shares)

    @torch.no_grad()
    def encode_batch(self, wavs, wav_lens):
        """Speech embeddings of a padded batch, the toolkit's way.

        Arguments
        ---------
        wavs : torch.Tensor
            Shape (batch, samples), 16 kHz, zero-padded at the end.
        wav_lens : torch.Tensor
            Shape (batch,), lengths relative to the longest clip.

        Returns
        -------
        embeds : torch.Tensor
            Shape (batch, longest, hidden_size), zero in padding.
        embed_lens : torch.Tensor
            Shape (batch,), relative lengths.
        """
        with self.inference_ctx:
            speech = self.model.embed_wavs(_cut(wavs, wav_lens))
        return speech.embeds, speech.lengths / speech.embeds.shape[1]

    @torch.no_grad()
    def hear(self, clips):
        """Encode clips, for `chat` and for engines elsewhere.

        Arguments
        ---------
        clips : list
            Clips, see above.

        Returns
        -------
        list of Clip
        """
        wavs = [to_speech(clip).to(self.device) for clip in clips]
        for wav in wavs:  # before any work
            self.check_room(self.model.speech_tokens(len(wav)), 1)
        with self.inference_ctx:
            speech = self.model.embed_wavs(wavs)
        return [
            Clip.heard(embeds[:length], len(wav))
            for embeds, length, wav in zip(
                speech.embeds, speech.lengths.tolist(), wavs, strict=True
            )
        ]

    def check_room(self, prompt_tokens, new_tokens):
        """Refuse what the LLM has no positions for.

        Arguments
        ---------
        prompt_tokens : int
            Tokens of a prompt, its speech included.
        new_tokens : int
            Tokens of its answer, at most; at least 1.

        Raises
        ------
        BadInput
            Naming the numbers.
        """
        if new_tokens < 1:
            raise BadInput(f"max_new_tokens {new_tokens}: give at least 1")
        room = self.model.llm.max_positions
        if room is not None and prompt_tokens + new_tokens > room:
            raise BadInput(
                f"{prompt_tokens} tokens of speech and text, and {new_tokens} "
                f"for the answer, are more than this LLM's {room}; give a "
                "shorter clip, or begin a new conversation"
            )

    @property
    def embedding_size(self):
        """Width of what `encode_batch` gives."""
        return self.model.llm.hidden_size

    @property
    def transcribe_instruction(self):
        """What stands for transcription, from the folder where it says so."""
        given = getattr(self.hparams, "transcribe_instruction", None)
        return given or "Please repeat the following words."

    def _rows(self, clips, instructions, max_new_tokens):
        """Prompts of some clips, and their speech."""
        heard = self.hear(clips)
        rows = []
        for instruction, clip in zip(instructions, heard, strict=True):
            rows.append(self.prompt.row(instruction, len(clip.embeds)))
            self.check_room(rows[-1].length, max_new_tokens)
        lengths = torch.tensor([len(clip.embeds) for clip in heard])
        embeds = torch.nn.utils.rnn.pad_sequence(
            [clip.embeds for clip in heard], batch_first=True
        )
        return rows, SpeechEmbeddings(embeds, lengths.to(embeds.device))


def _fetched(source, savedir):
    """The folder of an adapter; from a hub, with its files."""
    if os.path.isdir(source):
        for name in ADAPTER_FILES:
            if not os.path.isfile(os.path.join(source, name)):
                raise BadInput(
                    f"{source}: has no {name}; give the adapter folder "
                    "that recipes/blsp/train.py wrote"
                )
        return source

    def fetched(name):
        opener = partial(fetch, name)
        return open_pretrained(opener, source, "adapter", savedir=savedir)

    files = [fetched(name) for name in ADAPTER_FILES]
    folder = os.path.dirname(files[0])
    if read_facts(folder).get("lora"):
        fetched(LORA_FILE)
    return folder


def _cut(wavs, wav_lens):
    """The clips of a padded batch."""
    samples = (wav_lens * wavs.shape[1]).round().long().tolist()
    return [wav[:n] for wav, n in zip(wavs, samples, strict=True)]
