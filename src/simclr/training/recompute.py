"""Activation checkpointing."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from simclr.training.gradcache import _Buffers


def recompute_blocks(module: nn.Module) -> nn.Module:
    """`module` with activations kept at the ends of its blocks only, and computed again in the backward pass.

    Blocks are what its lists and sequences of modules hold, but for single layers, such as those of a stem. Values,
    gradients and buffers stay as they are; memory falls to that of the ends and one block, for another forward pass.
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
