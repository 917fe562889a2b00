"""Recordings played faster and slower, as more data to train on.

Authors
 * The blsp_plugin team 2026
"""

import os

import soundfile
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from blsp_plugin.data.audio import (
    SAMPLE_RATE,
    read_speech,
    to_speech,
    write_speech,
)
from blsp_plugin.data.keys import clip_key, text_key
from blsp_plugin.data.speech_folder import write_table
from blsp_plugin.errors import BadInput

__all__ = ["play_at_speeds"]

logger = get_logger(__name__)


def play_at_speeds(rows, folder, speeds=(0.9, 1.1)):
    """Write clips at other speeds as a corpus; goes on where it was stopped.

    Faster is higher too, so each is somebody else's voice (speed perturbation,
    Ko et al. 2015, Interspeech). The toolkit's `SpeedPerturb` draws a speed at
    each reading; files have encoder states that can be kept.

    Arguments
    ---------
    rows : sequence of dict
        Of a speech folder's table, with the path of each clip as ``wav``.
        Clips that cannot be read are named and left out.
    folder : str
        Gets ``wav/*/*.flac`` (16 kHz) and, at last, ``manifest.tsv``; see
        `blsp_plugin.data.speech_folder`.
    speeds : sequence of float
        Each clip is written once for each; 1 would be as it is.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> soundfile.write(folder / "a.wav", [0.1] * 16000, 16000)
    >>> row = {"id": "a", "wav": f"{folder}/a.wav", "text": "A tone."}
    >>> row |= {"speaker": "", "lang": "en", "split": "train"}
    >>> play_at_speeds([row], folder / "more")
    >>> sorted(soundfile.info(f).frames for f in folder.glob("more/wav/*/*"))
    [14546, 17778]
    """
    played = []
    for row in tqdm(rows, desc=f"{folder}", unit="clip"):
        try:
            played += [_play(row, folder, speed) for speed in speeds]
        except BadInput as error:
            logger.warning("%s", error)
    write_table(played, folder)


def _play(row, folder, speed):
    """A clip at one speed, written where it is not there; its row."""
    key = text_key(clip_key(row["wav"]), speed).hex()
    wav = os.path.join("wav", key[:2], f"{key}.flac")
    path = os.path.join(folder, wav)
    if not os.path.isfile(path):
        rate = int(round(speed * SAMPLE_RATE, -1))  # a small ratio is fast
        write_speech(path, to_speech((read_speech(row["wav"]), rate)))
    seconds = f"{soundfile.info(path).duration:.3f}"
    name = f"{row['id']}_{speed}"
    return {**row, "id": name, "wav": wav, "duration_s": seconds}
