"""Activation checkpointing."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from simclr.training.gradcache import _Buffers


def recompute_blocks(module: nn.Module) -> nn.Module:
    """Keep activations of `module` at the ends of its blocks only, compute the others again in the backward pass, and
    return it.

    Blocks are the entries of its lists and sequences of modules, except single layers, such as those of a stem. Values,
    gradients and buffers do not change; memory falls to that of the ends and one block, at the cost of another forward
    pass.
    """
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            for block in child:
                if next(block.children(), None) is not None and next(block.parameters(), None) is not None:
                    _recompute(block)
        else:
            recompute_blocks(child)
    return module


def _recompute(block: nn.Module) -> None:
    forward, buffers = block.forward, _Buffers(block)

    def run(*inputs: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        return checkpoint(forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), buffers.kept()))

    block.forward = run
