"""A task in one short object: what is asked, of what, and how it is scored.

Authors
 * The blsp_plugin team 2026
"""

import zlib
from dataclasses import dataclass, field

__all__ = ["Task"]


@dataclass
class Task:
    """What every system is asked to do with every clip.

    Speech recognition, translation and understanding differ in nothing else,
    so a new task is a few lines of YAML.

    Arguments
    ---------
    name : str
        First part of the names of its figures, "asr".
    instruction : str
        Stands before the speech (or its transcript) in the prompt.
    metric : object
        Has ``append(ids, predict, target)``, ``summarize()``, ``scores()``,
        ``clear()``, ``write_stats(filestream)`` and ``columns``, see
        `blsp_plugin.evaluation.metrics.ErrorRates`.
    text_key : str
        Column of the manifest that holds the transcript.
    reference_key : str, optional
        Column that holds the wanted answer; the transcript when not given.
    paraphrases : list of str
        Other wordings of the instruction. Each clip is asked in one wording,
        the same for all systems, so that the score is their average.
    decoding : dict
        For `FrozenLLM.generate`: ``max_new_tokens``, ``num_beams``, ...

    Example
    -------
    >>> from blsp_plugin.evaluation.metrics import ErrorRates
    >>> task = Task("asr", "Please repeat the following words.", ErrorRates())
    >>> task.instruction_for("clip-1")
    'Please repeat the following words.'
    >>> task.reference({"id": "clip-1", "text": "Hello."})
    'Hello.'
    """

    name: str
    instruction: str
    metric: object
    text_key: str = "wrd"
    reference_key: str = None
    paraphrases: list = field(default_factory=list)
    decoding: dict = field(default_factory=dict)

    @property
    def columns(self):
        """Columns of the manifest beside the transcript, a list of str."""
        return [] if self.reference_key is None else [self.reference_key]

    def reference(self, row):
        """The wanted answer of a manifest's row.

        Arguments
        ---------
        row : dict
            From `read_manifest`.

        Returns
        -------
        str
        """
        return str(row[self.reference_key or "text"])

    def instruction_for(self, clip_id):
        """The wording in which a clip is asked.

        Arguments
        ---------
        clip_id : str
            Its id; the wording depends on nothing else.

        Returns
        -------
        str
        """
        wordings = [self.instruction, *self.paraphrases]
        return wordings[zlib.crc32(clip_id.encode()) % len(wordings)]

    def settings(self):
        """All that an answer depends on, for knowing stale ones.

        Returns
        -------
        dict
            Not the metric: answers are scored anew each time.
        """
        return {
            "task": self.name,
            "instruction": [self.instruction, *self.paraphrases],
            "decoding": dict(self.decoding),
        }
