"""From a caller's JSON to a prompt that an engine can read.

Everything is looked at before it costs something: fields before files,
headers before samples, tokens before the encoder.

Authors
 * The blsp_plugin team 2026
"""

import asyncio
import contextlib
import copy
import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from blsp_plugin.chat import embed_tokens
from blsp_plugin.conversation import Speech, conversation_ids
from blsp_plugin.errors import BadInput
from blsp_plugin.serving.answers import Counts, Form
from blsp_plugin.serving.chat_request import Upload, parse_request
from blsp_plugin.serving.clips import read_upload
from blsp_plugin.serving.ears import Ears
from blsp_plugin.serving.refusals import Refusal

__all__ = ["Prepared", "Service"]

_LONGEST_TOKEN = 40  # characters: no text of more fits for sure
_PREPARED_AT_ONCE = 32
_ANY_ROOM = 2**18  # tokens, of an LLM that names no limit


class Prepared(NamedTuple):
    """A request that only has to be answered.

    Arguments
    ---------
    embeds : torch.Tensor
        Shape (tokens, hidden_size), the conversation.
    wish : Wish
        How to answer.
    stream : bool
        Whether in pieces.
    form : Form
        Of the answer.
    """

    embeds: torch.Tensor
    wish: object
    stream: bool
    form: Form


class _Found(NamedTuple):
    """A clip of a request: heard before, or its samples."""

    digest: bytes
    clip: object
    wav: torch.Tensor
    tokens: int


