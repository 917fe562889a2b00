"""Ranks and sums, the same with one process and with many.

Authors
 * The blsp_plugin team 2026
"""

import torch

__all__ = ["ranks", "sum_over_ranks"]


def ranks():
    """This process's rank and the number of processes.

    Returns
    -------
    rank : int
    world_size : int

    Example
    -------
    >>> ranks()
    (0, 1)
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        group = torch.distributed
        return group.get_rank(), group.get_world_size()
    return 0, 1


def sum_over_ranks(tensor):
    """Add a tensor up over all processes, in place.

    Arguments
    ---------
    tensor : torch.Tensor
        On a device of the backend; the same shape on every rank.

    Returns
    -------
    torch.Tensor
        The same tensor.

    Example
    -------
    >>> sum_over_ranks(torch.tensor([1, 2]))
    tensor([1, 2])
    """
    if ranks()[1] > 1:
        torch.distributed.all_reduce(tensor)
    return tensor
