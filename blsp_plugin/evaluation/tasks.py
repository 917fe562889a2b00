"""A task in one short object: what is asked, of what, and how it is scored.

Authors
 * The blsp_plugin team 2026
"""

import json
import zlib
from dataclasses import dataclass, field

from blsp_plugin.errors import BadInput
from blsp_plugin.scoring import Choices

__all__ = ["Choices", "Task"]


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
        A `blsp_plugin.evaluation.metrics.CorpusMetric`.
    text_key : str, optional
        Column of the manifest that holds the transcript; None where there are
        no transcripts, and so no system that reads them.
    reference_key : str, optional
        Column that holds the wanted answer; the transcript when not given.
        ``slots.size`` is what the JSON in column ``slots`` has as ``size``,
        "none" where it has nothing.
    paraphrases : list of str
        Other wordings of the instruction. Each clip is asked in one wording,
        the same for all systems, so that the score is their average.
    decoding : dict
        For `BLSP.generate`: ``max_new_tokens``, ``num_beams``, ...
    choices : Choices, optional
        Answers are chosen among these instead of written.
    reference_system : str, optional
        The wanted answer is what this system says ("gold").

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
    choices: Choices = None
    reference_system: str = None

    def prepare(self, rows):
        """Learn from the rows what is not given.

        Arguments
        ---------
        rows : list of dict
            From `read_manifest`, all that are evaluated.

        Raises
        ------
        BadInput
            If a row's reference is none of the labels to choose from.
        """
        if self.choices is None:
            return
        if self.choices.labels is None:
            self.choices.labels = sorted({self.reference(row) for row in rows})
        labels = self.choices.wordings()
        for row in rows:
            if self.reference(row) not in labels:
                raise BadInput(
                    f"{row['id']}: {self.reference(row)!r} is none of the "
                    f"{len(labels)} labels of the task {self.name!r}; correct "
                    "the row or the labels"
                )

    @property
    def columns(self):
        """Columns of the manifest beside the transcript, a list of str."""
        if self.reference_key is None:
            return []
        return [self.reference_key.partition(".")[0]]

    def reference(self, row):
        """The wanted answer of a manifest's row.

        Arguments
        ---------
        row : dict
            From `read_manifest`.

        Returns
        -------
        str

        Raises
        ------
        BadInput
            If a column of JSON holds something else.
        """
        column, _, part = (self.reference_key or "text").partition(".")
        if not part:
            return str(row[column])
        try:
            parts = dict(json.loads(row[column] or "{}"))
        except (TypeError, ValueError) as error:
            raise BadInput(
                f"{row['id']}: {column} is no JSON object: {row[column]!r}; "
                "correct the row"
            ) from error
        return str(parts.get(part, "none"))

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
        settings = {
            "task": self.name,
            "instruction": [self.instruction, *self.paraphrases],
        }
        if self.choices is None:
            return {**settings, "decoding": dict(self.decoding)}
        return {**settings, "choices": self.choices.settings()}
