"""The rows of the table: systems that do the same task on the same clips.

The text LLM on the gold transcript is the ceiling of everything that hears
through the same LLM; the cascade is what a speech LLM has to beat; an adapter
that never learnt is the floor. All ask the LLM with the same prompt.

Authors
 * The blsp_plugin team 2026
"""

import time
from typing import NamedTuple

import torch

from blsp_plugin.data.text import normalise_transcript, recase
from blsp_plugin.errors import BadInput
from blsp_plugin.evaluation.whisper_asr import Answer
from blsp_plugin.model import BLSP
from blsp_plugin.package import build_adapter, load_adapter, read_facts
from blsp_plugin.pretrained import (
    fingerprint_module,
    lora_layers,
    without_lora,
)
from blsp_plugin.scoring import choice_scores

__all__ = [
    "Cascade",
    "Clip",
    "GoldTextLLM",
    "OtherAdapter",
    "SpeechLLM",
    "System",
    "UntrainedAdapter",
    "WhisperAlone",
]


class Clip(NamedTuple):
    """What a system gets to see of a clip.

    Arguments
    ---------
    id : str
        Its id.
    key : str
        Changes when the clip or its texts do.
    text : str
        Gold transcript; for `GoldTextLLM` only.
    wav : torch.Tensor or None
        Shape (samples,), float, 16 kHz, mono; None for systems that do not
        hear.
    """

    id: str
    key: str
    text: str
    wav: object


class System(torch.nn.Module):
    """One row of the table.

    Arguments
    ---------
    name : str
        In the names of its figures, "cascade".
    label : str
        In the table.
    """

    hears = True
    compared_with = None  # name of the system that it is tested against

    def __init__(self, name, label):
        super().__init__()
        self.name = name
        self.label = label

    def settings(self):
        """All that its answers depend on beside the task.

        Returns
        -------
        dict
            JSON values.
        """
        raise NotImplementedError

    def open(self, folder, **settings):
        """Get ready for a run; a system may keep files of its own.

        Arguments
        ---------
        folder : str
            Where to.
        **settings : dict
            Conditions of the run that these files depend on.
        """

    def answer(self, clips, task):
        """Do the task on a batch of clips.

        Arguments
        ---------
        clips : list of Clip
            With their audio if the system ``hears``.
        task : Task
            What to do.

        Returns
        -------
        list of Answer
            One a clip, in order.
        """
        raise NotImplementedError


class _LLMSystem(System):
    """What the systems with an LLM have in common."""

    def __init__(self, model, prompt, name, label):
        super().__init__(name, label)
        self.model = model
        self.prompt = prompt

    def settings(self):
        """All that its answers depend on beside the task, a dict."""
        return {
            "llm": self.model.llm.fingerprint(),
            "llm dtype": str(self.model.llm.dtype),
            "prompt": self.prompt.fingerprint(),
        }

    def answer_texts(self, clips, transcripts, task):
        """The text branch, on some transcripts."""
        began = time.perf_counter()
        rows = []
        for clip, transcript in zip(clips, transcripts, strict=True):
            instruction = task.instruction_for(clip.id)
            rows.append(self.prompt.row(instruction, transcript))
        return self.respond(rows, None, clips, task, began)

    def respond(self, rows, speech, clips, task, began):
        """Write a response to each row, or choose one.

        Arguments
        ---------
        rows : list of Row
            Prompts, one a clip.
        speech : SpeechEmbeddings or None
            What is in their slots, if it is not text.
        clips : list of Clip
        task : Task
        began : float
            When work on these clips began (`time.perf_counter`).

        Returns
        -------
        list of Answer
        """
        if task.choices is not None:
            asked = [task.instruction_for(clip.id) for clip in clips]
            scores = choice_scores(
                self.model, self.prompt, task.choices, asked, rows, speech
            )
            names = list(task.choices.wordings())
            seconds = (time.perf_counter() - began) / len(rows)
            return [
                Answer(names[n], seconds) for n in scores.argmax(1).tolist()
            ]
        first = []
        generations = self.model.generate(
            rows,
            speech,
            on_first_token=lambda: first.append(time.perf_counter() - began),
            **task.decoding,
        )
        seconds = (time.perf_counter() - began) / len(rows)
        return [
            Answer(
                normalise_transcript(written.text),
                seconds,
                len(written.ids) + written.ended,
                first[0] if first else None,
            )
            for written in generations
        ]


class GoldTextLLM(_LLMSystem):
    """The ceiling: the LLM is given the gold transcript.

    Upper-case transcripts are recased first: an LLM reads SHOUTED TEXT badly,
    and the ceiling would be too low.

    Arguments
    ---------
    model : BLSP
        Only its LLM is used.
    prompt : Prompt
        Of the LLM.
    language : str
        Of the transcripts, for recasing.
    """

    hears = False

    def __init__(self, model, prompt, language="en"):
        super().__init__(model, prompt, "gold", "gold transcript -> LLM")
        self.language = language

    def settings(self):
        """All that its answers depend on beside the task, a dict."""
        return {**super().settings(), "recase": self.language}

    def answer(self, clips, task):
        """Answer to the gold transcripts, see `System.answer`."""
        texts = [recase(clip.text, self.language) for clip in clips]
        return self.answer_texts(clips, texts, task)


