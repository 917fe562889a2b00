"""Speech read into the LLM's tokens by their spelling.

Authors
 * The blsp_plugin team 2026
"""

import torch
from torch import nn
from torch.nn import functional

from blsp_plugin.adapters.ctc import CTCAdapter
from blsp_plugin.embedding_table import SpelledTable
from blsp_plugin.errors import BadInput

__all__ = ["SpelledCTCAdapter"]


class SpelledCTCAdapter(CTCAdapter):
    """A `CTCAdapter` that knows tokens by their letters.

    An LLM's embeddings are near each other where tokens mean the same, so the
    sound of each token has to be learnt by itself, and one that nobody has
    said is not heard. Here CTC compares the frames with vectors that a small
    network makes of the tokens' letters, trained with the rest: what sounds
    alike is mostly spelled alike, so rare tokens are heard by what they share
    with others (letter-to-word encoder: Collobert, Hannun and Synnaeve 2020,
    arXiv 1906.04323). To what the letters say is added how a second map of
    the frame, 0 at first, points along the LLM's embeddings: tokens that are
    said often may be learnt by themselves. What the LLM gets is the mean of
    its own embeddings all the same.

    Arguments
    ---------
    input_size, output_size : int
        Widths of the encoder states and of the LLM's embeddings.
    vocabulary_size : int
        Rows of the LLM's embedding table.
    vector_size : int
        Width of what frames and letters are compared in.
    letters : int
        Bytes of a token that are read, its first.
    spelling_width : int
        Of the network that reads them.
    **options : dict
        See `CTCAdapter`.

    Example
    -------
    >>> from blsp_plugin.embedding_table import EmbeddingTable
    >>> def texts():
    ...     return [b" red", b" red", b" bed"]
    >>> table = EmbeddingTable(torch.nn.Embedding(3, 64), texts)
    >>> adapter = SpelledCTCAdapter(32, 64, 3, vector_size=16, layers=1)
    >>> spelled = adapter.bind(table).rows()
    >>> spelled.shape, torch.equal(spelled[0, :16], spelled[1, :16])
    (torch.Size([3, 80]), True)
    """

    def __init__(
        self,
        input_size,
        output_size,
        vocabulary_size,
        vector_size=256,
        letters=14,
        spelling_width=128,
        **options,
    ):
        super().__init__(input_size, output_size, **options)
        learns = self.project.weight.requires_grad
        self.project = nn.Linear(input_size, vector_size)
        self.project_own = nn.Linear(input_size, output_size)
        for parameter in self.project_own.parameters():
            nn.init.zeros_(parameter)
        self.speller = _Speller(
            vocabulary_size, letters, spelling_width, vector_size
        )
        for part in (self.project, self.project_own, self.speller):
            part.requires_grad_(learns)

    def sizes(self):
        """See `CTCAdapter.sizes`."""
        vocabulary_size, letters = self.speller.letters.shape
        return {
            **super().sizes(),
            "vocabulary_size": vocabulary_size,
            "vector_size": self.project.out_features,
            "letters": letters,
            "spelling_width": self.speller.embed.embedding_dim,
        }

    def bind(self, table):
        """Take the LLM's embeddings and tokens; see `CTCAdapter.bind`.

        Raises
        ------
        BadInput
            If it is for a vocabulary of another size.
        """
        wanted, there = len(self.speller.letters), len(table.embedding.weight)
        if wanted != there:
            raise BadInput(
                f"SpelledCTCAdapter: vocabulary_size is {wanted}, but the LLM "
                f"has {there} tokens; give llm_model.vocabulary_size"
            )
        if table.texts is not None:  # else they come with the weights
            self.speller.read(table.texts())
        return super().bind(SpelledTable(table, self.speller))

    def _listen(self, states, lengths):
        """See `CTCAdapter._listen`; the vectors have a part for each table."""
        vectors, blank, lengths, hidden = super()._listen(states, lengths)
        own = self.project_own(hidden).float()
        return torch.cat([vectors, own], -1), blank, lengths, hidden


class _Speller(nn.Module):
    """Tokens' letters -> vectors of length 1."""

    def __init__(self, vocabulary_size, letters, width, vector_size):
        super().__init__()
        empty = torch.zeros(vocabulary_size, letters, dtype=torch.uint8)
        self.register_buffer("letters", empty)
        self.embed = nn.Embedding(256, width, padding_idx=0)
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, 3, padding=1) for _ in range(3)
        )
        self.out = nn.Linear(3 * width, vector_size)

    def read(self, texts):
        """Take the tokens' texts, a list of bytes; what is longer is cut."""
        length = self.letters.shape[1]
        cut = b"".join(text[:length].ljust(length, b"\0") for text in texts)
        letters = torch.frombuffer(bytearray(cut), dtype=torch.uint8)
        self.letters.copy_(letters.view(self.letters.shape))

    def forward(self, ids):
        """Shape (tokens,) -> (tokens, vector_size), float32."""
        letters = self.letters[ids].long()
        keep = (letters > 0).unsqueeze(1)
        hidden = self.embed(letters).transpose(1, 2)
        for conv in self.convs:
            hidden = hidden + functional.silu(conv(hidden)) * keep
        count = keep.sum(-1).clamp(min=1)
        most = hidden.masked_fill(~keep, -torch.inf).amax(-1)
        most = most.masked_fill(~keep.any(-1), 0.0)
        parts = [hidden[:, :, 0], most, hidden.sum(-1) / count]
        return functional.normalize(
            self.out(torch.cat(parts, 1)).float(), dim=1
        )
