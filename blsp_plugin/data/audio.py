"""Reading and writing speech: any file of libsndfile's, as 16 kHz mono.

Authors
 * The blsp_plugin team 2026
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import soundfile
import torch
import torchaudio
from speechbrain.dataio import audio_io
from speechbrain.utils.parallel import parallel_map

from blsp_plugin.errors import BadInput
from blsp_plugin.files import atomic_write

__all__ = [
    "SAMPLE_RATE",
    "AudioInfo",
    "find_stretch",
    "probe_many",
    "probe_speech",
    "read_speech",
    "resampled_length",
    "to_speech",
    "write_speech",
]

SAMPLE_RATE = 16000

# An MP3 without a length tag has its length guessed from its size, a title
# included; the guess is some samples too long.
MP3_SLACK = 2 * 1152

# Seconds that a stretch may end behind its recording: times are rounded.
END_SLACK = 0.1

# libsndfile reads a WAV or Ogg that is cut short as a shorter clip, and notes
# it in its log only. A WAV that promises nearly 2 or 4 GiB came from a pipe.
WAV_PROMISE = re.compile(r"data\s*: (\d+) \(should be (\d+)\)")
WAV_STREAMED = 0x7FFF0000
OGG_DAMAGE = re.compile(r"Ogg ?: (Last page lacks .*|Junk after .*)\.")


class AudioInfo(NamedTuple):
    """What a header says about a clip.

    Arguments
    ---------
    samples_16k : int
        Samples that `read_speech` returns for the whole file.
    duration : float
        Seconds.
    sample_rate : int
        The file's own rate in Hz.
    channels : int
        The file's own channels.
    """

    samples_16k: int
    duration: float
    sample_rate: int
    channels: int


def resampled_length(samples, sample_rate):
    """Samples at 16 kHz of a clip that has ``samples`` at ``sample_rate``.

    Arguments
    ---------
    samples : int
        Samples at the clip's own rate.
    sample_rate : int
        That rate in Hz.

    Returns
    -------
    int
        ``ceil(samples * 16000 / sample_rate)``, exactly.

    Example
    -------
    >>> resampled_length(44100, 44100), resampled_length(3, 48000)
    (16000, 1)
    """
    return -(-samples * SAMPLE_RATE // sample_rate)


def _read_header(path):
    """Open the header of ``path``; BadInput where there is no audio in it."""
    if not os.path.isfile(path):
        raise BadInput(
            f"{path}: no such audio file; correct the path or data_root"
        )
    try:
        header = soundfile.info(path, verbose=True)
    except (RuntimeError, TypeError, UnicodeError) as error:
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise BadInput(
            f"{path}: not readable as audio ({reason}); convert it to WAV or "
            "FLAC, or drop the row"
        ) from error
    if header.frames >= 2**62:
        raise BadInput(
            f"{path}: its header does not say how long it is; encode it again"
        )
    promise = WAV_PROMISE.search(header.extra_info)
    if promise and int(promise[2]) < int(promise[1]) < WAV_STREAMED:
        raise BadInput(
            f"{path}: cut short, {promise[2]} of {promise[1]} bytes of audio "
            "are there; copy it again or drop the row"
        )
    damage = OGG_DAMAGE.search(header.extra_info)
    if damage:
        raise BadInput(
            f"{path}: cut short or damaged ({damage[1]}); copy it again or "
            "drop the row"
        )
    if header.frames < 1:
        raise BadInput(f"{path}: holds no samples; drop the row")
    return header


def probe_speech(path):
    """Learn a clip's length from its header, without decoding it.

    Arguments
    ---------
    path : str or os.PathLike
        An audio file.

    Returns
    -------
    AudioInfo
        Its ``samples_16k`` is exactly what `read_speech` returns.

    Raises
    ------
    BadInput
        Missing, not audio, no samples, a WAV or Ogg that is cut short. (FLAC
        and MP3 show a cut only when they are decoded.)

    Example
    -------
    >>> path = getfixture("tmp_path") / "clip.wav"
    >>> soundfile.write(path, [0.0] * 44100, 44100)
    >>> probe_speech(path)
    AudioInfo(samples_16k=16000, duration=1.0, sample_rate=44100, channels=1)
    """
    header = _read_header(os.fspath(path))
    return AudioInfo(
        resampled_length(header.frames, header.samplerate),
        header.frames / header.samplerate,
        header.samplerate,
        header.channels,
    )


def find_stretch(path, info, begin, end):
    """Samples of a stretch of a recording that is given in seconds.

    Arguments
    ---------
    path : str or os.PathLike
        The recording, for messages.
    info : AudioInfo
        Its own.
    begin : float
        Seconds.
    end : float
        Seconds; up to 0.1 s behind the recording's end counts as the end.

    Returns
    -------
    start : int
        First sample, at the recording's own rate.
    stop : int
        One past the last sample.

    Raises
    ------
    BadInput
        The recording has no such stretch.

    Example
    -------
    >>> find_stretch("a.wav", AudioInfo(16000, 1.0, 8000, 1), 0.25, 1.01)
    (2000, 8000)
    """
    rate, length = info.sample_rate, info.duration
    last = min(end, length) if end <= length + END_SLACK else end
    try:
        start, stop = round(begin * rate), round(last * rate)
    except (ValueError, OverflowError):  # not finite
        start = stop = 0
    if not 0 <= start < stop <= round(length * rate):
        raise BadInput(
            f"{path}: {begin} s to {end} s is no stretch of its {length:.2f} "
            "s; correct the times or drop the row"
        )
    return start, stop


def _probe_or_error(path):
    try:
        return probe_speech(path)
    except BadInput as error:
        return error


def probe_many(paths, threads=8):
    """`probe_speech` over many files, in threads, with a progress bar.

    Arguments
    ---------
    paths : list of str
        Audio files.
    threads : int
        Headers read at a time; reading them waits for the disk.

    Returns
    -------
    list
        For each path its `AudioInfo`, or the `BadInput` that it raised.

    Example
    -------
    >>> [error] = probe_many(["nowhere.wav"])
    >>> str(error)
    'nowhere.wav: no such audio file; correct the path or data_root'
    """
    with ThreadPoolExecutor(threads) as pool:
        return list(
            parallel_map(
                _probe_or_error,
                paths,
                chunk_size=64,
                executor=pool,
                progress_bar_kwargs={"desc": "audio headers", "unit": "clip"},
            )
        )


def read_speech(path, start=None, stop=None):
    """Read a clip, or a stretch of it, as the encoder wants it.

    Any rate is resampled, any number of channels averaged, any length taken.

    Arguments
    ---------
    path : str or os.PathLike
        An audio file: WAV, FLAC, Ogg (Vorbis, Opus), MP3, ...
    start : int, optional
        First sample, at the file's own rate. Default: 0.
    stop : int, optional
        One past the last sample, at the file's own rate. Default: the end.

    Returns
    -------
    torch.Tensor
        float32, shape (samples,), 16 kHz mono.

    Raises
    ------
    BadInput
        Missing, not audio, cut short or damaged, no samples, NaN or infinite
        samples, a stretch that is not in the file.

    Example
    -------
    >>> path = getfixture("tmp_path") / "clip.wav"
    >>> soundfile.write(path, [[0.5, -0.5]] * 48000, 48000)
    >>> read_speech(path).shape, read_speech(path, 24000, 30000).shape
    (torch.Size([16000]), torch.Size([2000]))
    """
    path = os.fspath(path)
    header = _read_header(path)
    start = 0 if start is None else start
    stop = header.frames if stop is None else stop
    if not 0 <= start < stop <= header.frames:
        raise BadInput(
            f"{path}: samples {start} to {stop} asked, it has "
            f"{header.frames}; correct start and stop"
        )
    wanted = stop - start
    try:
        signal, rate = audio_io.load(
            path, dtype=torch.float32, frame_offset=start, num_frames=wanted
        )
    except RuntimeError as error:
        raise BadInput(
            f"{path}: cut short or damaged ({error.__cause__}); copy it again "
            "or drop the row"
        ) from error
    signal = signal.mean(0)
    slack = MP3_SLACK if header.subtype.startswith("MPEG") else 0
    missing = wanted - len(signal)
    if missing > slack or len(signal) == 0:
        raise BadInput(
            f"{path}: cut short, {len(signal)} of {wanted} samples could be "
            "decoded; copy or encode it again, or drop the row"
        )
    signal = torch.nn.functional.pad(signal, (0, missing))
    if not torch.isfinite(signal).all():
        raise BadInput(
            f"{path}: has NaN or infinite samples; export it again or drop "
            "the row"
        )
    return _resampled(signal, rate)


def _resampled(signal, rate):
    """A signal of shape (samples,) at 16 kHz."""
    if rate == SAMPLE_RATE:
        return signal
    length = resampled_length(len(signal), rate)
    signal = torchaudio.functional.resample(signal, rate, SAMPLE_RATE)
    # torchaudio rounds the new length in float32, which is one off at times.
    return torch.nn.functional.pad(signal, (0, length - len(signal)))


def to_speech(audio):
    """Whatever somebody calls audio, as the encoder wants it.

    Arguments
    ---------
    audio : str, os.PathLike, torch.Tensor or tuple
        A file; samples of shape (samples,), float, 16 kHz; or samples (a
        tensor or an array) of shape (samples,) or (channels, samples) with
        their rate in Hz, as torchaudio loads them.

    Returns
    -------
    torch.Tensor
        float32, shape (samples,), 16 kHz mono.

    Raises
    ------
    BadInput
        See `read_speech`; no samples, NaN or infinite ones, another shape.

    Example
    -------
    >>> to_speech((torch.zeros(2, 48000), 48000)).shape
    torch.Size([16000])
    """
    if isinstance(audio, str | os.PathLike):
        return read_speech(audio)
    rate, flat = SAMPLE_RATE, (1,)
    if isinstance(audio, tuple | list) and len(audio) == 2:
        (audio, rate), flat = audio, (1, 2)
    try:
        signal = torch.as_tensor(audio)
    except (TypeError, ValueError, RuntimeError):
        signal = torch.tensor(0)  # no samples, whatever it is
    if (
        signal.ndim not in flat
        or not signal.is_floating_point()
        or not signal.numel()
        or not signal.isfinite().all()
        or rate not in range(1000, 1000000)
    ):
        raise BadInput(
            f"audio of shape {tuple(signal.shape)}, {signal.dtype}, at {rate} "
            "Hz: give a file, finite float samples of shape (samples,) at 16 "
            "kHz, or (samples, rate) with shape (samples,) or (channels, "
            "samples)"
        )
    signal = signal.float()
    return _resampled(signal.mean(0) if signal.ndim == 2 else signal, rate)


def write_speech(path, signal):
    """Write a clip as FLAC, 16 bits, whole or not at all.

    Arguments
    ---------
    path : str or os.PathLike
        The file; its folder is made if need be.
    signal : torch.Tensor
        float32, shape (samples,), 16 kHz mono; clamped to [-1, 1].

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.flac"
    >>> write_speech(path, torch.tensor([0.5, -2.0]))
    >>> read_speech(path)
    tensor([ 0.5000, -1.0000])
    """
    samples = signal.clamp(-1, 1).numpy()
    with atomic_write(path, "wb") as stream:
        soundfile.write(stream, samples, SAMPLE_RATE, format="FLAC")
