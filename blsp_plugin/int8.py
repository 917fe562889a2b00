"""Linear layers with weights of 8 bits, for inference.

Each output's weights are rounded to multiples of the largest over 127
(absmax, as in LLM.int8(), arXiv 2208.07339, without its outlier columns).
Activations stay as they are. Half the memory of bfloat16; on a CPU a single
row is faster too, since reading the weights is what it waits for.

Authors
 * The blsp_plugin team 2026
"""

import torch
from torch.nn.functional import linear

__all__ = ["Int8Linear", "round_weights"]

_FEW_ROWS = 4  # more are faster when the weights are widened once


class Int8Linear(torch.nn.Module):
    """A linear layer whose weights were rounded to 8 bits.

    Arguments
    ---------
    layer : torch.nn.Linear
        The layer to round; its dtype stays that of the results.

    Example
    -------
    >>> layer = torch.nn.Linear(64, 32)
    >>> x = torch.randn(3, 64)
    >>> (Int8Linear(layer)(x) - layer(x)).abs().max() < 0.05
    tensor(True)
    """

    def __init__(self, layer):
        super().__init__()
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        self.register_buffer("weight", rounded)
        self.register_buffer("scale", scale.to(layer.weight.dtype))
        bias = layer.bias
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x):
        """Apply the layer.

        Arguments
        ---------
        x : torch.Tensor
            Shape (..., in_features).

        Returns
        -------
        torch.Tensor
            Shape (..., out_features).
        """
        rows = x.numel() // x.shape[-1]
        if rows <= _FEW_ROWS and x.device.type == "cpu":
            flat = x.reshape(rows, -1).contiguous()
            y = torch._weight_int8pack_mm(flat, self.weight, self.scale)
            y = y.reshape(*x.shape[:-1], -1)
        else:
            y = linear(x, self.weight.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias


def round_weights(model):
    """Round the weights of all linear layers of an LLM but its head.

    Arguments
    ---------
    model : transformers.PreTrainedModel
        Changed in place.
    """
    head = model.get_output_embeddings()
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, torch.nn.Linear) and child is not head
    ]
    for parent, name, child in places:
        setattr(parent, name, Int8Linear(child))
