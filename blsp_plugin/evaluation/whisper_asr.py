"""Whisper's own recogniser: the first half of the cascade.

Authors
 * The blsp_plugin team 2026
"""

import os
import time
from typing import NamedTuple

import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from blsp_plugin.data.text import normalise_transcript
from blsp_plugin.errors import BadInput
from blsp_plugin.evaluation.records import Records
from blsp_plugin.lengths import CHUNK_SAMPLES, SAMPLE_RATE
from blsp_plugin.pretrained import fingerprint_module, open_pretrained

__all__ = ["Answer", "WhisperASR", "split_at_pauses"]

# Up to so far from the middle a pause is looked for, in windows of 0.1 s.
_SEARCH, _WINDOW, _STEP = 2 * SAMPLE_RATE, SAMPLE_RATE // 10, SAMPLE_RATE // 100


class Answer(NamedTuple):
    """What a system said of a clip.

    Arguments
    ---------
    text : str
        One line.
    seconds : float
        Its share of the batch's wall time.
    tokens : int
        That the LLM wrote; 0 if it did not write.
    first_token : float, optional
        Seconds from the batch's start to its first tokens.
    """

    text: str
    seconds: float
    tokens: int = 0
    first_token: float = None


def split_at_pauses(wav):
    """Cut a clip into about equal pieces of at most 30 s, where it is quiet.

    Whisper hears 30 s at a time; a cut through a word would cost the cascade
    an error that is not its own.

    Arguments
    ---------
    wav : torch.Tensor
        Shape (samples,), 16 kHz.

    Returns
    -------
    list of torch.Tensor
        Their concatenation is the clip.

    Example
    -------
    >>> wav = torch.ones(40 * 16000)
    >>> wav[19 * 16000 : 20 * 16000] = 0
    >>> [round(len(piece) / 16000, 1) for piece in split_at_pauses(wav)]
    [19.1, 20.9]
    """
    pieces = []
    while len(wav) > CHUNK_SAMPLES:
        middle = len(wav) // -(-len(wav) // CHUNK_SAMPLES)
        start = middle - _SEARCH
        window = wav[start : min(middle + _SEARCH, CHUNK_SAMPLES)]
        energy = window.square().unfold(0, _WINDOW, _STEP).mean(1)
        cut = start + int(energy.argmin()) * _STEP + _WINDOW // 2
        pieces.append(wav[:cut])
        wav = wav[cut:]
    return [*pieces, wav]


class WhisperASR(torch.nn.Module):
    """Speech recognition by Whisper as transformers runs it.

    Clips are padded to 30 s, as Whisper was trained; longer ones are cut at
    pauses. No temperature fallback and no timestamps.

    Arguments
    ---------
    source : str
        Folder or hub id.
    language : str, optional
        Spoken language ("en", "french"); detected clip by clip if not given.
        English-only models take "en" or nothing.
    num_beams : int
        1 is greedy; transformers' pipeline takes 5.
    max_new_tokens : int, optional
        For a piece of at most 30 s; half of the decoder's positions, as in
        OpenAI's code, when not given.

    Raises
    ------
    BadInput
        If the model cannot be opened, or does not know the language.
    """

    def __init__(self, source, language=None, num_beams=1, max_new_tokens=None):
        super().__init__()
        self.source = os.fspath(source)
        self.processor = open_pretrained(
            WhisperProcessor.from_pretrained, source, "Whisper"
        )
        # dtype is explicit: a half-precision checkpoint would stay half.
        self.model = open_pretrained(
            WhisperForConditionalGeneration.from_pretrained,
            source,
            "Whisper",
            dtype=torch.float32,
        )
        self.requires_grad_(False)
        self.eval()
        self.decoding = {"num_beams": num_beams, **self._spoken(language)}
        # transformers' Whisper adds the tokens of its own prompt to this.
        # Given to `generate`, it would warn at every batch.
        self.model.generation_config.max_length = (
            max_new_tokens or self.model.config.max_target_positions // 2
        )
        self._known, self._records = {}, None

    @property
    def device(self):
        """Device of the weights."""
        return self.model.device

    def settings(self):
        """All that a transcript depends on, a dict."""
        return {
            "whisper": fingerprint_module(self.model),
            "whisper decoding": self.decoding,
            "longest transcript": self.model.generation_config.max_length,
        }

    @torch.no_grad()
    def transcribe(self, wavs):
        """Recognise a batch of clips.

        Arguments
        ---------
        wavs : list of torch.Tensor
            Each of shape (samples,), float, 16 kHz, mono.

        Returns
        -------
        list of str
            One line a clip, cased and punctuated as Whisper writes.
        """
        clips = [split_at_pauses(wav) for wav in wavs]
        pieces = [piece.cpu().numpy() for clip in clips for piece in clip]
        with torch.autocast("cpu", enabled=False):  # features stay float32
            features = self.processor.feature_extractor(
                pieces, sampling_rate=SAMPLE_RATE, return_tensors="pt"
            ).input_features.to(self.device)
        # All 30 s are valid to Whisper; said aloud, it does not warn.
        mask = torch.ones_like(features[:, 0], dtype=torch.int64)
        ids = self.model.generate(
            features, attention_mask=mask, **self.decoding
        )
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        texts = iter(texts)
        return [
            normalise_transcript(" ".join(next(texts) for _ in clip))
            for clip in clips
        ]

    def open(self, folder, **settings):
        """Remember transcripts on disk, so that each clip is heard once.

        Arguments
        ---------
        folder : str
            Gets ``whisper.transcripts.jsonl``.
        **settings : dict
            Further conditions of the run (the precision).
        """
        path = os.path.join(folder, "whisper.transcripts.jsonl")
        self._records = Records(path, {**self.settings(), **settings})
        self._known = self._records.known

    def hear(self, clips):
        """Transcribe clips, or remember their transcripts.

        Arguments
        ---------
        clips : list of Clip
            With their audio.

        Returns
        -------
        list of Answer
            With the seconds that recognition took when it was done.
        """
        known = self._known
        new = [c for c in clips if known.get(c.id, {}).get("clip") != c.key]
        if new:
            began = time.perf_counter()
            texts = self.transcribe([clip.wav for clip in new])
            seconds = (time.perf_counter() - began) / len(new)
            records = [
                {"id": c.id, "text": text, "seconds": seconds, "clip": c.key}
                for c, text in zip(new, texts, strict=True)
            ]
            known.update((record["id"], record) for record in records)
            if self._records is not None:
                self._records.append(records)
        return [
            Answer(known[c.id]["text"], known[c.id]["seconds"]) for c in clips
        ]

    def _spoken(self, language):
        """The language arguments of transformers' ``generate``."""
        config = self.model.generation_config
        code = TO_LANGUAGE_CODE.get((language or "").lower(), language)
        # English-only models refuse these arguments.
        if not getattr(config, "is_multilingual", True):
            if code in ("en", None):
                return {}
            raise BadInput(
                f"{self.source}: knows English only, not {language!r}; give "
                "a multilingual Whisper"
            )
        known = getattr(config, "lang_to_id", {})
        if code is not None and f"<|{code}|>" not in known:
            raise BadInput(
                f"{self.source}: its generation_config.json has no language "
                f"{language!r}; give one of its {len(known)}, or a newer copy "
                "of the model"
            )
        return {"language": code, "task": "transcribe"}
