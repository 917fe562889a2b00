"""Speech read into the LLM's own token embeddings, by CTC.

Authors
 * The blsp_plugin team 2026
"""

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from blsp_plugin.lengths import conv_frames, frames_mask, stacked_frames

__all__ = ["CTCAdapter"]


class CTCAdapter(nn.Module):
    """A token for each token that is heard, near the LLM's embedding of it.

    Two convolutions take the states to 12.5 frames a second, blocks of
    depth-wise convolutions follow, and each frame becomes a vector. Compared
    with the LLM's frozen embeddings (cosine times a learnt scale, one more
    logit for the blank) the vectors are what CTC trains: give `TokenCTC` among
    the losses. Frames whose likeliest symbol is the blank or the one before
    are left out ("CTC compression", Gaido et al. 2021, arXiv 2102.01578); what
    remains becomes the mean of the LLM's nearest embeddings under the shares
    that CTC gives them, plus a linear map of the frame, 0 at first. So speech
    lies where text lies and is as long as text; the LLM's gradient reaches
    every weight, and may add what no token says.

    `BLSP` gives it the LLM's embeddings (`bind`).

    Arguments
    ---------
    input_size : int
        Width of the encoder states.
    output_size : int
        Width of the LLM's embeddings.
    layers : int
        Blocks behind the convolutions.
    kernel_size : int
        Odd, of the blocks' depth-wise convolutions, in frames of 80 ms.
    nearest : int
        Embeddings that a speech token is a mean of.
    sharpness : float
        Power that the shares of the mean are raised to; 1: as CTC gives them.
        The LLM reads a token better than a mean of many.
    tokens_per_second : float
        Speech tokens to expect, for batch budgets.
    dropout : float
        In training.
    train_listening : bool
        False: all that CTC trains stays as it is, and only the linear map is
        trained. No part of the file: it is of a training, not of the adapter.

    Example
    -------
    >>> import torch
    >>> from blsp_plugin.embedding_table import EmbeddingTable
    >>> adapter = CTCAdapter(32, 64, layers=1)
    >>> _ = adapter.bind(EmbeddingTable(torch.nn.Embedding(100, 64)))
    >>> states, lengths = torch.rand(2, 50, 32), torch.tensor([50, 9])
    >>> speech, lengths, more = adapter(states, lengths, torch.tensor([5, 3]))
    >>> speech.shape, lengths.tolist(), more["vectors"].shape
    (torch.Size([2, 5, 64]), [5, 3], torch.Size([2, 13, 64]))
    """

    counts_transcript = True
    only_listens = False  # for the losses on the frames alone: no speech

    def __init__(
        self,
        input_size,
        output_size,
        layers=5,
        kernel_size=11,
        nearest=16,
        sharpness=2.0,
        tokens_per_second=4.0,
        dropout=0.1,
        train_listening=True,
    ):
        super().__init__()
        self.nearest = nearest
        self.sharpness = sharpness
        self.tokens_per_second = tokens_per_second
        self.dropout = dropout
        self.norm_in = nn.LayerNorm(input_size)
        self.convs = nn.ModuleList(
            nn.Conv1d(input_size, 2 * input_size, 5, stride=2, padding=2)
            for _ in range(2)
        )
        self.blocks = nn.ModuleList(
            _Block(input_size, kernel_size, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(input_size)
        self.project = nn.Linear(input_size, output_size)
        self.blank = nn.Linear(input_size, 1)
        self.log_scale = nn.Parameter(torch.tensor(20.0).log())
        self.beyond = nn.Linear(input_size, output_size)
        for parameter in self.beyond.parameters():
            nn.init.zeros_(parameter)
        self.requires_grad_(train_listening)
        self.beyond.requires_grad_(True)
        self._table = None

    def sizes(self):
        """Arguments that build it again, a dict of numbers for JSON."""
        return {
            "input_size": self.project.in_features,
            "output_size": self.beyond.out_features,
            "layers": len(self.blocks),
            "kernel_size": self.blocks[0].conv.kernel_size[0],
            "nearest": self.nearest,
            "sharpness": self.sharpness,
            "tokens_per_second": self.tokens_per_second,
            "dropout": self.dropout,
        }

    def bind(self, table):
        """Take the LLM's embeddings; they stay the LLM's, and frozen.

        Arguments
        ---------
        table : EmbeddingTable
            Of the LLM.

        Returns
        -------
        EmbeddingTable
            What its vectors are compared with.
        """
        self._table = table
        return table

    def output_lengths(self, lengths):
        """About how many speech tokens: see `CFormerAdapter.output_lengths`."""
        return stacked_frames(lengths, round(50 / self.tokens_per_second))

    def forward(self, states, lengths, tokens=None):
        """Turn encoder states into speech embeddings.

        Arguments
        ---------
        states : torch.Tensor
            Shape (batch, frames, input_size).
        lengths : torch.Tensor
            Shape (batch,), int64, valid frames.
        tokens : torch.Tensor, optional
            Shape (batch,), int64, how many of the likeliest tokens to keep, at
            least 1 each; when not given, those that are likelier than the
            blank, or the likeliest one.

        Returns
        -------
        speech : torch.Tensor
            Shape (batch, longest, output_size), zero in padding.
        lengths : torch.Tensor
            Shape (batch,), int64, speech tokens.
        more : dict of torch.Tensor
            For the losses: ``vectors`` (batch, frames, output_size), of the
            length of the scale; ``blank`` (batch, frames), its logits;
            ``frames`` (batch,).
        """
        vectors, blank, frames, hidden = self._listen(states, lengths)
        more = {"vectors": vectors, "blank": blank, "frames": frames}
        if self.only_listens:
            return vectors[:, :1] * 0, torch.ones_like(frames), more
        logits, ids = self._table.nearest(vectors, self.nearest)
        with torch.no_grad():
            kept = _kept(logits[..., 0] - blank, ids[..., 0], frames, tokens)
        counts = torch.tensor([len(places) for places in kept])
        clips = torch.arange(len(kept)).repeat_interleave(counts)
        clips, places = clips.to(ids.device), torch.cat(kept)
        sharp = vectors[clips, places] * self.sharpness
        speech = self._table.mean(sharp, ids[clips, places])
        with torch.autocast(speech.device.type, enabled=False):
            scale = speech.detach().square().mean(-1, keepdim=True).sqrt()
            beyond = self.beyond(hidden[clips, places].float())
            speech = speech + scale * beyond / hidden.shape[-1] ** 0.5
        speech = pad_sequence(speech.split(counts.tolist()), batch_first=True)
        return speech, counts.to(frames.device), more

    def _listen(self, states, lengths):
        """A vector and the blank's logit for each frame: what CTC trains.

        Also how many frames there are, and what they were made of.
        """

        def rest(hidden):
            return frames_mask(lengths, hidden.shape[1]).unsqueeze(-1)

        hidden = self.norm_in(states.to(self.norm.weight.dtype))
        for conv in self.convs:
            hidden = conv((hidden * rest(hidden)).transpose(1, 2))
            hidden = functional.glu(hidden, dim=1).transpose(1, 2)
            lengths = conv_frames(lengths)
        for block in self.blocks:
            hidden = block(hidden, rest(hidden))
        hidden = functional.dropout(
            self.norm(hidden), self.dropout, self.training
        )
        vectors = functional.normalize(self.project(hidden).float(), dim=-1)
        vectors = vectors * self.log_scale.exp()
        blank = self.blank(hidden).squeeze(-1).float()
        return vectors, blank, lengths, hidden


class _Block(nn.Module):
    """Depth-wise convolution, gated feed-forward, residual."""

    def __init__(self, width, kernel_size, dropout):
        super().__init__()
        self.conv = nn.Conv1d(
            width, width, kernel_size, padding=kernel_size // 2, groups=width
        )
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, hidden, keep):
        """Shape (batch, frames, width), and (batch, frames, 1) of 0 and 1."""
        near = self.conv((hidden * keep).transpose(1, 2)).transpose(1, 2)
        value, gate = self.up(self.norm(near)).chunk(2, dim=-1)
        out = self.down(functional.silu(gate) * value)
        return hidden + functional.dropout(out, self.dropout, self.training)


def _kept(margins, ids, frames, tokens):
    """Places of the frames that become speech tokens, a tensor for each clip.

    A frame that says again what the one before said is none of its own.
    """
    heard = margins > 0
    again = functional.pad(
        (ids[:, 1:] == ids[:, :-1]) & heard[:, 1:] & heard[:, :-1], (1, 0)
    )
    kept = []
    for n, length in enumerate(frames.tolist()):
        score = margins[n, :length].masked_fill(again[n, :length], -torch.inf)
        if tokens is None:
            places = (score > 0).nonzero()[:, 0]
            if not len(places):
                places = score.argmax()[None]
        else:
            number = int(tokens[n])
            places = score.topk(min(number, length)).indices.sort().values
            if number > length:  # fewer frames than tokens: some stand twice
                spread = torch.arange(number, device=places.device)
                places = places[spread * length // number]
        kept.append(places)
    return kept
