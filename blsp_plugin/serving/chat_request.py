"""The JSON of a caller -> a checked request; nothing in it is trusted.

No field is ever a path or an address that is opened: speech comes as base64
in ``input_audio``, and there is no other way in.

Authors
 * The blsp_plugin team 2026
"""

import base64
import binascii
import hashlib
import json
import math
from typing import NamedTuple

from blsp_plugin.serving.engine import Wish
from blsp_plugin.serving.refusals import Refusal

__all__ = ["ChatRequest", "Upload", "parse_request"]

FORMATS = ("wav", "mp3", "flac", "ogg", "opus", "aiff")
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
# Without them a caller gets the same answer, so they are not refused.
_HARMLESS = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "store",
    "tool_choice",
    "user",
}
# Would change the answer: only the value that asks for nothing.
_NOTHING = {
    "frequency_penalty": 0,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "logprobs": False,
    "modalities": ["text"],
    "n": 1,
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "tools": [],
    "top_logprobs": 0,
}
_MOST_MARKS = 100_000  # a few bytes of JSON can become a hundred in memory
_MOST_STOPS = 4
_LONGEST_STOP = 100  # characters


class Upload(NamedTuple):
    """A clip as a caller has sent it.

    Arguments
    ---------
    data : bytes
        A file of some format.
    digest : bytes
        Of the data.
    where : str
        Its place in the request.
    """

    data: bytes
    digest: bytes
    where: str


class ChatRequest(NamedTuple):
    """A request whose every field has been looked at.

    Arguments
    ---------
    messages : list of tuple
        (role, parts): of texts and `Upload`; the assistant's is one text.
    model : str or None
        As the caller named it.
    wish : Wish
        ``max_new_tokens`` is None where the caller does not say.
    stream : bool
        Whether to send the answer in pieces.
    include_usage : bool
        Whether the stream ends with the counts.
    """

    messages: list
    model: str
    wish: Wish
    stream: bool
    include_usage: bool

    @property
    def uploads(self):
        """All clips, in order."""
        return [
            part
            for _, parts in self.messages
            for part in parts
            if isinstance(part, Upload)
        ]


def parse_request(body, limits):
    """Read and check a request.

    Arguments
    ---------
    body : bytes
        JSON.
    limits : Limits
        Of the server.

    Returns
    -------
    ChatRequest

    Raises
    ------
    Refusal
        Naming the field.
    """
    asked = _json(body)
    if not isinstance(asked, dict):
        raise Refusal("the request must be a JSON object")
    asked = {key: value for key, value in asked.items() if value is not None}
    model = asked.pop("model", None)
    if model is not None:
        _expect(isinstance(model, str), "model", "give its name")
    messages = _messages(asked.pop("messages", None), limits)
    stream = asked.pop("stream", False)
    _expect(isinstance(stream, bool), "stream", "give true or false")
    usage = _include_usage(asked.pop("stream_options", None), stream)
    wish = Wish(
        _max_tokens(asked, limits),
        _number(asked, "temperature", 0.0, 0, 2),
        _number(asked, "top_p", 1.0, 0, 1),
        _seed(asked),
        _stops(asked),
    )
    _expect(wish.top_p > 0, "top_p", "give a number above 0, up to 1")
    for key, value in asked.items():
        if key in _NOTHING:
            known = value == _NOTHING[key] and not (
                isinstance(value, bool) and _NOTHING[key] is not False
            )
            _expect(known, key, "is not supported here; leave it out")
        elif key not in _HARMLESS:
            _expect(False, key[:60], "is not known here; leave it out")
    return ChatRequest(messages, model, wish, stream, usage)


def _expect(condition, param, message):
    if not condition:
        raise Refusal(f"{param}: {message}", param)


