"""Conversations with an LLM that hears, turn by turn.

Nothing is done twice: a clip is encoded in the turn in which it is given, and
the keys and values of all earlier turns are kept. A new turn reads what is new
in the conversation as the chat template writes it; that is everything behind
the first token that is another one than before.

Authors
 * The blsp_plugin team 2026
"""

import time
from itertools import count, takewhile
from typing import NamedTuple

import torch

from blsp_plugin.conversation import Reply, Speech, conversation_ids
from blsp_plugin.data.audio import SAMPLE_RATE
from blsp_plugin.streaming import Choice, Sequence, text_pieces

__all__ = ["Chat", "Clip", "TurnFigures", "embed_tokens"]


_numbers = count()


class Clip(NamedTuple):
    """A clip that was heard.

    Arguments
    ---------
    embeds : torch.Tensor
        Shape (speech tokens, hidden_size).
    samples : int
        Of the clip, 16 kHz.
    number : int
        Another one for each clip that is heard: two hearings of a file are
        two clips.
    """

    embeds: torch.Tensor
    samples: int
    number: int

    @classmethod
    def heard(cls, embeds, samples):
        """A clip with a number of its own."""
        return cls(embeds, samples, next(_numbers))

    @property
    def seconds(self):
        """Its duration."""
        return self.samples / SAMPLE_RATE


class TurnFigures(NamedTuple):
    """What a turn was made of, and how long it took.

    Arguments
    ---------
    speech_tokens : int
        Speech embeddings of the turn's clips.
    prompt_tokens : int
        Tokens of the whole conversation before the reply.
    kept_tokens : int
        Those of them that were not read again.
    reply_tokens : int
        Tokens of the reply.
    ended : bool
        Whether the reply ended by itself; False if it was cut.
    first_token : float
        Seconds from the request to the first token, encoding included.
    seconds : float
        Seconds from the request to the end of the reply.
    """

    speech_tokens: int
    prompt_tokens: int
    kept_tokens: int
    reply_tokens: int
    ended: bool
    first_token: float
    seconds: float


