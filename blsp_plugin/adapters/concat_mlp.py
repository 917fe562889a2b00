"""Ultravox's projector: stacked frames and an MLP.

Authors
 * The blsp_plugin team 2026
"""

from torch import nn
from torch.nn import functional

from blsp_plugin.lengths import frames_mask, stacked_frames

__all__ = ["ConcatMLPAdapter"]


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
        return speech * keep, lengths, {}