class Service:
    """An adapter, its encoder, and the engine that writes.

    Arguments
    ---------
    speech_llm : SpeechLLM
        Whose LLM may have no layers here.
    engine : Engine
        Of the same LLM.
    limits : Limits
        Of each caller, and of all.
    name : str
        Under which callers know it.
    cache_mb : float
        Of clips that were heard already.

    Raises
    ------
    BadInput
        If the adapter was trained with a plain prompt: it cannot chat.
    """

    def __init__(self, speech_llm, engine, limits, name, cache_mb=256):
        self.model = speech_llm.model
        # One thread tokenises, with a tokenizer of its own: tokenizers are
        # set for each text, and the engine's decodes in another thread.
        self.prompt = copy.copy(speech_llm.prompt)
        self.prompt.tokenizer = copy.deepcopy(self.prompt.tokenizer)
        conversation_ids(self.prompt, [("user", ["Hello"])])
        self.engine = engine
        self.limits = limits
        self.name = name
        rooms = (engine.room, self.model.llm.max_positions, _ANY_ROOM)
        self.room = min(room for room in rooms if room is not None)
        self.ears = Ears(speech_llm.hear, cache_mb)
        self.inside = 0
        self.uploading = 0  # bytes
        self.requests = {"answered": 0, "refused": 0, "left": 0}
        # Files and samples of so many requests are in memory.
        self._preparing = asyncio.Semaphore(_PREPARED_AT_ONCE)
        self._writer = ThreadPoolExecutor(1, "tokens")
        self._readers = ThreadPoolExecutor(2, "clips")

    @contextlib.contextmanager
    def admitted(self):
        """Let a request in, or refuse it: too many are inside."""
        if self.inside >= self.limits.queue:
            raise Refusal(
                "too many requests wait; try again",
                status=429,
                code="server_busy",
                headers={"Retry-After": "2"},
            )
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def prepare(self, body):
        """Everything but the answer.

        Arguments
        ---------
        body : list of bytes
            The JSON; taken out of the list, so that nobody keeps it.

        Returns
        -------
        Prepared

        Raises
        ------
        Refusal
            Naming the field.
        """
        large = len(body[0]) > 2**20
        try:
            async with self._preparing:
                return await self._prepare(body)
        finally:
            if large:
                loop = asyncio.get_running_loop()
                loop.run_in_executor(None, _give_back)

    async def _prepare(self, body):
        asked = await self._threaded(
            self._readers, parse_request, body.pop(), self.limits
        )
        if asked.model not in (None, self.name):
            raise Refusal(
                f"model: there is no {asked.model!r} here, but {self.name}",
                "model",
                404,
                "model_not_found",
            )
        found = await self._find(asked.uploads)
        speech = sum(clip.tokens for clip in found)
        messages = _with_slots(asked.messages)
        asked = asked._replace(messages=None)  # the files have been read
        ids = await self._threaded(self._writer, self._ids, messages, speech)
        prompt = sum(not isinstance(item, Speech) for item in ids) + speech
        wish = asked.wish._replace(max_new_tokens=self._new(asked.wish, prompt))
        heard = await asyncio.gather(*map(self._hear, found))
        embeds = await self._threaded(self._writer, self._embeds, ids, heard)
        form = Form(self.name, Counts(prompt, speech), asked.include_usage)
        return Prepared(embeds, wish, asked.stream, form)

    def write(self, prepared):
        """The answer: see `Engine.write`.

        Arguments
        ---------
        prepared : Prepared
            From `prepare`.

        Returns
        -------
        async iterator
        """
        return self.engine.write(
            prepared.embeds, prepared.wish, prepared.stream
        )

    def figures(self):
        """What was done, a dict of numbers."""
        return {
            "requests": self.requests,
            "inside": self.inside,
            "encoder": self.ears.figures,
            "kept_mb": round(self.ears.megabytes, 3),
        }

    async def close(self):
        """End all threads."""
        await self.engine.close()
        await asyncio.to_thread(self.ears.close)
        self._writer.shutdown(wait=False)
        self._readers.shutdown(wait=False)

    @staticmethod
    async def _threaded(pool, work, *args):
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, work, *args)

    async def _hear(self, found):
        return found.clip or await self.ears.hear(found.digest, found.wav)

    async def _find(self, uploads):
        """The clips of a request, those that are new decoded."""
        found, used = [], 0
        for upload in uploads:
            clip, wav = self.ears.known(upload.digest), None
            if clip is not None:
                tokens = len(clip.embeds)
            else:
                left = self.room - used
                wav = await self._threaded(
                    self._readers,
                    read_upload,
                    upload,
                    self.limits,
                    lambda samples, left=left: (
                        self.model.speech_tokens(samples) < left
                    ),
                )
                tokens = self.model.speech_tokens(len(wav))
            used += tokens
            found.append(_Found(upload.digest, clip, wav, tokens))
        return found

    def _ids(self, messages, speech):
        """The conversation's tokens, with a slot for each clip."""
        texts = [
            part
            for _, parts in messages
            for part in ([parts] if isinstance(parts, str) else parts)
            if isinstance(part, str)
        ]
        # Finding the slots takes many passes over the text: not of a book.
        if sum(map(len, texts)) > _LONGEST_TOKEN * self.room:
            raise self._no_room("the texts")
        encoded = self.prompt.tokenizer(
            texts or [""],  # a clip alone; tokenizers refuse an empty list
            add_special_tokens=False,
        )
        tokens = sum(map(len, encoded["input_ids"]))
        if tokens + speech >= self.room:
            raise self._no_room(f"{tokens + speech} tokens of speech and text")
        try:
            return conversation_ids(self.prompt, messages)
        except BadInput as error:
            name = str(self.prompt.tokenizer.name_or_path)
            raise Refusal(
                str(error).replace(name, "the LLM"), "messages"
            ) from error

    def _new(self, wish, prompt):
        """Longest answer to a prompt, in tokens."""
        asked = wish.max_new_tokens
        if prompt + (asked or 1) > self.room:
            raise self._no_room(
                f"{prompt} tokens of speech and text and {asked or 1} for the "
                "answer"
            )
        return asked or min(self.limits.new_tokens, self.room - prompt)

    def _no_room(self, what):
        return Refusal(
            f"{what} are more than this LLM's {self.room}; send less, or "
            "begin a new conversation",
            "messages",
            code="context_length_exceeded",
        )

    @torch.no_grad()
    def _embeds(self, ids, heard):
        """The conversation with its clips in the slots."""
        filled = [
            Speech(heard[item.clip]) if isinstance(item, Speech) else item
            for item in ids
        ]
        return embed_tokens(self.model, filled)


def _with_slots(messages):
    """As `conversation_ids` takes them; clips are numbered."""
    numbered, count = [], 0
    for role, parts in messages:
        if role == "assistant":
            numbered.append((role, "".join(parts)))
            continue
        shown = []
        for part in parts:
            if isinstance(part, Upload):
                part = Speech(count)
                count += 1
            shown.append(part)
        numbered.append((role, shown))
    return numbered


def _give_back():
    """Give freed memory back to the system: glibc keeps what was large."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
