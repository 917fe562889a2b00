"""Modality adapters: encoder states -> speech embeddings for the LLM.

Every adapter has two methods: ``forward(states, lengths, tokens=None)`` gives
``(speech, lengths, fired)``, and ``output_lengths(lengths)`` tells the number
of speech tokens before the model runs (the data side calls it). Where that
number depends on what is said, ``counts_transcript`` is True: in training a
clip then gets as many speech tokens as its transcript has tokens (``tokens``),
and ``fired`` is the number that the adapter itself would have given.
``sizes()`` are the arguments that make it again, but for its weights.

Authors
 * The blsp_plugin team 2026
"""

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from blsp_plugin.errors import BadInput
from blsp_plugin.lengths import (
    conv_frames,
    frames_mask,
    stacked_conv_frames,
    stacked_frames,
)

__all__ = ["CFormerAdapter", "ConcatMLPAdapter", "ConvAdapter"]


class ConvAdapter(nn.Module):
    """The paper's adapter: strided convolutions, bottleneck, LayerNorm.

    Three times [Conv1d kernel 5, stride 2, padding 2 -> GLU], then a residual
    bottleneck (GELU, no bias) and a LayerNorm (BLSP, arXiv 2309.00916, section
    3 and the authors' constants). Padding is zeroed before every convolution,
    so that a clip's embeddings do not depend on its batch mates.

    Arguments
    ---------
    input_size : int
        Width of the encoder states.
    output_size : int
        Width of the LLM's embeddings.
    bottleneck : int
        Width inside the bottleneck.
    layers : int
        Number of stride-2 convolutions: a reduction of ``2 ** layers``.
    kernel_size : int
        Odd, of every convolution.
    gain : float, optional
        Initial gain of the LayerNorm. The RMS of the LLM's embedding table
        puts speech on the scale of text; 1 when not given, as the authors do.

    Example
    -------
    >>> import torch
    >>> adapter = ConvAdapter(32, 64, bottleneck=16)
    >>> speech, lengths, _ = adapter(
    ...     torch.rand(2, 50, 32), torch.tensor([50, 9])
    ... )
    >>> speech.shape, lengths.tolist()
    (torch.Size([2, 7, 64]), [7, 2])
    """

    counts_transcript = False

    def __init__(
        self,
        input_size,
        output_size,
        bottleneck=512,
        layers=3,
        kernel_size=5,
        gain=None,
    ):
        super().__init__()
        widths = [input_size] * layers + [output_size]
        self.convs = nn.ModuleList(
            nn.Conv1d(
                width,
                2 * following,
                kernel_size,
                stride=2,
                padding=kernel_size // 2,
            )
            for width, following in pairwise(widths)
        )
        self.down = nn.Linear(output_size, bottleneck, bias=False)
        self.up = nn.Linear(bottleneck, output_size, bias=False)
        self.norm = nn.LayerNorm(output_size, eps=1e-5)
        if gain is not None:
            nn.init.constant_(self.norm.weight, gain)

    def sizes(self):
        """Arguments that build it again, a dict of numbers for JSON."""
        return {
            "input_size": self.convs[0].in_channels,
            "output_size": self.down.in_features,
            "bottleneck": self.down.out_features,
            "layers": len(self.convs),
            "kernel_size": self.convs[0].kernel_size[0],
        }

    def output_lengths(self, lengths):
        """Speech tokens of clips of some encoder frames.

        Arguments
        ---------
        lengths : int or torch.Tensor
            Encoder frames.

        Returns
        -------
        int or torch.Tensor
        """
        return stacked_conv_frames(lengths, len(self.convs))

    def forward(self, states, lengths, tokens=None):
        """Turn encoder states into speech embeddings.

        Arguments
        ---------
        states : torch.Tensor
            Shape (batch, frames, input_size).
        lengths : torch.Tensor
            Shape (batch,), int64, valid frames.
        tokens : torch.Tensor, optional
            Of no meaning here: the length follows from the frames.

        Returns
        -------
        speech : torch.Tensor
            Shape (batch, longest, output_size), zero in padding.
        lengths : torch.Tensor
            Shape (batch,), int64, speech tokens.
        fired : None
        """
        hidden = states.to(self.norm.weight.dtype).transpose(1, 2)
        for conv in self.convs:
            keep = frames_mask(lengths, hidden.shape[2]).unsqueeze(1)
            hidden = functional.glu(conv(hidden * keep), dim=1)
            lengths = conv_frames(lengths)
        hidden = hidden.transpose(1, 2)
        hidden = hidden + self.up(functional.gelu(self.down(hidden)))
        speech = self.norm(hidden)
        keep = frames_mask(lengths, speech.shape[1]).unsqueeze(-1)
        return speech * keep, lengths, None


