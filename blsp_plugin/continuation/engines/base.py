"""What an engine is: requests in, answers out.

An engine first plans a window of requests into batches, then generates batch
by batch. The plan depends on the requests alone, and a batch is always
generated whole, even if a killed run has already written a part of it: in
bfloat16 a text can depend on its batch, so this is what makes a resumed run
equal to an unbroken one, on any number of processes.

Authors
 * The blsp_plugin team 2026
"""

from typing import NamedTuple

__all__ = ["Engine", "Refused", "Request", "own_ids"]


class Request(NamedTuple):
    """One response to be written.

    Arguments
    ---------
    n : int
        Its number in the split.
    key : str
        ID of the response.
    behaviour : Behaviour
        Decoding settings.
    instruction : str
        What the LLM is told: one of the behaviour's.
    text : str
        The transcript in the prompt.
    prompt_ids : tuple of int
        The whole prompt: the text twin of what training will see.
    """

    n: int
    key: str
    behaviour: object
    instruction: str
    text: str
    prompt_ids: tuple


class Refused(NamedTuple):
    """What stands for a response that the engine cannot write.

    Arguments
    ---------
    reason : str
        One line; the row is rejected with it.
    """

    reason: str


class Engine:
    """What every engine does.

    Attributes
    ----------
    window : int
        How many rows it wants to see at once.
    """

    window = 512

    def to(self, device):
        """Get ready to generate; most engines have a device of their own.

        Arguments
        ---------
        device : str
            The toolkit's ``device``.

        Raises
        ------
        BadInput
            If it cannot work.
        """

    def plan(self, requests):
        """Split a window into batches; the same window gives the same ones.

        Arguments
        ---------
        requests : list of Request
            Those of at most ``window`` rows.

        Returns
        -------
        list of list of Request
        """
        raise NotImplementedError

    def generate(self, batches):
        """Write the responses, in groups that are ready to be stored.

        Arguments
        ---------
        batches : iterable of list of Request
            From `plan`, perhaps not all of them, made while it is read.

        Yields
        ------
        list of (Request, Generation or Refused)
        """
        raise NotImplementedError

    def fingerprint(self):
        """Short name of what decides the texts, a str without newlines.

        Its first word is the fingerprint of the LLM's weights, or "unknown"
        where the engine doesn't get to see them.
        """
        raise NotImplementedError

    def describe(self):
        """Everything worth knowing later, a dict for JSON."""
        raise NotImplementedError


def own_ids(tokenizer, ids, stop=None):
    """The tokens of a response without what merely ended it.

    Arguments
    ---------
    tokenizer : transformers.PreTrainedTokenizerBase
        Of the LLM.
    ids : sequence of int
        All that the LLM wrote.
    stop : str, optional
        The behaviour's stop text; it is no part of the response.

    Returns
    -------
    list of int
    """
    # Some end a turn with a token that has no name of its own (Phi-3).
    added = tokenizer.added_tokens_decoder.items()
    special = {i for i, token in added if token.special}
    ids, special = list(ids), special.union(tokenizer.all_special_ids)
    while ids and ids[-1] in special:
        ids.pop()
    while stop and ids and stop in tokenizer.decode(ids):
        ids.pop()
    return ids
