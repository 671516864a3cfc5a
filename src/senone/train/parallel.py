"""Data parallelism from outside: `torchrun` starts processes, each takes its rows, gradients are averaged."""

import os

import torch
from torch import Tensor, distributed, nn


def start() -> torch.device:
    """Join the processes that torchrun started, if any; the device to use."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if cuda else "gloo")
    return device


def stop() -> None:
    """Leave the group, if there is one."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def world() -> int:
    """How many processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is; the first one writes files."""
    return distributed.get_rank() if world() > 1 else 0


def mean(x: Tensor) -> Tensor:
    """The mean of `x` over all processes."""
    if world() > 1:
        distributed.all_reduce(x)
        x /= world()
    return x


def total(x: Tensor) -> Tensor:
    """The sum of `x` over all processes."""
    return mean(x) * world()


def mean_gradients(module: nn.Module) -> None:
    """Average the gradients over all processes, in one message."""
    if world() > 1:
        grads = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        flat = mean(torch.cat([grad.flatten() for grad in grads]))
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))
