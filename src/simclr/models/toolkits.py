"""Naming schemes of the checkpoints of other toolkits."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

WRAPPERS = ("module.", "_orig_mod.", "_forward_module.")  # of DDP, torch.compile and Fabric
# where checkpoints keep their tensors, from the outside in
NESTS = (("classy_state_dict", "base_model", "model", "trunk"), ("state_dict",), ("model_state_dict",), ("model",), ())
_MOMENTUM = r"momentum_\w+\.|\w+_momentum\.|teacher\w*\.|target_\w+\."


class Scheme(NamedTuple):
    """Names of the tensors in the checkpoints of a toolkit."""

    name: str
    encoder: str
    """regular expression of what stands before the names of the encoder"""
    dropped: str
    """regular expression of the names of heads, predictors, classifiers and momentum copies, which are left out"""
    signed: bool = False
    """whether a file is of this scheme only if it contains one of the names that are dropped"""
    children: Mapping[str, str] = {}
    """names of the encoder's layers by their number, where it is a sequence"""
    stem: str = "small"
    """name of the 3×3 stem, see `simclr.models.resnet`"""
    imagenet: bool = True
    """whether its images are normalised with ImageNet's mean and standard deviation by default"""

    def encoder_names(self, key: str) -> list[str]:
        """Return the names that a tensor can have within the encoder, the likeliest first; none if it is not one of
        the encoder's."""
        prefix = re.match(self.encoder, key)
        if prefix is None:
            return []
        own = key[prefix.end() :]
        first, dot, rest = own.partition(".")
        return [self.children.get(first, first) + dot + rest, own]

    def drops(self, key: str) -> bool:
        """Return whether a tensor is one of those that are left out."""
        return re.match(self.dropped, key) is not None


SCHEMES = (
    Scheme("VISSL", r"(base_model\.)?_feature_blocks\.", r"heads?\.|clf\."),
    Scheme(
        "lightly-train",
        r"((student_)?embedding_model(_wrapper)?\.)?(wrapped_model|model_wrapper|_model)\.(_features\.|_model\.)",
        rf"(student_|embedding_model\.)?(projection|prediction|embed)\w*head\.|embedding_model\.embed_head\.|{_MOMENTUM}",
    ),
    Scheme("sthalles/SimCLR", r"backbone\.", r"backbone\.fc\.", signed=True, imagenet=False),
    Scheme("Spijkervet/SimCLR", r"encoder\.", r"projector\.[02]\.weight$", signed=True, imagenet=False),
    Scheme(
        "solo-learn", r"(backbone|encoder)\.",
        rf"(projector|predictor|prototypes|queue\w*|classifier\.(weight|bias)$|{_MOMENTUM})", signed=True,
        stem="solo-learn",
    ),
    Scheme(
        "mmselfsup or mmpretrain", r"backbone\.(?=[a-z])", rf"(neck|head|data_preprocessor)\.|memory_bank|{_MOMENTUM}",
        signed=True,
    ),
    Scheme(
        "lightly", r"((model|resnet_\w+)\.)?backbone\.",
        rf"(model\.)?(projection_head|prediction_head|online_classifier|classifier|prototypes|memory_bank|criterion)\b"
        rf"|{_MOMENTUM}",
        children={"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"},
    ),
    Scheme("torchvision", r"", r"fc\."),
    Scheme(
        "plain names", r"", r"(fc|head|heads|head_dist|classifier|classif|last_linear|projection_head|projector)(\.|$)",
    ),
)  # fmt: skip


def state_in(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, without the prefixes of wrappers; empty if there are none."""
    for path in NESTS:
        inner: Any = content
        for name in path:
            inner = inner.get(name) if isinstance(inner, Mapping) else None
        if not isinstance(inner, Mapping):
            continue
        tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
        while tensors and (prefix := next((w for w in WRAPPERS if all(n.startswith(w) for n in tensors)), None)):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        if tensors:
            return tensors
    return {}


class Placement(NamedTuple):
    """Names of a checkpoint's tensors under one scheme."""

    scheme: Scheme
    placed: dict[str, str]
    """name within the encoder -> name in the checkpoint"""
    dropped: list[str]
    left: list[str]
    """names that the scheme does not explain"""


def place(scheme: Scheme, keys: Iterable[str], encoder: Iterable[str] | None = None) -> Placement:
    """Return where the tensors of a checkpoint belong, in the encoder with these names or in one that they decide."""
    wanted = None if encoder is None else set(encoder)
    outer = {name.partition(".")[0] for name in wanted or ()}
    container = f"{outer.pop()}." if len(outer) == 1 else ""  # of a network that keeps all its layers in one sequence
    placement = Placement(scheme, {}, [], [])
    for key in keys:
        names = scheme.encoder_names(key)
        if wanted is None:
            fitting = [] if scheme.drops(key) else names[:1]
        else:
            fitting = [name for own in names for name in (own, container + own) if name in wanted]
        if fitting and fitting[0] not in placement.placed:
            placement.placed[fitting[0]] = key
        elif scheme.drops(key):
            placement.dropped.append(key)
        else:
            placement.left.append(key)
    return placement
