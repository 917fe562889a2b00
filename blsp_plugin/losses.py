"""Alignment losses, without a vocabulary-sized tensor of a batch.

Losses on the response compare, token by token, what the LLM makes of a clip
with the response itself or with what it makes of the transcript (its teacher).
Hidden states are selected before the LM head and projected a chunk at a time,
once for all losses; the gradient of a chunk is made while its logits are there
(as Liger's fused linear losses do), so nothing is kept or computed twice.

Every loss is a sum over response tokens: the trainer divides by their number
over all ranks and accumulation steps.

Authors
 * The blsp_plugin team 2026
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

__all__ = [
    "CIFQuantity",
    "HiddenL2",
    "InputCTC",
    "ResponseCrossEntropy",
    "ResponseKL",
    "TeacherStates",
    "TeacherTopK",
    "TokenCTC",
    "response_loss",
]

CHUNK = 1024  # response positions projected to the vocabulary at a time


class TeacherStates(NamedTuple):
    """What the LLM makes of the transcripts: its last hidden states.

    Arguments
    ---------
    hidden : torch.Tensor
        Shape (tokens, hidden_size), at the same response positions as the
        student's.
    """

    hidden: torch.Tensor

    def divergence(self, logits, llm, temperature):
        """KL from the teacher to the student, summed.

        Arguments
        ---------
        logits : torch.Tensor
            Shape (tokens, vocabulary), of the student.
        llm : FrozenLLM
            Projects the teacher's states.
        temperature : float
            Divides both logits.

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        with torch.no_grad():
            teacher = llm.project(self.hidden.to(llm.dtype)) / temperature
            teacher = teacher.log_softmax(-1)
        return functional.kl_div(
            (logits / temperature).log_softmax(-1),
            teacher,
            reduction="sum",
            log_target=True,
        )


