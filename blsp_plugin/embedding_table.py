"""The LLM's frozen embedding table as a classifier of vectors.

Authors
 * The blsp_plugin team 2026
"""

import torch
from torch.nn import functional

__all__ = ["EmbeddingTable", "SpelledTable"]

_TOKENS = 4096  # spelled at once
_CHUNK = 256  # vectors compared with the whole vocabulary at once


class EmbeddingTable:
    """Which tokens' embeddings lie where a vector points.

    Arguments
    ---------
    embedding : torch.nn.Module
        Token ids -> embeddings, with the table as ``weight``; stays frozen.
    texts : callable, optional
        Gives what the tokens are, a list of bytes.
    """

    def __init__(self, embedding, texts=None):
        self.embedding = embedding
        self.texts = texts
        self._unit = self._of = None

    @property
    def unit(self):
        """Its rows, of length 1; shape (vocabulary, width)."""
        weight = self.embedding.weight.detach()
        of = (weight.data_ptr(), weight.device, weight.dtype, weight._version)
        if self._of != of:
            # Some tables have rows of zeros: they stay so.
            rows = [functional.normalize(w.float()) for w in weight.split(8192)]
            self._unit, self._of = torch.cat(rows).to(weight.dtype), of
        return self._unit

    def logits(self, vectors, ids=None):
        """Scalar products with the rows of all tokens, or of some.

        Arguments
        ---------
        vectors : torch.Tensor
            Shape (..., width), float32.
        ids : torch.Tensor, optional
            Shape (tokens,), int64.

        Returns
        -------
        torch.Tensor
            Shape (..., tokens), float32.
        """
        return self._products(vectors, self.rows(ids))

    def rows(self, ids=None):
        """Vectors of length 1 of all tokens, or of some.

        Arguments
        ---------
        ids : torch.Tensor, optional
            Any shape, int64.

        Returns
        -------
        torch.Tensor
            Shape of the ids, and width; in the table's dtype.
        """
        return self.unit if ids is None else self.unit[ids]

    @staticmethod
    def _products(vectors, unit):
        with torch.autocast(unit.device.type, enabled=False):
            return (vectors.to(unit.dtype) @ unit.T).float()

    @torch.no_grad()
    def nearest(self, vectors, number):
        """The nearest tokens of each vector.

        Arguments
        ---------
        vectors : torch.Tensor
            Shape (batch, frames, width), float32.
        number : int
            Of tokens.

        Returns
        -------
        logits : torch.Tensor
            Shape (batch, frames, number), float32, falling.
        ids : torch.Tensor
            Shape (batch, frames, number), int64.
        """
        number = min(number, len(self.unit))
        values, ids = zip(
            *(
                self.logits(some).topk(number)
                for some in vectors.flatten(0, 1).split(_CHUNK)
            ),
            strict=True,
        )
        shape = (*vectors.shape[:2], number)
        return torch.cat(values).view(shape), torch.cat(ids).view(shape)

    def log_sum(self, vectors, without):
        """Logarithm of the sum of the exponentials of all other logits.

        Arguments
        ---------
        vectors : torch.Tensor
            Shape (batch, frames, width), float32.
        without : torch.Tensor
            Shape (tokens,), int64, ids that do not count.

        Returns
        -------
        torch.Tensor
            Shape (batch, frames), float32.
        """
        unit = self.rows()
        sums = [
            self._products(some, unit)
            .index_fill_(1, without, -torch.inf)
            .logsumexp(dim=1)
            for some in vectors.flatten(0, 1).split(_CHUNK)
        ]
        return torch.cat(sums).view(vectors.shape[:2])

    def mean(self, vectors, ids):
        """Mean embedding of some tokens, each by its share.

        Arguments
        ---------
        vectors : torch.Tensor
            Shape (frames, width), float32.
        ids : torch.Tensor
            Shape (frames, tokens), int64.

        Returns
        -------
        torch.Tensor
            Shape (frames, width), float32; differentiable in the vectors.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            near = self.rows(ids).float()
            shares = (near @ vectors.unsqueeze(-1)).softmax(dim=1)
            return (shares * self.embedding(ids).float()).sum(1)


class SpelledTable(EmbeddingTable):
    """Tokens told apart by their spelling, and by the LLM's embeddings.

    A token's vector is that of its letters, and beside it its embedding's
    direction: two vectors of length 1.

    Arguments
    ---------
    table : EmbeddingTable
        Of the LLM.
    speller : callable
        A module: token ids -> vectors of length 1; it may learn.
    """

    def __init__(self, table, speller):
        super().__init__(table.embedding, table.texts)
        self.table = table
        self.speller = speller

    @property
    def unit(self):
        """Vectors of all tokens, kept until speller or LLM change."""
        speller = [*self.speller.parameters(), *self.speller.buffers()]
        tensors = [self.embedding.weight, *speller]
        of = [(t.data_ptr(), t.device, t.dtype, t._version) for t in tensors]
        if self._of != of:
            # What is kept must not depend on who asked first.
            kind = self.embedding.weight.device.type
            with torch.no_grad(), torch.autocast(kind, enabled=False):
                self._unit = self._spell()
            self._of = of
        return self._unit

    def rows(self, ids=None):
        """See `EmbeddingTable.rows`; differentiable in the speller."""
        learns = any(p.requires_grad for p in self.speller.parameters())
        if not (learns and torch.is_grad_enabled()):
            return super().rows(ids)
        if ids is None:
            return self._spell()
        some, places = ids.unique(return_inverse=True)
        return self._spelled(some)[places]

    def _spell(self):
        """All tokens' vectors, a chunk at a time."""
        weight = self.embedding.weight
        ids = torch.arange(len(weight), device=weight.device)
        return torch.cat([self._spelled(some) for some in ids.split(_TOKENS)])

    def _spelled(self, ids):
        """Vectors of some tokens' letters, their embeddings' beside them."""
        letters = self.speller(ids).to(self.embedding.weight.dtype)
        return torch.cat([letters, self.table.rows(ids)], dim=-1)
