"""Answers as OpenAI's API writes them.

Authors
 * The blsp_plugin team 2026
"""

import json
import time
import uuid
from typing import NamedTuple

__all__ = ["Counts", "Form", "event"]


class Counts(NamedTuple):
    """Tokens of a request.

    Arguments
    ---------
    prompt : int
        Of the whole conversation, speech included.
    audio : int
        Those of them that are speech.
    """

    prompt: int
    audio: int

    def usage(self, written):
        """As JSON.

        Arguments
        ---------
        written : int
            Tokens of the answer.

        Returns
        -------
        dict
        """
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": written,
            "total_tokens": self.prompt + written,
            "prompt_tokens_details": {
                "audio_tokens": self.audio,
                "cached_tokens": 0,
            },
        }


class Form:
    """What all parts of one answer have in common.

    Arguments
    ---------
    model : str
        Name of what answers.
    counts : Counts
        Of the prompt.
    include_usage : bool
        Whether a stream ends with them.
    """

    def __init__(self, model, counts, include_usage=False):
        self.counts = counts
        self.include_usage = include_usage
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text, end):
        """An answer at once.

        Arguments
        ---------
        text : str
            All of it.
        end : End
            How it ended.

        Returns
        -------
        dict
        """
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": end.reason,
        }
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": self.counts.usage(end.tokens),
        }

    def first(self):
        """The chunk before the first piece, a dict."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text):
        """A piece of the answer, a dict.

        Arguments
        ---------
        text : str
            Of it.
        """
        return self._chunk({"content": text})

    def last(self, end):
        """The chunks behind the last piece.

        Arguments
        ---------
        end : End
            How it ended.

        Returns
        -------
        list of dict
        """
        chunks = [self._chunk({}, end.reason)]
        if self.include_usage:
            counted = self._chunk(None)
            counted["usage"] = self.counts.usage(end.tokens)
            chunks.append(counted)
        return chunks

    def _chunk(self, delta, reason=None):
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": None,
            "finish_reason": reason,
        }
        return {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [] if delta is None else [choice],
            **({"usage": None} if self.include_usage else {}),
        }


def event(data):
    """A server-sent event.

    Arguments
    ---------
    data : dict or str
        JSON, or the word that ends a stream.

    Returns
    -------
    bytes
    """
    if not isinstance(data, str):
        data = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {data}\n\n".encode()
