"""Recordings at other speeds: `blsp_plugin.data.speeds`."""

import logging
import os

import soundfile
import torch

from blsp_plugin.data.audio import read_speech
from blsp_plugin.data.speech_folder import NEEDED
from blsp_plugin.data.speeds import play_at_speeds
from blsp_plugin.data.tsv import read_tsv


def clip(path, hertz=440.0):
    """Write a second of a tone; its row."""
    time = torch.arange(16000) / 16000
    soundfile.write(path, 0.5 * torch.sin(2 * torch.pi * hertz * time), 16000)
    fields = {"id": path.stem, "wav": str(path), "split": "train"}
    return dict.fromkeys(NEEDED, "") | fields | {"text": "A tone."}


def written(folder):
    """Rows of the corpus by id."""
    table = read_tsv(folder / "manifest.tsv", NEEDED)
    return {row["id"]: row for _, row, reason in table if not reason}


def test_faster_is_shorter_and_higher(tmp_path):
    """All of the clip is there; text and split stay."""
    play_at_speeds([clip(tmp_path / "a.wav")], tmp_path / "more", (0.9, 1.1))
    rows = written(tmp_path / "more")
    assert set(rows) == {"a_0.9", "a_1.1"}
    for speed in (0.9, 1.1):
        row = rows[f"a_{speed}"]
        assert (row["text"], row["split"]) == ("A tone.", "train")
        samples = read_speech(tmp_path / "more" / row["wav"])
        assert abs(len(samples) - 16000 / speed) <= 1
        assert abs(float(row["duration_s"]) - 1 / speed) < 0.001
        spectrum = torch.fft.rfft(samples).abs()
        hertz = float(spectrum.argmax()) * 16000 / len(samples)
        assert abs(hertz - 440 * speed) < 1


def test_a_second_run_goes_on(tmp_path):
    """What is there is not made again, and the table has all."""
    one, other = clip(tmp_path / "a.wav"), clip(tmp_path / "b.wav", 300.0)
    folder = tmp_path / "more"
    play_at_speeds([one], folder, (0.9,))
    first = folder / written(folder)["a_0.9"]["wav"]
    os.utime(first, ns=(1, 1))
    play_at_speeds([one, other], folder, (0.9,))
    assert first.stat().st_mtime_ns == 1
    assert set(written(folder)) == {"a_0.9", "b_0.9"}


def test_another_recording_in_its_place_is_played_anew(tmp_path):
    """A copy belongs to what was recorded, not to a file's name."""
    row, folder = clip(tmp_path / "a.wav"), tmp_path / "more"
    play_at_speeds([row], folder, (0.9,))
    before = written(folder)["a_0.9"]["wav"]
    play_at_speeds([clip(tmp_path / "a.wav", 300.0)], folder, (0.9,))
    assert written(folder)["a_0.9"]["wav"] != before


def test_what_cannot_be_read_is_named_and_left_out(tmp_path, caplog):
    """One damaged clip costs no other."""
    good, bad = clip(tmp_path / "a.wav"), clip(tmp_path / "b.wav")
    (tmp_path / "b.wav").write_bytes(b"no audio")
    with caplog.at_level(logging.WARNING):
        play_at_speeds([bad, good], tmp_path / "more", (1.1,))
    assert set(written(tmp_path / "more")) == {"a_1.1"}
    assert f"{tmp_path / 'b.wav'}: not readable as audio" in caplog.text
