"""Reading speech: every format, rate and kind of damage."""

import re
import struct

import numpy as np
import pytest
import soundfile
import torch

from blsp_plugin.data.audio import (
    probe_many,
    probe_speech,
    read_speech,
    resampled_length,
)
from blsp_plugin.errors import BadInput

RATES = (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 96000)


@pytest.fixture
def noise():
    return 0.1 * np.random.default_rng(0).standard_normal(48000)


def complaint(call, *args):
    """The one line with which a call refuses its input."""
    with pytest.raises(BadInput) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(args[0]))
    assert ";" in message, "no mend after the reason"
    return message


def cut(path, fraction):
    """Leave only the first part of a file's bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


@pytest.mark.parametrize("rate", RATES)
def test_probe_promises_what_read_returns(tmp_path, rate):
    path = tmp_path / "clip.wav"
    # The last: 1/441 of a sample over an integer, which float32 rounds away.
    for samples in (
        1,
        2,
        159,
        441,
        4411,
        33333,
        63951,
        110274,
        441 * 301 + 102,
    ):
        soundfile.write(path, np.zeros(samples), rate)
        info = probe_speech(path)
        expected = int(np.ceil(samples * 16000 / rate))
        assert info.samples_16k == expected == len(read_speech(path))
        assert info.duration == samples / rate
        assert info[2:] == (rate, 1)


def test_resampled_length_is_exact_where_float32_is_not(tmp_path):
    samples = 441 * 12345 + 102  # 160 * 102 = 37 * 441 + 3
    exact = 160 * 12345 + 38
    assert resampled_length(samples, 44100) == exact
    path = tmp_path / "clip.wav"
    soundfile.write(path, np.zeros(samples, dtype="int16"), 44100)
    assert len(read_speech(path)) == probe_speech(path).samples_16k == exact


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats(tmp_path, noise, suffix):
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, noise, 16000)
    speech = read_speech(path)
    assert speech.dtype == torch.float32
    assert speech.shape == (48000,)
    assert probe_speech(path).samples_16k == 48000
    lossless = suffix in ("wav", "flac")
    assert not lossless or np.allclose(speech.numpy(), noise, atol=1e-4)


def test_stereo_48k_is_averaged_and_resampled(tmp_path):
    time = np.arange(48000) / 48000
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([tone, 0 * tone], 1), 48000)
    assert probe_speech(path) == (16000, 1.0, 48000, 2)
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    middle = slice(200, -200)
    speech = read_speech(path).numpy()
    assert np.allclose(speech[middle], expected[middle], atol=2e-3)


def test_8k_and_longer_than_30_seconds(tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(8000 * 65 + 1), 8000)
    assert len(read_speech(path)) == 2 * (8000 * 65 + 1)


def test_stretch(tmp_path, noise):
    path = tmp_path / "clip.flac"
    soundfile.write(path, noise, 16000)
    whole = read_speech(path)
    assert torch.equal(read_speech(path, 100, 1100), whole[100:1100])
    assert torch.equal(read_speech(path, start=47000), whole[47000:])
    assert torch.equal(read_speech(path, stop=5), whole[:5])
    for start, stop in ((5, 5), (-1, 5), (0, 48001)):
        assert "has 48000" in complaint(read_speech, path, start, stop)


@pytest.mark.parametrize("call", [read_speech, probe_speech])
def test_missing_not_audio_empty(tmp_path, call):
    assert "no such audio file" in complaint(call, tmp_path / "nowhere.wav")
    assert "no such audio file" in complaint(call, tmp_path)
    for name, content in (("a.flac", b"words " * 99), ("b.wav", b"")):
        path = tmp_path / name
        path.write_bytes(content)
        assert "not readable as audio" in complaint(call, path)
    (tmp_path / "c.raw").write_bytes(bytes(64))
    assert "not readable as audio" in complaint(call, tmp_path / "c.raw")
    soundfile.write(tmp_path / "d.wav", np.zeros(0), 16000)
    assert "no samples" in complaint(call, tmp_path / "d.wav")


@pytest.mark.parametrize("fraction", [0.02, 0.5, 0.9, 0.999])
def test_truncated_flac(tmp_path, noise, fraction):
    path = tmp_path / "clip.flac"
    soundfile.write(path, noise, 16000)
    assert "cut short" in complaint(read_speech, cut(path, fraction))


def test_truncated_mp3(tmp_path, noise):
    path = tmp_path / "clip.mp3"
    soundfile.write(path, noise, 16000)
    assert "of 48000 samples" in complaint(read_speech, cut(path, 0.5))


def test_truncated_wav_shows_in_its_header(tmp_path, noise):
    path = tmp_path / "clip.wav"
    soundfile.write(path, noise, 16000)
    cut(path, 0.5)
    for call in (probe_speech, read_speech):
        assert "of 96000 bytes" in complaint(call, path)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.999])
def test_truncated_ogg_shows_in_its_header(tmp_path, noise, subtype, fraction):
    path = tmp_path / "clip.ogg"
    soundfile.write(path, noise, 16000, subtype=subtype)
    assert probe_speech(path).samples_16k == len(read_speech(path)) == 48000
    cut(path, fraction)
    for call in (probe_speech, read_speech):
        assert "cut short or damaged" in complaint(call, path)


def test_wav_from_a_pipe_is_accepted(tmp_path, noise):
    path = tmp_path / "clip.wav"
    soundfile.write(path, noise, 16000)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert probe_speech(path).samples_16k == len(read_speech(path)) == 48000


def test_flac_from_a_pipe_has_no_length(tmp_path, noise):
    path = tmp_path / "clip.flac"
    soundfile.write(path, noise, 16000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the 36 bits of STREAMINFO that count samples
    data[22:26] = bytes(4)
    path.write_bytes(data)
    for call in (probe_speech, read_speech):
        assert "does not say how long" in complaint(call, path)


def test_mp3_without_a_length_tag(tmp_path, noise):
    path = tmp_path / "clip.mp3"
    soundfile.write(
        path, noise, 16000, bitrate_mode="CONSTANT", compression_level=0.5
    )
    data = path.read_bytes()
    info = re.search(b"Xing|Info", data[:200]).start()
    title = b"ID3\x04\0\0\0\0\0#" + bytes(35)
    path.write_bytes(title + data[data.index(data[:2], info) :])
    assert len(read_speech(path)) == probe_speech(path).samples_16k > 48000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(tmp_path, noise, bad):
    noise[7] = bad
    path = tmp_path / "clip.wav"
    soundfile.write(path, noise, 16000, subtype="FLOAT")
    assert "NaN or infinite" in complaint(read_speech, path)


def test_probe_many_keeps_order_and_errors(tmp_path):
    paths = []
    for samples in range(1, 200):
        paths.append(str(tmp_path / f"{samples}.wav"))
        if samples != 77:
            soundfile.write(paths[-1], np.zeros(samples), 16000)
    infos = probe_many(paths)
    assert isinstance(infos.pop(76), BadInput)
    lengths = [info.samples_16k for info in infos]
    assert lengths == [n for n in range(1, 200) if n != 77]
    assert probe_many([]) == []
