"""One visitor's conversation: with the speech LLM, and with a cascade.

Both are the same LLM and the same `Chat`, with the same wording: the speech
LLM hears the clip, the cascade reads in its place what Whisper has heard.

Authors
 * The blsp_plugin team 2026
"""

import contextlib
import threading
import time
from typing import NamedTuple

import torch

from blsp_plugin.data.audio import SAMPLE_RATE, read_speech
from blsp_plugin.errors import BadInput
from blsp_plugin.pretrained import without_lora
from blsp_plugin.webpage.limits import check_turn, sentence

__all__ = ["Heard", "Models", "Side", "Talk", "TurnCost"]


class Models:
    """What all visitors share, used by one of them at a time.

    Arguments
    ---------
    speech_llm : SpeechLLM
        Of a chat model.
    asr : WhisperASR, optional
        Of the cascade; without one there is no cascade.
    """

    def __init__(self, speech_llm, asr=None):
        self.speech_llm = speech_llm
        self.asr = asr
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def using(self, plain=False):
        """Have the models for one step.

        Arguments
        ---------
        plain : bool
            The LLM as it was published, without LoRA.
        """
        with self._lock, contextlib.ExitStack() as stack:
            if plain:
                stack.enter_context(without_lora(self.speech_llm.model))
            yield


class TurnCost(NamedTuple):
    """Figures of one turn of one side.

    Arguments
    ---------
    audio : float
        Seconds of the clip, 0 without one.
    turn : TurnFigures
        Of the chat.
    before : float
        Seconds that Whisper took before the LLM began.
    """

    audio: float
    turn: object
    before: float = 0.0

    @property
    def first_token(self):
        """Seconds to the first token."""
        return self.before + self.turn.first_token

    @property
    def seconds(self):
        """Seconds to the end."""
        return self.before + self.turn.seconds

    @property
    def rate(self):
        """Tokens a second after the first; None of less than two."""
        rest = self.turn.seconds - self.turn.first_token
        if self.turn.reply_tokens < 2 or rest <= 0:
            return None
        return (self.turn.reply_tokens - 1) / rest


class Heard(NamedTuple):
    """What was heard in the last clip; None where nobody has listened.

    Arguments
    ---------
    speech_llm : str or None
        Its answer to its instruction for transcription.
    whisper : str or None
        Whisper's transcript.
    """

    speech_llm: str = None
    whisper: str = None


class Side:
    """One of two columns.

    Arguments
    ---------
    chat : Chat
        Its conversation.
    """

    def __init__(self, chat):
        self.chat = chat
        self.shown = []  # role and content, as the page shows them
        self.cost = None
        self.writing = False