class TeacherTopK(NamedTuple):
    """The likeliest next tokens after the transcripts.

    Arguments
    ---------
    ids : torch.Tensor
        Shape (tokens, k), integers.
    log_probs : torch.Tensor
        Shape (tokens, k), at the temperature of the loss.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor

    def divergence(self, logits, llm, temperature):
        """KL over k tokens and one bucket for all others, summed.

        A lower bound of the KL over the vocabulary; arguments as those of
        `TeacherStates.divergence`.
        """
        teacher = _with_rest(self.log_probs.float())
        student = (logits / temperature).log_softmax(-1)
        student = _with_rest(student.gather(1, self.ids.long()))
        return functional.kl_div(
            student, teacher, reduction="sum", log_target=True
        )


def _with_rest(log_probs):
    """Append the log-probability of all other tokens."""
    rest = (1 - log_probs.exp().sum(-1, keepdim=True)).clamp(min=1e-7)
    return torch.cat([log_probs, rest.log()], dim=-1)


class ResponseCrossEntropy:
    """Cross-entropy of the response and its EOS (BLSP, section 3).

    Arguments
    ---------
    weight : float
        Factor in the total loss.
    """

    name = "ce"
    on_input = False
    teacher = False  # whether it needs what the LLM makes of the transcript

    def __init__(self, weight=1.0):
        self.weight = weight

    def __call__(self, hidden, logits, targets, teacher, llm):
        """Sum over some response positions.

        Arguments
        ---------
        hidden : torch.Tensor
            Shape (tokens, hidden_size), the student's last hidden states.
        logits : callable
            Gives the student's logits, shape (tokens, vocabulary), float32.
        targets : torch.Tensor
            Shape (tokens,), int64, the response.
        teacher : TeacherStates or TeacherTopK or None
            Of the same positions.
        llm : FrozenLLM
            Both are the same LLM.

        Returns
        -------
        torch.Tensor
            Scalar, float32, unweighted.
        """
        return functional.cross_entropy(logits(), targets, reduction="sum")


class ResponseKL:
    """KL from the text-conditioned next-token distribution to the speech's.

    At every response position, the first token's and the EOS's included,
    times T squared, so that the gradient keeps its size (Hinton et al. 2015,
    section 2). BLSP-KD (arXiv 2405.19041) with its shift and scale mended.

    Arguments
    ---------
    weight : float
        Factor in the total loss.
    temperature : float
        T, divides the logits of both.
    """

    name = "kl"
    on_input = False
    teacher = takes_top_k = True

    def __init__(self, weight=1.0, temperature=1.0):
        self.weight = weight
        self.temperature = temperature

    def __call__(self, hidden, logits, targets, teacher, llm):
        """Sum over some positions: see `ResponseCrossEntropy`."""
        divergence = teacher.divergence(logits(), llm, self.temperature)
        return divergence * self.temperature**2


class HiddenL2:
    """Squared distance of the last hidden states of speech and text.

    Mean over the width, summed over response positions. The LM head is
    frozen, so equal states are equal behaviour, and no vocabulary-sized
    tensor is made at all (DiVA, arXiv 2410.02678, section 3).

    Arguments
    ---------
    weight : float
        Factor in the total loss.
    """

    name = "l2"
    on_input = False
    teacher, takes_top_k = True, False

    def __init__(self, weight=1.0):
        self.weight = weight

    def __call__(self, hidden, logits, targets, teacher, llm):
        """Sum over some positions: see `ResponseCrossEntropy`."""
        distance = (hidden.float() - teacher.hidden.float()).square()
        return distance.mean(-1).sum()


def response_loss(losses, states, teacher, llm, chunk=CHUNK):
    """Weighted sum of response losses over a batch's response tokens.

    Arguments
    ---------
    losses : list
        Objects as above.
    states : ResponseStates
        The student's hidden states and the targets.
    teacher : TeacherStates or TeacherTopK or None
        At the same positions.
    llm : FrozenLLM
        Its ``project`` is the LM head.
    chunk : int
        Positions projected to the vocabulary at a time.

    Returns
    -------
    torch.Tensor
        Scalar, float32; differentiable in the hidden states.
    """
    if teacher is not None and len(teacher[0]) != len(states.targets):
        raise ValueError(
            f"{len(teacher[0])} positions of the teacher for "
            f"{len(states.targets)} of the student"
        )

    def total(hidden, targets, *tensors):
        made = []

        def logits():
            if not made:
                made.append(llm.project(hidden))
            return made[0]

        part = None if teacher is None else type(teacher)(*tensors)
        values = [
            loss.weight * loss(hidden, logits, targets, part, llm)
            for loss in losses
        ]
        return sum(values)

    return _ChunkedSum.apply(
        total, chunk, states.hidden, states.targets, *(teacher or ())
    )


class _ChunkedSum(torch.autograd.Function):
    """Sum of a function over chunks of rows, and its gradient with it."""

    @staticmethod
    def forward(ctx, function, chunk, hidden, *others):
        total = hidden.new_zeros((), dtype=torch.float32)
        wanted = ctx.needs_input_grad[2]
        grad = torch.empty_like(hidden) if wanted else None
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            part = hidden[rows].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                value = function(part, *(other[rows] for other in others))
            if wanted:
                [grad[rows]] = torch.autograd.grad(value, part)
            total += value.detach()
        ctx.grad = grad
        ctx.others = len(others)
        return total

    @staticmethod
    def backward(ctx, grad_output):
        grad = ctx.grad * grad_output.to(ctx.grad.dtype)
        return (None, None, grad, *[None] * ctx.others)


class InputCTC(torch.nn.Module):
    """CTC of the speech embeddings against the LLM's own token embeddings.

    The frozen embedding table is the classifier (cosine times a learnt
    scale), and one vector, the blank, is learnt: speech embeddings near those
    of the transcript's tokens, in their order. The LLM itself is not run.

    Arguments
    ---------
    weight : float
        Factor in the total loss.
    embedding_size : int
        Width of the LLM's embeddings.
    scale : float
        Initial factor of the cosines.
    """

    name = "ctc"
    on_input = True

    def __init__(self, embedding_size, weight=1.0, scale=20.0):
        super().__init__()
        self.weight = weight
        self.blank = torch.nn.Parameter(torch.randn(embedding_size))
        self.log_scale = torch.nn.Parameter(torch.tensor(float(scale)).log())

    def forward(self, speech, transcripts, tokens, table):
        """Sum over the clips of a batch.

        Arguments
        ---------
        speech : SpeechEmbeddings
            Of the batch.
        transcripts : list of list of int
            The ids that stand in the slots of the text twins.
        tokens : torch.Tensor
            Shape (batch,), response tokens of each row: a clip's mean over
            its transcript counts as often.
        table : EmbeddingTable
            Of the tokens.

        Returns
        -------
        torch.Tensor
            Scalar, float32, unweighted. Clips with fewer embeddings than
            their transcript has tokens count 0.
        """

        def clip_loss(embeds, ids):
            embeds = functional.normalize(embeds.float(), dim=-1)
            blank = embeds @ functional.normalize(self.blank, dim=0)
            logits = [blank[:, None], table.logits(embeds)]
            logits = self.log_scale.exp() * torch.cat(logits, dim=-1)
            log_probs = logits.log_softmax(-1)
            return functional.ctc_loss(
                log_probs,
                ids + 1,
                torch.tensor([len(log_probs)]),
                torch.tensor([len(ids)]),
                reduction="sum",
            )

        total = speech.embeds.sum() * 0.0  # has a gradient, in any case
        with torch.autocast(total.device.type, enabled=False):
            for embeds, length, ids, count in zip(
                speech.embeds, speech.lengths, transcripts, tokens, strict=True
            ):
                # Repeated tokens need a blank between them.
                repeated = sum(a == b for a, b in pairwise(ids))
                if not 0 < len(ids) + repeated <= length:
                    continue
                # A clip's logits are computed again in the backward pass:
                # together they would be a (batch, time, vocabulary) tensor.
                ids = torch.tensor(ids, device=embeds.device)
                loss = checkpoint(
                    clip_loss, embeds[:length], ids, use_reentrant=False
                )
                total = total + loss / len(ids) * count
        return total


class TokenCTC(torch.nn.Module):
    """CTC of a `CTCAdapter`'s frames against the LLM's token embeddings.

    The whole vocabulary competes; in training, the tokens that the batch does
    not have are represented by a random few of them (importance sampling of
    the normalisation, Bengio & Senecal 2003), which costs a tenth.

    Arguments
    ---------
    weight : float
        Factor in the total loss.
    negatives : int
        Tokens that represent the others; 0: none, all are computed.
    """

    name = "token_ctc"
    on_input = True

    def __init__(self, weight=1.0, negatives=4096):
        super().__init__()
        self.weight = weight
        self.negatives = negatives

    def forward(self, speech, transcripts, tokens, table):
        """Sum over the clips of a batch: see `InputCTC.forward`."""
        vectors, blank = speech.more["vectors"], speech.more["blank"]
        ids = torch.tensor(sum(transcripts, []), device=vectors.device)
        present, targets = ids.unique(return_inverse=True)
        logits = [
            blank.unsqueeze(-1),
            table.logits(vectors, present),
            self._others(vectors, present, table).unsqueeze(-1),
        ]
        log_probs = torch.cat(logits, dim=-1).log_softmax(-1)
        frames, counts = speech.more["frames"], list(map(len, transcripts))
        return _ctc(log_probs, frames, targets + 1, counts, tokens)

    def _others(self, vectors, present, table):
        """Log of what the tokens that are not present add up to."""
        vocabulary = len(table.embedding.weight)
        if not self.training or not 0 < self.negatives < vocabulary:
            return table.log_sum(vectors, present)
        drawn = torch.randint(
            vocabulary, (self.negatives,), device=vectors.device
        )
        drawn = drawn[~torch.isin(drawn, present)]
        others = (vocabulary - len(present)) / max(1, len(drawn))
        return table.logits(vectors, drawn).logsumexp(-1) + math.log(others)


def _ctc(log_probs, frames, ids, counts, tokens):
    """Clips' mean CTC losses, each times its response tokens, summed."""
    counts = torch.tensor(counts, device=log_probs.device)
    loss = functional.ctc_loss(
        log_probs.transpose(0, 1),
        ids.long(),
        frames,
        counts,
        reduction="none",
        zero_infinity=True,  # more tokens than frames: nothing to learn
    )
    # Clips without a target count nothing.
    return (loss * (counts > 0) / counts.clamp(min=1) * tokens).sum()


class CIFQuantity:
    """Distance of the tokens that CIF's weights ask for from the transcript's.

    Absolute, relative to the transcript's length (Dong & Xu 2020, arXiv
    1905.11235, section 3.2, and BLSP-KD).

    Arguments
    ---------
    weight : float
        Factor in the total loss.
    """

    name = "quantity"
    on_input = True

    def __init__(self, weight=1.0):
        self.weight = weight

    def __call__(self, speech, transcripts, tokens, table):
        """Sum over the clips of a batch: see `InputCTC`."""
        counts = torch.tensor(
            [len(ids) for ids in transcripts], device=speech.embeds.device
        )
        distance = (speech.more["fired"] - counts).abs() / counts
        return (distance * tokens).sum()
