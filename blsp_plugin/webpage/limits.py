"""What a visitor may send, and how it is said when something is wrong.

Authors
 * The blsp_plugin team 2026
"""

import os
from typing import NamedTuple

from blsp_plugin.data.audio import probe_speech
from blsp_plugin.errors import BadInput

__all__ = ["Limits", "check_turn", "sentence"]

_FORMATS = "Please give a whole WAV, FLAC, MP3 or Ogg file"


class Limits(NamedTuple):
    """Of one page.

    Arguments
    ---------
    seconds : float
        Longest clip.
    megabytes : float
        Largest upload.
    characters : int
        Longest text.
    new_tokens : int
        Longest answer.
    queue : int
        Turns that may wait for the model.
    visitors : int
        Conversations that are kept; beyond, the one that rests longest ends.
    idle : float
        Seconds without a turn after which a conversation ends.
    """

    seconds: float = 120
    megabytes: float = 20
    characters: int = 2000
    new_tokens: int = 128
    queue: int = 16
    visitors: int = 32
    idle: float = 3600


def check_turn(text, path, limits, prompt):
    """Refuse a turn before anything is done with it.

    Arguments
    ---------
    text : str or None
        What was typed.
    path : str or None
        The clip; its header alone is read.
    limits : Limits
    prompt : Prompt
        Knows the control tokens.

    Returns
    -------
    str or None
        The text, without spaces around it; None where there is none.

    Raises
    ------
    BadInput
        A sentence for the visitor.

    Example
    -------
    >>> check_turn(" ", None, Limits(), None)
    Traceback (most recent call last):
        ...
    blsp_plugin.errors.BadInput: Type an instruction, give a clip, or both.
    """
    text = (text or "").strip() or None
    if text is None and path is None:
        raise BadInput("Type an instruction, give a clip, or both.")
    if text is not None:
        if len(text) > limits.characters:
            raise BadInput(
                f"Your text has {len(text)} characters; the most that can be "
                f"read here is {limits.characters}."
            )
        try:
            prompt.check_text(text, "Your text")
        except BadInput as error:
            raise BadInput(sentence(error)) from error
    if path is not None:
        _check_clip(path, limits)
    return text


def _check_clip(path, limits):
    name = os.path.basename(path)
    megabytes = os.path.getsize(path) / 2**20 if os.path.isfile(path) else 0
    if megabytes > limits.megabytes:
        raise BadInput(
            f"{name} has {megabytes:.1f} MB; the most that is taken here is "
            f"{limits.megabytes:g} MB."
        )
    try:
        seconds = probe_speech(path).duration
    except BadInput as error:
        raise BadInput(sentence(error, path)) from error
    if seconds > limits.seconds:
        raise BadInput(
            f"{name} lasts {seconds:.1f} seconds; the longest clip that is "
            f"taken here is {limits.seconds:g} seconds."
        )


def sentence(error, path=None):
    """An error of the library, as it is said to a visitor.

    Arguments
    ---------
    error : BadInput
        Its mend is for somebody at the command line.
    path : str, optional
        The visitor's clip, whose folder is nobody's business.

    Returns
    -------
    str

    Example
    -------
    >>> error = BadInput("/tmp/x/a.wav: holds no samples; drop the row")
    >>> sentence(error, "/tmp/x/a.wav")
    'a.wav holds no samples. Please give a whole WAV, FLAC, MP3 or Ogg file.'
    >>> sentence(BadInput("the text is too long; make it shorter"))
    'The text is too long; make it shorter.'
    """
    text = str(error)
    if path is not None and text.startswith(f"{path}: "):
        fault = text.removeprefix(f"{path}: ").partition("; ")[0]
        if fault.startswith(("not ", "cut ")):
            fault = f"is {fault}"
        text = f"{os.path.basename(path)} {fault}. {_FORMATS}"
    else:
        text = text[:1].upper() + text[1:]
    return text.rstrip(".") + "."