class Talk:
    """A visitor's conversation.

    Arguments
    ---------
    models : Models
    limits : Limits
    """

    def __init__(self, models, limits):
        self.models = models
        self.limits = limits
        self.speech = Side(models.speech_llm.chat())
        self.text = Side(models.speech_llm.chat()) if models.asr else None
        self.heard = Heard()
        self.note = ""  # a sentence for the visitor
        self.greeting = ""  # another, until the first turn is done
        self.waiting = False  # a turn of ours stands in the queue
        self.running = False
        self.stopped = False
        self.said = (None, None)  # text and clip of the next turn
        self.taken = True  # what was said last is in the conversation
        self._wav = None

    @property
    def has_clip(self):
        """Whether there is a last clip to ask about."""
        return self._wav is not None

    @property
    def asked(self):
        """Whether a turn waits or runs."""
        return self.waiting or self.running

    def stop(self):
        """End the turn that waits or runs; what was written stays."""
        self.stopped = self.asked

    def ask(self, text=None, path=None):
        """Say something; yields whenever there is more to show.

        Arguments
        ---------
        text : str, optional
            What was typed.
        path : str, optional
            A clip. Without a text it is what the visitor says.

        Yields
        ------
        None

        Raises
        ------
        BadInput
            A sentence for the visitor; the conversation is what it was.
        """
        self.taken = False
        if self.speech.shown:
            self.greeting = ""
        with self._turn():
            text = check_turn(
                text, path, self.limits, self.models.speech_llm.prompt
            )
            wav = None
            if path is not None:
                try:
                    wav = read_speech(path)
                except BadInput as error:
                    raise BadInput(sentence(error, path)) from error
            self.speech.cost = None
            if self.text:
                self.text.cost = None
            yield from self._ask_speech(text, path, wav)
            if self.text and not self.stopped:
                yield from self._ask_text(text, wav)

    def listen(self):
        """Let the speech LLM say what it heard in the last clip.

        Yields
        ------
        None
        """
        if self._wav is None:
            raise BadInput("Give a clip first.")
        with self._turn():
            llm = self.models.speech_llm
            self.heard = self.heard._replace(speech_llm="")

            def start():
                asked = (self._wav, llm.transcribe_instruction)
                return llm.stream(*asked, self.limits.new_tokens)

            with contextlib.closing(self._pieces(start)) as pieces:
                for piece in pieces:
                    text = self.heard.speech_llm + piece
                    self.heard = self.heard._replace(speech_llm=text)
                    yield

    @contextlib.contextmanager
    def _turn(self):
        self.waiting, self.running = False, True
        self.note = ""
        try:
            if self.stopped:
                raise BadInput("Stopped before it began; nothing was asked.")
            yield
        finally:
            self.running = self.stopped = False

    def _ask_speech(self, text, path, wav):
        shown = [text] if text else []
        if path is not None:
            shown.append({"path": path})

        def start():
            return self.speech.chat.stream(text, wav, self.limits.new_tokens)

        yield from self._reply(self.speech, shown, start)
        self.speech.cost = TurnCost(_seconds(wav), self.speech.chat.figures)
        if wav is not None:
            self._wav, self.heard = wav, Heard()
        yield

    def _ask_text(self, text, wav):
        said, shown, before = text, [text] if text else [], 0.0
        if wav is not None:
            listening = {"role": "user", "content": [*shown, "…"]}
            self.text.shown.append(listening)
            try:
                yield
                began = time.perf_counter()
                with self.models.using(), torch.no_grad():
                    [heard] = self.models.asr.transcribe([wav])
                before = time.perf_counter() - began
            finally:
                self.text.shown.remove(listening)
            self.heard = self.heard._replace(whisper=heard)
            said = self._worded(text, heard)
            shown.append(f"“{heard}”")

        def start():
            return self.text.chat.stream(
                said, max_new_tokens=self.limits.new_tokens
            )

        try:
            yield from self._reply(self.text, shown, start, plain=True)
        except BadInput as error:
            self.note = f"The cascade has no answer: {error}"
            self.text.cost = None
        else:
            cost = TurnCost(_seconds(wav), self.text.chat.figures, before)
            self.text.cost = cost
        yield

    def _worded(self, text, transcript):
        """The message of training, with the transcript for the speech."""
        if text is None:
            return transcript
        return self.models.speech_llm.prompt.fill(text, transcript)

    def _reply(self, side, shown, start, plain=False):
        """Show a message and the reply to it while it is written."""
        reply = {"role": "assistant", "content": [""]}
        turns = len(side.chat.messages)
        side.shown += [{"role": "user", "content": shown}, reply]
        side.writing = True
        try:
            yield
            with contextlib.closing(self._pieces(start, plain)) as pieces:
                for piece in pieces:
                    self.taken = True
                    reply["content"][0] += piece
                    yield
            self.taken = True
        finally:
            side.writing = False
            if len(side.chat.messages) == turns:  # it was not said
                del side.shown[-2:]

    def _pieces(self, start, plain=False):
        """Pieces of a reply, each written while the models are ours."""
        try:
            with self.models.using(plain):
                stream = start()
        except BadInput as error:
            raise BadInput(sentence(error)) from error
        try:
            while True:
                # Asked for at least one: a turn counts once it has begun.
                with self.models.using(plain):
                    piece = next(stream, None)
                if piece is None:
                    return
                yield piece
                if self.stopped:
                    return
        finally:
            stream.close()


def _seconds(wav):
    return 0.0 if wav is None else len(wav) / SAMPLE_RATE
