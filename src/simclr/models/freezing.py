"""Networks of which the first part is frozen: parameters without gradients, norms in inference mode.

The official code's `fine_tune_after_block` freezes gradients but, in TensorFlow 1, lets batch norms of frozen blocks
update their statistics. Here frozen is frozen: no parameter and no buffer moves.
"""

from torch import nn

FROZEN = ("nothing", "stem", "block_group1", "block_group2", "block_group3", "encoder")


def parts(encoder: nn.Module, until: str) -> list[nn.Module]:
    """The modules of an encoder from the images up to and with the stage `until`.

    "nothing", "stem", "block_group1" to "block_group3" and "encoder" are the official `fine_tune_after_block` -1, 0
    to 3 and 4. Encoders without such stages know the first and the last. Raises ValueError for any other.
    """
    if until == "nothing":
        return []
    if until == "encoder":
        return [encoder]
    if until not in FROZEN or not hasattr(encoder, "stages"):
        known = FROZEN if hasattr(encoder, "stages") else ("nothing", "encoder")
        raise ValueError(f"freeze is {until!r}; this encoder can be frozen up to {', '.join(known)}")
    groups = FROZEN.index(until) - 1
    return [encoder.conv1, encoder.bn1, *(getattr(encoder, f"layer{k}") for k in range(1, groups + 1))]


def freeze(encoder: nn.Module, until: str) -> None:
    """Take the gradients from the parameters of these parts and put them into inference mode.

    The mode holds until the next `train()`: a network that contains them calls `still` after it.
    """
    for part in parts(encoder, until):
        part.requires_grad_(False)
    still(encoder, until)


def still(encoder: nn.Module, until: str) -> None:
    """Put these parts back into inference mode."""
    for part in parts(encoder, until):
        part.eval()