class Chat:
    """A conversation; made by `SpeechLLM.chat`.

    Arguments
    ---------
    speech_llm : SpeechLLM
        The LLM that hears. With LoRA, it is on in all turns.
    system : str, optional
        System message; the prompt's own if not given.

    Example
    -------
    >>> chat = speech_llm.chat()  # doctest: +SKIP
    >>> chat.send("What is said here?", "clip.wav")  # doctest: +SKIP
    >>> chat.send(audio="question.wav")  # doctest: +SKIP
    >>> chat.send("Say that in fewer words.")  # doctest: +SKIP
    """

    def __init__(self, speech_llm, system=None):
        self.speech_llm = speech_llm
        self.figures = None
        if system is not None:
            speech_llm.prompt.check_text(system, "system message")
        self._messages = [] if system is None else [("system", system)]
        self._sequence = Sequence(speech_llm.model.llm)
        self._tokens = []  # what the sequence has read, and more
        self._turn = 0

    @property
    def messages(self):
        """The conversation so far, a list of dict.

        ``role`` and ``content``: a text, or the parts of a user's message,
        each ``{"type": "text", "text": ...}`` or ``{"type": "audio",
        "seconds": ...}``.
        """
        shown = []
        for role, content in self._messages:
            if role == "assistant":
                content = content.text
            elif role == "user":
                content = [
                    {"type": "text", "text": part}
                    if isinstance(part, str)
                    else {"type": "audio", "seconds": part.clip.seconds}
                    for part in content
                ]
            shown.append({"role": role, "content": content})
        return shown

    def send(self, text=None, audio=None, max_new_tokens=128, **choice):
        """Say something and get the reply.

        Arguments
        ---------
        text : str, optional
            What is typed.
        audio : object, optional
            What is spoken: a clip as in `SpeechLLM.answer`, or a list of
            them. At least one of both.
        max_new_tokens : int
            Longest reply, in tokens.
        **choice : dict
            `Choice` of the tokens (``temperature``, ``top_p``, ``seed``);
            greedy if not given.

        Returns
        -------
        str

        Raises
        ------
        BadInput
            If the clip cannot be read, there is nothing to say, a text holds
            control tokens, or the conversation becomes too long for the LLM.
            The conversation then is what it was.
        """
        return "".join(self.stream(text, audio, max_new_tokens, **choice))

    def stream(self, text=None, audio=None, max_new_tokens=128, **choice):
        """Say something and get the reply while it is written.

        Arguments and errors are those of `send`. The turn belongs to the
        conversation when the iterator is used up or closed; of a closed one
        the reply is what was written until then.

        Returns
        -------
        iterator of str
            Pieces of the reply.
        """
        began = time.perf_counter()
        self._turn += 1
        choice = Choice(**choice)
        clips = audio if isinstance(audio, list) else [audio]
        clips = [clip for clip in clips if clip is not None]
        heard = self.speech_llm.hear(clips) if clips else []
        said = [] if text is None else [text]
        message = ("user", said + [Speech(clip) for clip in heard])
        messages = [*self._messages, message]
        ids = conversation_ids(self.speech_llm.prompt, messages)
        tokens = _flat(ids)
        self.speech_llm.check_room(len(tokens), max_new_tokens)
        logits, kept = self._read(ids, tokens)
        figures = TurnFigures(
            sum(len(clip.embeds) for clip in heard),
            len(tokens),
            kept,
            reply_tokens=0,
            ended=False,
            first_token=None,
            seconds=None,
        )
        return self._write(
            logits, messages, max_new_tokens, choice, began, figures
        )

    def _read(self, ids, tokens):
        """Read what is new; logits of the reply's first token."""
        same = takewhile(
            lambda pair: pair[0] == pair[1],
            zip(tokens[:-1], self._tokens, strict=False),
        )
        kept = self._sequence.cut(sum(1 for _ in same))
        self._tokens = tokens
        embeds = embed_tokens(self.speech_llm.model, ids)[kept:]
        return self._sequence.read(embeds), kept

    def _write(self, logits, messages, limit, choice, began, figures):
        turn, ids, text, ended = self._turn, [], "", False
        tokenizer = self.speech_llm.prompt.tokenizer
        first = None

        def tokens():
            nonlocal first
            for token in self._sequence.write(logits, limit, choice):
                if turn != self._turn:
                    raise RuntimeError("another turn of this chat has begun")
                first = first or time.perf_counter() - began
                ids.append(token)
                yield token

        try:
            for piece in text_pieces(tokenizer, tokens()):
                text += piece
                yield piece
            ended = len(ids) < limit
        finally:
            if turn == self._turn:
                self._tokens = self._tokens + ids
                reply = ("assistant", Reply(tuple(ids), text))
                self._messages = [*messages, reply]
                seconds = time.perf_counter() - began
                self.figures = figures._replace(
                    reply_tokens=len(ids),
                    ended=ended,
                    first_token=first or seconds,
                    seconds=seconds,
                )


def _flat(ids):
    """One thing to compare for each token: an id, or a place in a clip."""
    flat = []
    for item in ids:
        if isinstance(item, Speech):
            clip = item.clip
            flat += [(clip.number, n) for n in range(len(clip.embeds))]
        else:
            flat.append(item)
    return flat


def embed_tokens(model, ids):
    """A conversation as embeddings: what any engine can go on from.

    Arguments
    ---------
    model : BLSP
        Gives the embedding table.
    ids : list
        Token ids, and `Speech` of `Clip` where it stands; from
        `conversation_ids`.

    Returns
    -------
    torch.Tensor
        Shape (tokens, hidden_size), in the LLM's dtype.
    """
    llm = model.llm
    texts = [item for item in ids if not isinstance(item, Speech)]
    embeds = llm.embed(torch.tensor(texts, device=llm.device))
    pieces, start, end = [], 0, 0
    for item in ids:
        if isinstance(item, Speech):
            pieces.append(embeds[start:end])
            pieces.append(item.clip.embeds.to(embeds))
            start = end
        else:
            end += 1
    return torch.cat([*pieces, embeds[start:]])
