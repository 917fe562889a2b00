"""Integrate and fire: as many speech tokens as the weights add up to.

Authors
 * The blsp_plugin team 2026
"""

import math

import torch
from torch import nn

from blsp_plugin.errors import BadInput
from blsp_plugin.lengths import conv_frames, frames_mask, stacked_frames

__all__ = ["CFormerAdapter", "integrate_and_fire"]


class CFormerAdapter(nn.Module):
    """Transformer layers around continuous integrate-and-fire.

    The states are halved in time and pass transformer layers; each then gets
    a weight in (0, 1), and whenever the weights have added up to the threshold
    a token fires: the weighted sum of its states (CIF, Dong & Xu 2020, arXiv
    1905.11235). More layers follow on the tokens ("CFormer", BLSP-KD, arXiv
    2405.19041). In training the weights are scaled so that a clip fires as
    many tokens as its transcript has; give `CIFQuantity` among the losses, so
    that they come to the right number by themselves.

    Arguments
    ---------
    input_size : int
        Width of the encoder states.
    output_size : int
        Width of the LLM's embeddings.
    hidden_size : int, optional
        Of the transformer layers; ``input_size`` when not given.
    layers : tuple of int
        Layers before and after the firing.
    heads : int
        Attention heads, a divisor of ``hidden_size``.
    tokens_per_second : float
        Speech tokens to expect, for batch budgets and the initial weights.
    gain : float, optional
        Initial gain of the last LayerNorm, 1 when not given.

    Example
    -------
    >>> import torch
    >>> adapter = CFormerAdapter(32, 64, layers=(1, 1), heads=4)
    >>> states, lengths = torch.rand(2, 50, 32), torch.tensor([50, 9])
    >>> speech, lengths, more = adapter(states, lengths, torch.tensor([5, 3]))
    >>> speech.shape, lengths.tolist(), more["fired"].shape
    (torch.Size([2, 5, 64]), [5, 3], torch.Size([2]))
    """

    counts_transcript = True

    def __init__(
        self,
        input_size,
        output_size,
        hidden_size=None,
        layers=(4, 4),
        heads=8,
        tokens_per_second=4.0,
        gain=None,
    ):
        super().__init__()
        hidden_size = hidden_size or input_size
        if hidden_size % heads:
            raise BadInput(
                f"hidden_size {hidden_size} is not a multiple of heads {heads}"
            )
        self.tokens_per_second = tokens_per_second
        self.heads = heads
        self.down = nn.Conv1d(input_size, hidden_size, 3, stride=2, padding=1)
        before, after = (
            [_transformer_layer(hidden_size, heads) for _ in range(number)]
            for number in layers
        )
        self.before = nn.ModuleList(before)
        self.after = nn.ModuleList(after)
        self.weight = nn.Linear(hidden_size, 1)
        # 25 weights a second start at the expected number of tokens.
        nn.init.zeros_(self.weight.weight)
        share = tokens_per_second / 25
        nn.init.constant_(self.weight.bias, math.log(share / (1 - share)))
        self.project = nn.Linear(hidden_size, output_size)
        self.norm = nn.LayerNorm(output_size, eps=1e-5)
        if gain is not None:
            nn.init.constant_(self.norm.weight, gain)

    def sizes(self):
        """Arguments that build it again, a dict of numbers for JSON."""
        return {
            "input_size": self.down.in_channels,
            "output_size": self.project.out_features,
            "hidden_size": self.down.out_channels,
            "layers": [len(self.before), len(self.after)],
            "heads": self.heads,
            "tokens_per_second": self.tokens_per_second,
        }

    def output_lengths(self, lengths):
        """About how many speech tokens clips get; for batch budgets only.

        Arguments
        ---------
        lengths : int or array or torch.Tensor
            Encoder frames, 50 a second.

        Returns
        -------
        int or array or torch.Tensor
        """
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
            Shape (batch,), int64, tokens to fire, at least 1 each; when not
            given, as many as the weights add up to, rounded.

        Returns
        -------
        speech : torch.Tensor
            Shape (batch, longest, output_size), zero in padding.
        lengths : torch.Tensor
            Shape (batch,), int64, speech tokens.
        more : dict of torch.Tensor
            ``fired``, shape (batch,), float32: sum of the unscaled weights;
            differentiable.
        """
        hidden = states.to(self.norm.weight.dtype)
        keep = frames_mask(lengths, hidden.shape[1]).unsqueeze(-1)
        hidden = self.down((hidden * keep).transpose(1, 2)).transpose(1, 2)
        lengths = conv_frames(lengths)
        keep = frames_mask(lengths, hidden.shape[1])
        hidden = _run(self.before, hidden, keep)
        weights = self.weight(hidden).squeeze(-1).float().sigmoid() * keep
        fired = weights.sum(1)
        if tokens is None:
            tokens = fired.detach().round().long().clamp(min=1)
        weights = weights * (tokens / fired).unsqueeze(1)
        hidden = integrate_and_fire(hidden, weights, int(tokens.max()))
        keep = frames_mask(tokens, hidden.shape[1])
        hidden = _run(self.after, hidden, keep)
        speech = self.norm(self.project(hidden))
        return speech * keep.unsqueeze(-1), tokens, {"fired": fired}


def integrate_and_fire(states, weights, tokens):
    """Weighted sums of states, a token for each unit of weight.

    The share of a frame in token n is how much of its stretch of the running
    sum lies between n and n + 1.

    Arguments
    ---------
    states : torch.Tensor
        Shape (batch, frames, width).
    weights : torch.Tensor
        Shape (batch, frames), float32, not negative, zero in padding.
    tokens : int
        To fire; what is beyond a clip's own number is zero.

    Returns
    -------
    torch.Tensor
        Shape (batch, tokens, width).

    Example
    -------
    >>> states = torch.tensor([[[1.0], [2.0], [4.0]]])
    >>> weights = torch.tensor([[0.5, 1.0, 0.5]])
    >>> integrate_and_fire(states, weights, 2)[0, :, 0].tolist()
    [1.5, 3.0]
    """
    with torch.autocast(states.device.type, enabled=False):
        ends = weights.float().cumsum(1).unsqueeze(1)
        starts = ends - weights.float().unsqueeze(1)
        first = torch.arange(tokens, device=states.device).view(1, -1, 1)
        share = torch.minimum(ends, first + 1) - torch.maximum(starts, first)
        return share.clamp(min=0).to(states.dtype) @ states


def _transformer_layer(width, heads):
    return nn.TransformerEncoderLayer(
        width,
        heads,
        4 * width,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )


def _run(layers, hidden, keep):
    """Transformer layers over a ragged batch, with positions."""
    if not layers:
        return hidden
    width = hidden.shape[-1]
    steps = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(1)
    rates = torch.arange(0, width, 2, device=hidden.device) / width
    angles = steps * (10000.0**-rates)
    positions = torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]
    hidden = hidden + positions.to(hidden.dtype)
    # torch's fused kernels of evaluation are not those of training.
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for layer in layers:
            hidden = layer(hidden, src_key_padding_mask=~keep)
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
    return hidden
