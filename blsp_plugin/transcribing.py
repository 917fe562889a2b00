"""Many files through a speech LLM: batches, bad files, work that goes on.

Authors
 * The blsp_plugin team 2026
"""

import json
import os
from typing import NamedTuple

from blsp_plugin.data.audio import SAMPLE_RATE, read_speech
from blsp_plugin.errors import BadInput
from blsp_plugin.files import disk_errors

__all__ = ["Transcript", "TranscriptFile", "ask_files"]

_ESCAPES = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}


class Transcript(NamedTuple):
    """What came of a file.

    Arguments
    ---------
    path : str
        The file.
    text : str or None
        What the LLM answered; None if the file could not be used.
    seconds : float or None
        Its duration.
    error : str or None
        One line that says what is wrong with it.
    """

    path: str
    text: str
    seconds: float
    error: str

    def line(self, as_json):
        """The file's line in an output, without the newline.

        Arguments
        ---------
        as_json : bool
            A JSON object; else path, a tab, and the text on one line.

        Returns
        -------
        str
        """
        if as_json:
            shown = {
                "path": self.path,
                "text": self.text,
                "seconds": round(self.seconds, 3),
            }
            return json.dumps(shown, ensure_ascii=False)
        return f"{_escaped(self.path)}\t{' '.join(self.text.split())}"


def ask_files(
    speech_llm, paths, instruction, batch_size=16, max_seconds=240, **decoding
):
    """Follow an instruction on many files, in batches, in their order.

    Arguments
    ---------
    speech_llm : SpeechLLM
        Answers.
    paths : iterable of str
        Audio files.
    instruction : str
        What to do with each.
    batch_size : int
        Files of a batch, at most.
    max_seconds : float
        Of a batch as it is padded; a longer file is a batch of its own.
    **decoding : dict
        Passed on to `SpeechLLM.answer_batch`.

    Yields
    ------
    Transcript
        One a file.
    """
    batch = []  # paths with their samples, or with what is wrong
    longest = 0
    for path in paths:
        try:
            wav = read_speech(path)
        except BadInput as error:
            batch.append((path, None, str(error)))
            continue
        size = sum(heard is not None for _, heard, _ in batch)
        longest = max(longest, len(wav))
        full = longest * (size + 1) > max_seconds * SAMPLE_RATE
        if size and (full or size == batch_size):
            yield from _ask_batch(speech_llm, batch, instruction, decoding)
            batch, longest = [], len(wav)
        batch.append((path, wav, None))
    yield from _ask_batch(speech_llm, batch, instruction, decoding)


def _ask_batch(speech_llm, batch, instruction, decoding):
    """Answers of a batch; one by one if one of them is refused."""
    heard = [wav for _, wav, _ in batch if wav is not None]
    answers = None
    try:
        if heard:
            texts = speech_llm.answer_batch(
                heard, instruction, batch_size=len(heard), **decoding
            )
            answers = iter(texts)
    except BadInput as error:
        if len(batch) == 1:
            [(path, wav, _)] = batch
            yield Transcript(path, None, None, f"{path}: {error}")
            return
        for one in batch:
            yield from _ask_batch(speech_llm, [one], instruction, decoding)
        return
    for path, wav, error in batch:
        if wav is None:
            yield Transcript(path, None, None, error)
        else:
            yield Transcript(path, next(answers), len(wav) / SAMPLE_RATE, None)


class TranscriptFile:
    """An output that grows line by line, and is gone on with after a kill.

    A line that was cut is done again. A context manager.

    Arguments
    ---------
    path : str
        The file; it may be there already, from the same command.
    as_json : bool
        See `Transcript.line`.
    paths : sequence of str
        Audio files of the command: a cut line is that of one of them.

    Raises
    ------
    BadInput
        If the file holds something else.
    """

    def __init__(self, path, as_json, paths):
        self.path = path
        self.as_json = as_json
        self.done = set()
        size = 0
        if os.path.exists(path):
            size = self._read(paths)
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        try:
            self.stream = open(path, "ab")
        except OSError as error:
            raise BadInput(
                f"{path}: cannot be written ({error.strerror})"
            ) from error
        self.stream.truncate(size)

    def _read(self, paths):
        """Find what is done; bytes up to the end of the last whole line."""
        try:
            with open(self.path, "rb") as stream:
                content = stream.read()
        except OSError as error:
            raise BadInput(
                f"{self.path}: cannot be read ({error.strerror})"
            ) from error
        size = content.rfind(b"\n") + 1
        *lines, cut = content.split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                line = line.decode("utf-8", "surrogateescape")
                if self.as_json:
                    path = json.loads(line)["path"]
                else:
                    path, _ = line.split("\t")
                self.done.add(path)
            except (ValueError, KeyError, TypeError) as error:
                raise self._foreign(number) from error
        starts = map(self._start, paths) if cut else ()
        if cut and not any(
            start.startswith(cut) or cut.startswith(start) for start in starts
        ):
            raise self._foreign(len(lines) + 1)
        return size

    def _start(self, path):
        """The bytes that a file's line starts with."""
        start = _escaped(path) + "\t"
        if self.as_json:
            start = json.dumps({"path": path}, ensure_ascii=False)[:-1]
        return start.encode("utf-8", "surrogateescape")

    def _foreign(self, number):
        kind = "JSON lines" if self.as_json else "path, tab, text"
        return BadInput(
            f"{self.path}, line {number}: not of this command ({kind}); name "
            "another --output"
        )

    def __contains__(self, path):
        key = path if self.as_json else _escaped(path)
        return key in self.done

    def write(self, transcript):
        """Append a file's line; it survives the process from here on.

        Arguments
        ---------
        transcript : Transcript
            Without an error.
        """
        line = transcript.line(self.as_json) + "\n"
        with disk_errors(self.path):
            self.stream.write(line.encode("utf-8", "surrogateescape"))
            self.stream.flush()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stream.close()


def _escaped(path):
    return "".join(_ESCAPES.get(c, c) for c in path)
