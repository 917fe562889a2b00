"""Ranks and sums, the same with one process and with many.

Authors
 * The blsp_plugin team 2026
"""

import torch

__all__ = ["gather_objects", "ranks", "sum_over_ranks"]


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


def gather_objects(value):
    """Collect a (small, picklable) value from all processes.

    Arguments
    ---------
    value : object
        This process's.

    Returns
    -------
    list
        One a process, in their order.

    Example
    -------
    >>> gather_objects({"rows": 3})
    [{'rows': 3}]
    """
    world_size = ranks()[1]
    if world_size == 1:
        return [value]
    values = [None] * world_size
    torch.distributed.all_gather_object(values, value)
    return values
