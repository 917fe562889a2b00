"""The LLM's frozen embedding table as a classifier of vectors.

Authors
 * The blsp_plugin team 2026
"""

import torch
from torch.nn import functional

__all__ = ["EmbeddingTable"]

_CHUNK = 256  # vectors compared with the whole vocabulary at once


class EmbeddingTable:
    """Which tokens' embeddings lie where a vector points.

    Arguments
    ---------
    embedding : torch.nn.Module
        Token ids -> embeddings, with the table as ``weight``; stays frozen.
    """

    def __init__(self, embedding):
        self.embedding = embedding
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
        unit = self.unit if ids is None else self.unit[ids]
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
        sums = [
            self.logits(some)
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
            near = self.unit[ids].float()
            shares = (near @ vectors.unsqueeze(-1)).softmax(dim=1)
            return (shares * self.embedding(ids).float()).sum(1)
