"""The paper's adapter: strided convolutions.

Authors
 * The blsp_plugin team 2026
"""

from itertools import pairwise

from torch import nn
from torch.nn import functional

from blsp_plugin.lengths import conv_frames, frames_mask, stacked_conv_frames

__all__ = ["ConvAdapter"]


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
        more : dict
            Empty.
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
        return speech * keep, lengths, {}
