"""A trained adapter in use: SpeechBrain's inference interface.

Authors
 * The blsp_plugin team 2026
"""

import json
import os

import torch
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.fetching import fetch

from blsp_plugin.checkpoints import ADAPTER_FILES, LORA_FILE, load_adapter
from blsp_plugin.data.audio import read_speech
from blsp_plugin.errors import BadInput
from blsp_plugin.model import BLSP

__all__ = ["SpeechLLM"]


class SpeechLLM(Pretrained):
    """A text LLM that hears: any instruction on any clip.

    Made by ``SpeechLLM.from_hparams(folder)``, where the folder (or hub id) is
    the ``adapter_folder`` that training wrote: the adapter, the fingerprints
    of its base, and a YAML that opens the base.

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
        cls, source, hparams_file="hyperparams.yaml", savedir=None, **kwargs
    ):
        """Open a trained adapter with its base.

        Arguments
        ---------
        source : str
            Folder or hub id.
        hparams_file : str
            YAML in it. It builds objects: open only folders that you trust.
        savedir : str, optional
            Where files of a hub are kept.
        **kwargs : dict
            Passed on to SpeechBrain: ``overrides``, ``run_opts`` (such as
            ``{"device": "cuda"}``), ...

        Returns
        -------
        SpeechLLM

        Raises
        ------
        BadInput
            If a file is missing or the adapter belongs to another base.
        """
        if os.path.isdir(source):
            folder = source
            for name in (hparams_file, *ADAPTER_FILES):
                if not os.path.isfile(os.path.join(source, name)):
                    raise BadInput(
                        f"{source}: has no {name}; give the adapter folder "
                        "that recipes/blsp/train.py wrote"
                    )
        else:
            files = [fetch(n, source, savedir=savedir) for n in ADAPTER_FILES]
            folder = os.path.dirname(files[0])
            with open(files[0], encoding="utf-8") as stream:
                if json.load(stream).get("lora"):
                    fetch(LORA_FILE, source, savedir=savedir)
        speech_llm = super().from_hparams(
            source, hparams_file, savedir=savedir, **kwargs
        )
        load_adapter(speech_llm.model, speech_llm.prompt, folder)
        return speech_llm

    def answer(self, audio, instruction, max_new_tokens=128, **decoding):
        """Follow an instruction on one clip.

        Arguments
        ---------
        audio : str or torch.Tensor
            A file (any rate, mono or stereo, any length), or a clip of shape
            (samples,), float, 16 kHz.
        instruction : str
            What to do with the speech, in words.
        max_new_tokens : int
            Longest answer, in tokens.
        **decoding : dict
            Passed on to `FrozenLLM.generate`.

        Returns
        -------
        str

        Raises
        ------
        BadInput
            If the file cannot be read.
        """
        decoding["max_new_tokens"] = max_new_tokens
        return self.answer_batch([audio], [instruction], **decoding)[0]

    @torch.no_grad()
    def answer_batch(self, clips, instructions, max_new_tokens=128, **decoding):
        """Follow an instruction on each clip; the same answers as one by one.

        Arguments
        ---------
        clips : list of (str or torch.Tensor)
            As in `answer`.
        instructions : list of str
            One a clip.
        max_new_tokens : int
            Longest answer, in tokens.
        **decoding : dict
            Passed on to `FrozenLLM.generate`.

        Returns
        -------
        list of str
        """
        wavs = [
            clip if isinstance(clip, torch.Tensor) else read_speech(clip)
            for clip in clips
        ]
        for i, wav in enumerate(wavs):
            if wav.ndim != 1 or not wav.numel() or not wav.isfinite().all():
                raise BadInput(
                    f"clip {i}: shape {tuple(wav.shape)}; give finite samples "
                    "of shape (samples,) at 16 kHz, at least one"
                )
        with self.inference_ctx:
            answers = self.model.answer(
                wavs,
                instructions,
                self.prompt,
                max_new_tokens=max_new_tokens,
                **decoding,
            )
        return [answer.text for answer in answers]

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
        samples = (wav_lens * wavs.shape[1]).round().long().tolist()
        clips = [wav[:n] for wav, n in zip(wavs, samples, strict=True)]
        instructions = [self.transcribe_instruction] * len(clips)
        return self.answer_batch(clips, instructions, **decoding)

    forward = transcribe_batch

    @property
    def transcribe_instruction(self):
        """What stands for transcription, from the YAML where it says so."""
        return getattr(
            self.hparams,
            "transcribe_instruction",
            "Please repeat the following words.",
        )