class Cascade(_LLMSystem):
    """Whisper transcribes, the LLM answers to the transcript.

    Arguments
    ---------
    asr : WhisperASR
        May be shared with `WhisperAlone`: each clip is transcribed once.
    model : BLSP
        Only its LLM is used.
    prompt : Prompt
        Of the LLM.
    """

    def __init__(self, asr, model, prompt):
        super().__init__(model, prompt, "cascade", "Whisper -> LLM (cascade)")
        self.asr = asr

    def settings(self):
        """All that its answers depend on beside the task, a dict."""
        return {**super().settings(), **self.asr.settings()}

    def open(self, folder, **settings):
        """Keep the transcripts in a file of the folder."""
        self.asr.open(folder, **settings)

    def answer(self, clips, task):
        """Answer to Whisper's transcripts, see `System.answer`."""
        heard = self.asr.hear(clips)
        texts = [transcript.text for transcript in heard]
        return [
            answer._replace(
                seconds=answer.seconds + transcript.seconds,
                # All clips of the batch are transcribed before.
                first_token=None
                if answer.first_token is None
                else answer.first_token + transcript.seconds * len(clips),
            )
            for answer, transcript in zip(
                self.answer_texts(clips, texts, task), heard, strict=True
            )
        ]


class SpeechLLM(_LLMSystem):
    """The trained model: speech embeddings in the transcript's place.

    Arguments
    ---------
    model : BLSP
        With its adapter loaded.
    prompt : Prompt
        Of the LLM.
    """

    compared_with = "cascade"

    def __init__(self, model, prompt, name="speechllm", label="speech LLM"):
        super().__init__(model, prompt, name, label)

    def settings(self):
        """All that its answers depend on beside the task, a dict."""
        return {
            **super().settings(),
            "encoder": self.model.encoder.fingerprint(),
            "adapter": fingerprint_module(self.model.adapter),
            **self._lora(),
        }

    def _lora(self):
        """LoRA is trained too; nothing where there is none."""
        layers = lora_layers(self.model)
        return {"lora": fingerprint_module(layers)} if len(layers) else {}

    @torch.no_grad()
    def answer(self, clips, task):
        """Answer to the speech itself, see `System.answer`."""
        began = time.perf_counter()
        speech = self.model.embed_wavs([clip.wav for clip in clips])
        rows = []
        for clip, length in zip(clips, speech.lengths.tolist(), strict=True):
            rows.append(self.prompt.row(task.instruction_for(clip.id), length))
        return self.respond(rows, speech, clips, task, began)


class OtherAdapter(SpeechLLM):
    """Another trained adapter on the same encoder and LLM.

    Arguments
    ---------
    model : BLSP
        Shared with `SpeechLLM`; its own adapter is not touched.
    prompt : Prompt
        Of the LLM, and of the other training too.
    folder : str
        The other adapter's; see `blsp_plugin.package`.
    name : str
        Of the system.
    label : str
        For the table.

    Raises
    ------
    BadInput
        If the folder cannot be opened, belongs to another base, or has LoRA.
    """

    def __init__(self, model, prompt, folder, name, label):
        facts = read_facts(folder)
        if facts.get("lora"):
            raise BadInput(
                f"{folder}: has LoRA, which would change the base that the "
                "systems share; evaluate it in a run of its own"
            )
        adapter = build_adapter(facts, folder)
        other = BLSP(model.encoder, adapter, model.llm)
        load_adapter(other, prompt, folder)  # refuses a base with LoRA
        super().__init__(other, prompt, name, label)


class UntrainedAdapter(SpeechLLM):
    """The floor: the same encoder and LLM around an adapter as initialised.

    Arguments
    ---------
    model : BLSP
        Shared with `SpeechLLM`; its own adapter is not touched.
    prompt : Prompt
        Of the LLM.
    adapter : torch.nn.Module
        Another adapter than the model's, freshly made (``!copy`` in YAML).
    """

    compared_with = None

    def __init__(self, model, prompt, adapter):
        if adapter is model.adapter:
            raise ValueError("the untrained adapter must be a copy of its own")
        floor = BLSP(model.encoder, adapter, model.llm)
        super().__init__(floor, prompt, "untrained", "untrained adapter")

    def _lora(self):
        """It is switched off."""
        return {}

    def answer(self, clips, task):
        """Answer as before any training, see `System.answer`."""
        with without_lora(self.model):
            return super().answer(clips, task)


class WhisperAlone(System):
    """Whisper's transcript is the answer: for speech recognition only.

    Arguments
    ---------
    asr : WhisperASR
        May be shared with `Cascade`.
    """

    def __init__(self, asr):
        super().__init__("whisper", "Whisper alone")
        self.asr = asr

    def settings(self):
        """All that its answers depend on beside the task, a dict."""
        return self.asr.settings()

    def open(self, folder, **settings):
        """Keep the transcripts in a file of the folder."""
        self.asr.open(folder, **settings)

    def answer(self, clips, task):
        """Give the transcripts, see `System.answer`."""
        return self.asr.hear(clips)