def _json(body):
    # Neither base64 nor any text that an LLM has room for has so many.
    if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_MARKS:
        raise Refusal("the request has too many parts; send less", status=413)
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise Refusal("the request is not UTF-8; send JSON") from error
    except RecursionError as error:
        raise Refusal("the request is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise Refusal(f"the request is not JSON ({error})") from error
    except ValueError as error:
        raise Refusal("the request has a number that is too long") from error


def _no_constant(name):
    raise json.JSONDecodeError(f"{name} is no value", name, 0)


def _messages(messages, limits):
    _expect(isinstance(messages, list), "messages", "give a list")
    _expect(messages, "messages", "is empty")
    most = limits.messages
    if len(messages) > most:
        raise Refusal(
            f"messages: {len(messages)} are more than {most}; begin a new "
            "conversation",
            "messages",
        )
    found, clips = [], 0
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        _expect(isinstance(message, dict), where, "give an object")
        message = {k: v for k, v in message.items() if v is not None}
        role = message.pop("role", None)
        known = isinstance(role, str) and role in ROLES
        _expect(known, f"{where}.role", f"give one of {', '.join(ROLES)}")
        role = ROLES[role]
        _expect(
            role != "system" or number == 0,
            f"{where}.role",
            "only the first message may be the system's",
        )
        content = message.pop("content", "" if role == "assistant" else None)
        message.pop("name", None)
        for key in message:
            _expect(False, f"{where}.{key}"[:60], "is not supported here")
        parts = _parts(content, role, f"{where}.content")
        clips += sum(isinstance(part, Upload) for part in parts)
        if clips > limits.clips:
            raise Refusal(
                f"messages: more than {limits.clips} clips; begin a new "
                "conversation",
                "messages",
            )
        found.append((role, parts))
    _expect(found[-1][0] == "user", "messages", "the last must be the user's")
    return found


def _parts(content, role, where):
    if isinstance(content, str):
        return [_text(content, where)]
    _expect(isinstance(content, list), where, "give a text or a list of parts")
    _expect(content, where, "is empty")
    parts = []
    for number, part in enumerate(content):
        place = f"{where}[{number}]"
        _expect(isinstance(part, dict), place, "give an object")
        kind = part.get("type")
        if kind == "text":
            parts.append(_text(part.get("text"), f"{place}.text"))
        elif kind == "input_audio" and role == "user":
            parts.append(_upload(part.get("input_audio"), place))
        else:
            _expect(
                False,
                f"{place}.type",
                "give text, or input_audio in a user's message",
            )
    return parts


def _text(text, where):
    _expect(isinstance(text, str), where, "give a text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refusal(f"{where}: has half a surrogate pair", where) from error
    return text


def _upload(audio, place):
    where = f"{place}.input_audio"
    _expect(isinstance(audio, dict), where, "give data and format")
    kind, data = audio.get("format"), audio.get("data")
    known = isinstance(kind, str) and kind in FORMATS
    _expect(known, f"{where}.format", f"give one of {', '.join(FORMATS)}")
    _expect(isinstance(data, str), f"{where}.data", "give base64")
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(
            f"{where}.data: is not base64 ({error})", f"{where}.data"
        ) from error
    _expect(raw, f"{where}.data", "is empty")
    return Upload(raw, hashlib.sha256(raw).digest(), where)


def _include_usage(options, stream):
    if options is None:
        return False
    _expect(isinstance(options, dict), "stream_options", "give an object")
    _expect(stream, "stream_options", "goes with stream: true")
    for key in options:
        known = key in ("include_usage", "include_obfuscation")
        _expect(known, "stream_options", "only include_usage is known")
    usage = options.get("include_usage")
    usage = False if usage is None else usage
    where = "stream_options.include_usage"
    _expect(isinstance(usage, bool), where, "give true or false")
    return usage


def _max_tokens(asked, limits):
    given = None
    for name in ("max_tokens", "max_completion_tokens"):
        value = asked.pop(name, None)
        if value is None:
            continue
        whole = isinstance(value, int) and not isinstance(value, bool)
        _expect(whole and value >= 1, name, "give a whole number from 1 on")
        most = limits.new_tokens
        _expect(value <= most, name, f"answers have at most {most} tokens here")
        given = value
    return given


def _number(asked, name, default, least, most):
    value = asked.pop(name, default)
    fine = isinstance(value, int | float) and not isinstance(value, bool)
    fine = fine and least <= value <= most and math.isfinite(value)
    _expect(fine, name, f"give a number from {least} to {most}")
    return float(value)


def _seed(asked):
    seed = asked.pop("seed", None)
    if seed is None:
        return None
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    fine = whole and 0 <= seed < 2**63
    _expect(fine, "seed", "give a whole number from 0 on, below 2**63")
    return seed


def _stops(asked):
    stops = asked.pop("stop", None)
    if stops is None:
        return ()
    stops = [stops] if isinstance(stops, str) else stops
    fine = isinstance(stops, list) and len(stops) <= _MOST_STOPS
    _expect(fine, "stop", f"give a text, or up to {_MOST_STOPS}")
    for stop in stops:
        fine = isinstance(stop, str) and 0 < len(stop) <= _LONGEST_STOP
        _expect(fine, "stop", f"give texts of 1 to {_LONGEST_STOP} characters")
        _text(stop, "stop")
    return tuple(stops)
