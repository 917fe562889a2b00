"""Behaviours: what the LLM is asked to do with a transcript.

The paper's one behaviour is to continue the text (arXiv 2309.00916, section
3.1); its second version shows that mixing in others helps. A behaviour is
declared in YAML: a name, an instruction and perhaps paraphrases of it, how to
decode, and the share of the clips that get it.

Authors
 * The blsp_plugin team 2026
"""

import dataclasses
import hashlib
import re

from blsp_plugin.errors import BadInput

__all__ = ["Behaviour", "row_key"]

_NAME = re.compile(r"[A-Za-z0-9_]+")


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """One thing that the LLM is asked to do with a transcript.

    Arguments
    ---------
    name : str
        Letters, digits and underscores; part of the output's row IDs.
    instruction : str
        What the LLM is told.
    max_new_tokens : int
        Longest response; a longer one is cut and kept as not ended.
    share : float
        Fraction of the clips that get this behaviour, in (0, 1].
    num_beams : int
        1 is greedy.
    stop : str, optional
        A text that ends the response, for base models that don't end.
    paraphrases : sequence of str
        Other ways to say the instruction. A clip gets one of all, each of
        them equally often.

    Raises
    ------
    BadInput
        If one of these makes no sense.

    Example
    -------
    >>> Behaviour("repeat", "Please repeat the following words.").share
    1.0
    """

    name: str
    instruction: str
    max_new_tokens: int = 64
    share: float = 1.0
    num_beams: int = 1
    stop: str | None = None
    paraphrases: tuple = ()

    def __post_init__(self):
        if not _NAME.fullmatch(str(self.name)):
            raise BadInput(
                f"behaviour {self.name!r}: use letters, digits and "
                "underscores in its name"
            )
        if not 0 < self.share <= 1:
            raise BadInput(
                f"behaviour {self.name}: share {self.share} is not in (0, 1]"
            )
        for field in ("max_new_tokens", "num_beams"):
            if getattr(self, field) < 1:
                raise BadInput(
                    f"behaviour {self.name}: {field} must be at least 1"
                )
        if not isinstance(self.paraphrases, list | tuple):
            raise BadInput(
                f"behaviour {self.name}: paraphrases must be a list; put "
                f"brackets around {self.paraphrases!r}"
            )
        # YAML gives a list; a tuple can be hashed.
        object.__setattr__(self, "paraphrases", tuple(self.paraphrases))
        for said in self.instructions:
            if not isinstance(said, str) or not said.strip():
                raise BadInput(
                    f"behaviour {self.name}: instruction {said!r} is no text"
                )
            if self.instructions.count(said) > 1:
                raise BadInput(
                    f"behaviour {self.name}: instruction {said!r} is there "
                    "twice"
                )

    @property
    def instructions(self):
        """The instruction and its paraphrases, a tuple of str."""
        return (self.instruction, *self.paraphrases)

    def draw(self, clip_id, seed=0):
        """Which instruction a clip gets, if any.

        It depends on nothing but the arguments: not on the other clips, their
        order or the other behaviours. A larger share only adds clips, and
        changes nobody's instruction.

        Arguments
        ---------
        clip_id : str
            The clip.
        seed : int
            Another seed chooses other clips.

        Returns
        -------
        int or None
            Index in ``instructions``; None if it does not get this behaviour.

        Example
        -------
        >>> half = Behaviour("label", "Name its topic.", share=0.5,
        ...     paraphrases=["What is it about?"])
        >>> drawn = [half.draw(f"clip{i}") for i in range(1000)]
        >>> 200 < drawn.count(0) < 300 and 200 < drawn.count(1) < 300
        True
        """
        if self.share == 1 and not self.paraphrases:
            return 0
        name = f"{seed}\x1f{self.name}\x1f{clip_id}".encode()
        digest = hashlib.sha256(name).digest()
        # Two draws of different bytes don't know of each other.
        if int.from_bytes(digest[:8], "big") >= self.share * 2**64:
            return None
        choice = int.from_bytes(digest[8:16], "big")
        return choice * len(self.instructions) >> 64


def row_key(row, behaviour):
    """ID of a response; names have no "-", so that it can be taken apart.

    Arguments
    ---------
    row : dict
        With the key ``id``.
    behaviour : Behaviour
        What was asked for.

    Returns
    -------
    str
    """
    return f"{row['id']}-{behaviour.name}"
