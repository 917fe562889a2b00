"""Somebody's file -> samples, looked at before it is decoded.

Authors
 * The blsp_plugin team 2026
"""

import math
import tempfile

from blsp_plugin.data.audio import SAMPLE_RATE, probe_speech, read_speech
from blsp_plugin.errors import BadInput
from blsp_plugin.serving.refusals import Refusal

__all__ = ["read_upload"]

# What the kinds begin with; libsndfile reads two dozen more, and each is code
# that a stranger's bytes would run through.
_BEGINNINGS = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"ID3", b"FORM")
_MP3_SYNC = 0xFFE0  # eleven ones: a frame of MPEG audio
_MOST_TAPS = 2**22  # of the resampling filter; 11025 Hz has 2**18


def read_upload(upload, limits, fits=None):
    """Decode a clip, if its header promises what there is room for.

    Arguments
    ---------
    upload : Upload
        As it was sent.
    limits : Limits
        Of the server.
    fits : callable, optional
        Samples at 16 kHz -> whether the LLM has room for that much speech.

    Returns
    -------
    torch.Tensor
        float32, shape (samples,), 16 kHz mono.

    Raises
    ------
    Refusal
        If it is no audio, damaged, too long, or has NaN or infinite samples.
    """
    where, data = upload.where, upload.data
    mp3 = int.from_bytes(data[:2], "big") & _MP3_SYNC == _MP3_SYNC
    if not mp3 and not data.startswith(_BEGINNINGS):
        raise Refusal(
            f"{where}: is not WAV, FLAC, Ogg, MP3 or AIFF; convert it", where
        )
    with tempfile.NamedTemporaryFile(prefix="blsp-") as file:
        file.write(data)
        file.flush()
        try:
            _check(probe_speech(file.name), where, limits, fits)
            return read_speech(file.name)
        except BadInput as error:
            # The mend is for a row of a corpus; the path is nobody's business.
            message = str(error).rsplit(";", 1)[0].replace(file.name, where)
            raise Refusal(f"{message}; send another file", where) from error


def _check(info, where, limits, fits):
    if info.duration > limits.seconds:
        raise Refusal(
            f"{where}: has {info.duration:.0f} s, at most "
            f"{limits.seconds:g} s are taken; send a part of it",
            where,
        )
    if fits is not None and not fits(info.samples_16k):
        raise Refusal(
            f"{where}: the LLM has no room for {info.duration:.0f} s more of "
            "speech; send a shorter clip, or begin a new conversation",
            where,
            code="context_length_exceeded",
        )
    frames = info.duration * info.sample_rate
    shared = math.gcd(info.sample_rate, SAMPLE_RATE)
    taps = info.sample_rate // shared * (SAMPLE_RATE // shared)
    if (
        frames * info.channels > limits.seconds * 2 * 48000
        or info.channels > 64
        or not 1000 <= info.sample_rate <= 400_000
        or taps > _MOST_TAPS
    ):
        raise Refusal(
            f"{where}: {info.channels} channels at {info.sample_rate} Hz; "
            "convert it to mono, 16000 Hz",
            where,
        )
