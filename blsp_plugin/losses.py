"""Alignment losses on the response, without a vocabulary-sized tensor.

Hidden states are selected at the predicting positions before the LM head, and
projected a chunk at a time; a chunk's logits are recomputed in the backward
pass. Every loss is a sum over response tokens: the trainer divides by their
number over all ranks and accumulation steps.

Authors
 * The blsp_plugin team 2026
"""

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

__all__ = ["ResponseCrossEntropy", "next_tokens"]


class ResponseCrossEntropy:
    """Cross-entropy of the response and its EOS (the paper's loss, section 3).

    Arguments
    ---------
    weight : float
        Factor in the total loss.
    chunk : int
        Response positions projected to the vocabulary at a time.
    """

    name = "ce"

    def __init__(self, weight=1.0, chunk=1024):
        self.weight = weight
        self.chunk = chunk

    def __call__(self, hidden, targets, llm):
        """Sum the cross-entropy over the response tokens of a batch.

        Arguments
        ---------
        hidden : torch.Tensor
            Shape (tokens, hidden_size), last hidden states at the predicting
            positions.
        targets : torch.Tensor
            Shape (tokens,), int64.
        llm : FrozenLLM
            Its ``project`` is the LM head.

        Returns
        -------
        torch.Tensor
            Scalar, float32, unweighted sum.
        """

        def chunk_loss(states, labels):
            return functional.cross_entropy(
                llm.project(states), labels, reduction="sum"
            )

        total = hidden.new_zeros((), dtype=torch.float32)
        for states, labels in zip(
            hidden.split(self.chunk), targets.split(self.chunk), strict=True
        ):
            if states.requires_grad and len(targets) > self.chunk:
                loss = checkpoint(
                    chunk_loss, states, labels, use_reentrant=False
                )
            else:
                loss = chunk_loss(states, labels)
            total = total + loss
        return total


@torch.no_grad()
def next_tokens(hidden, llm, chunk=1024):
    """The token that each position would write next.

    Arguments
    ---------
    hidden : torch.Tensor
        Shape (tokens, hidden_size).
    llm : FrozenLLM
        Its ``project`` is the LM head.
    chunk : int
        Positions projected at a time.

    Returns
    -------
    torch.Tensor
        Shape (tokens,), int64.
    """
    chunks = [llm.project(part).argmax(-1) for part in hidden.split(chunk)]
    if not chunks:
        return torch.zeros(0, dtype=torch.int64, device=hidden.device)
    return torch.cat(chunks)