class ConcatMLPAdapter(nn.Module):
    """Neighbouring frames side by side, and an MLP.

    RMSNorm, linear, SwiGLU, linear, RMSNorm over stacks of frames, as
    Ultravox projects (its released code, version 0.5). A clip's last stack is
    filled up with zeros.

    Arguments
    ---------
    input_size : int
        Width of the encoder states.
    output_size : int
        Width of the LLM's embeddings.
    hidden_size : int
        Width inside the MLP, after the gate.
    stride : int
        Frames of a stack: the reduction.
    gain : float, optional
        Initial gain of the last RMSNorm, 1 when not given.

    Example
    -------
    >>> import torch
    >>> adapter = ConcatMLPAdapter(32, 64, hidden_size=48, stride=8)
    >>> speech, lengths, _ = adapter(
    ...     torch.rand(2, 50, 32), torch.tensor([50, 9])
    ... )
    >>> speech.shape, lengths.tolist()
    (torch.Size([2, 7, 64]), [7, 2])
    """

    counts_transcript = False

    def __init__(
        self, input_size, output_size, hidden_size=2048, stride=8, gain=None
    ):
        super().__init__()
        self.stride = stride
        self.norm_in = nn.RMSNorm(input_size * stride, eps=1e-6)
        self.up = nn.Linear(input_size * stride, 2 * hidden_size, bias=False)
        self.down = nn.Linear(hidden_size, output_size, bias=False)
        self.norm = nn.RMSNorm(output_size, eps=1e-6)
        if gain is not None:
            nn.init.constant_(self.norm.weight, gain)

    def sizes(self):
        """Arguments that build it again, a dict of numbers for JSON."""
        return {
            "input_size": self.norm_in.weight.numel() // self.stride,
            "output_size": self.down.out_features,
            "hidden_size": self.down.in_features,
            "stride": self.stride,
        }

    def output_lengths(self, lengths):
        """Speech tokens of clips: see `ConvAdapter.output_lengths`."""
        return stacked_frames(lengths, self.stride)

    def forward(self, states, lengths, tokens=None):
        """Turn encoder states into speech embeddings.

        Arguments and returns as those of `ConvAdapter.forward`.
        """
        states = states.to(self.norm.weight.dtype)
        states = states * frames_mask(lengths, states.shape[1]).unsqueeze(-1)
        states = functional.pad(
            states, (0, 0, 0, -states.shape[1] % self.stride)
        )
        stacks = states.reshape(len(states), -1, self.norm_in.weight.numel())
        value, gate = self.up(self.norm_in(stacks)).chunk(2, dim=-1)
        speech = self.norm(self.down(functional.silu(gate) * value))
        lengths = self.output_lengths(lengths)
        speech = speech[:, : int(lengths.max())]
        keep = frames_mask(lengths, speech.shape[1]).unsqueeze(-1)
        return speech * keep, lengths, None


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
    >>> speech, lengths, fired = adapter(states, lengths, torch.tensor([5, 3]))
    >>> speech.shape, lengths.tolist(), fired.shape
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
        fired : torch.Tensor
            Shape (batch,), float32, sum of the unscaled weights;
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
        return speech * keep.unsqueeze(-1), tokens, fired


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
