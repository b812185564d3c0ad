"""Conversion of official checkpoints, read without TensorFlow, to our networks.

The architecture of a checkpoint is found by trying all official ones: the right one accounts for every variable by name
and by shape. Conversion is complete or refused: each tensor of the networks and each variable of the checkpoint must
match, except for variables of the training state.
"""

import re
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from simclr.errors import RunError, SettingError
from simclr.models.card import Card
from simclr.models.head import ProjectionHead
from simclr.models.official.checkpoint import OBJECT_GRAPH, Bundle, find_prefix
from simclr.models.official.names import Layer, encoder_layers, head_layers, official_names, supervised_layers, to_torch
from simclr.models.resnet import DEPTHS, ResNet, resnet
from simclr.models.weights import check_match

MAX_PATHS = 100_000  # through the objects of a checkpoint; the largest official network has 5,000
MAX_HEAD_LAYERS = 100
SK_RATIO = 0.0625  # the official value; below 512 channels other ratios give the same network
# variables of the training state, which are not converted
_TRAINING_STATE = re.compile(
    rf"^({OBJECT_GRAPH}|global_step|save_counter|optimizer)(/|$)|/\.OPTIMIZER_SLOT/|/(Momentum|Adam(_1)?)$"
    r"|^beta[12]_power$|memory"
)


class Converted(NamedTuple):
    """Networks of a converted checkpoint, in evaluation mode."""

    encoder: ResNet
    head: ProjectionHead | None
    supervised: nn.Linear | None
    card: Card
    placed: dict[str, int]
    """number of variables placed in each network"""
    ignored: list[str]
    """keys of the training state and of the copy that was not selected"""


def convert(
    checkpoint: str | Path,
    weights: Literal["model", "ema"] = "model",
    supervised_input: int = 0,
    image_size: int | None = None,
) -> Converted:
    """Convert an official checkpoint: TF2 training or SavedModel `variables`, TF1 training, or a hub module.

    weights: "ema" selects the moving averages in v2's TF1 checkpoints instead of the trained variables.
    supervised_input: entry of the head's activations that is classified (official `ft_proj_selector`).
    image_size: side of the images for the card, pixels; by default 32 with the small stem, else 224.
    """
    prefix = find_prefix(checkpoint)
    bundle = Bundle(prefix)
    stored, form = _stored_under(bundle, weights)
    ignored = [key for key in bundle.entries if _is_ignored(key, weights, form)]
    architecture = _encoder_of(bundle, stored, form, prefix)
    encoder = architecture.build()
    names = {"encoder": official_names(architecture.layers, form)}

    head_names, head_config = _head_of(stored, bundle, form)
    head = supervised = None
    if head_config is not None:
        with torch.device("meta"):
            planned = ProjectionHead(encoder.num_features, **head_config).state_dict()
        if any(bundle.entries[stored[n]].shape != _official_shape(planned[ours]) for ours, n in head_names.items()):
            raise RunError(prefix, "its projection head does not fit the encoder", names=("head",))
        head = ProjectionHead(encoder.num_features, **head_config)
        names["head"] = head_names
    classifier = official_names(supervised_layers(), form)
    if all(name in stored for name in classifier.values()):
        shape = bundle.entries[stored[classifier["weight"]]].shape
        if len(shape) != 2 or min(shape) < 1:
            raise RunError(prefix, f"its classifier has weights of shape {shape}", names=("supervised",))
        supervised = nn.Linear(*shape)
        names["supervised"] = classifier
    modules = {"encoder": encoder, "head": head, "supervised": supervised}

    used = {stored[name] for placed in names.values() for name in placed.values()}
    left = sorted(bundle.entries.keys() - used - set(ignored))
    if left:
        count = f"{len(left)} of {len(bundle.entries)} variables"
        raise RunError(prefix, f"{count} are not in {architecture.name}, such as {', '.join(left[:3])}")
    for what, placed in names.items():
        _fill(modules[what], {ours: to_torch(bundle.read(stored[name])) for ours, name in placed.items()}, what)
    bundle.verify()
    if supervised is not None:
        _check_input(supervised, encoder, head, supervised_input)

    size = image_size or (32 if encoder.stem == "small" else 224)
    card = Card(
        encoder={"name": architecture.name, "options": architecture.options()},
        features=encoder.num_features,
        image_size=size,
        preprocess={"size": size, "crop": 0.875},
        head=None if head is None else head.config(),
        supervised=None if supervised is None else {"classes": supervised.out_features, "input": supervised_input},
        source={"checkpoint": prefix.name, "format": _FORMS[form], "weights": weights},
    )
    placed_counts = {what: len(placed) for what, placed in names.items()}
    for module in modules.values():
        if module is not None:
            module.eval()
    return Converted(encoder, head, supervised, card, placed_counts, ignored)


_FORMS = {"tf2": "TensorFlow 2, by objects", "tf1": "TensorFlow 1, by names"}


def _stored_under(bundle: Bundle, weights: str) -> tuple[dict[str, str], Literal["tf2", "tf1"]]:
    """Return {official name of a variable: key of its value in the checkpoint}, and the form of the names."""
    nodes = bundle.object_graph()
    if nodes:
        if weights == "ema":
            raise SettingError("weights", "model for a TensorFlow 2 checkpoint, which has no moving averages", weights)
        return _paths(bundle, nodes), "tf2"
    prefix = "ema_model/" if weights == "ema" else ""
    stored = {key.removeprefix(prefix): key for key in bundle.entries if key.startswith(prefix)}
    if not any(name.startswith("base_model/") for name in stored):
        problem = f"has no variable {prefix}base_model/..., so it is not a SimCLR checkpoint"
        raise RunError(bundle.prefix, problem)
    return stored, "tf1"


def _paths(bundle: Bundle, nodes: list) -> dict[str, str]:
    """Return the object paths of all variables in the three networks of the official model.

    SavedModels store values under names such as `trainable_variables_list/7`; only the graph says what they belong to.
    """
    paths, visited = {}, 0
    for network in ("resnet_model", "_projection_head", "supervised_head"):
        start = _descend(nodes, ["model", network])
        waiting = [] if start is None else [(f"model/{network}", start, frozenset())]
        while waiting:
            path, number, above = waiting.pop()
            visited += 1
            if visited > MAX_PATHS:
                raise RunError(bundle.prefix, f"its objects can be reached by more than {MAX_PATHS:,} paths")
            node = nodes[number]
            if node.variable is not None:
                paths[path] = node.variable
            for name, child in node.children.items():
                # private attributes and lists of variables are other paths to the same variables
                if child not in above and child < len(nodes) and _STRUCTURE.fullmatch(name):
                    waiting.append((f"{path}/{name}", child, above | {number}))
    missing = {key for key in paths.values() if key not in bundle.entries}
    if not paths or missing:
        raise RunError(bundle.prefix, "its objects are not those of a SimCLR model")
    return paths


_STRUCTURE = re.compile(
    r"\d+|initial_conv_relu_max_pool|block_groups|layers|projection_layers|shortcut_layers|conv2d_bn_layers"
    r"|conv_relu_dropblock_layers|conv2d(_\w+)?|batch_norm_relu(_1)?|bn|bn_relu|se_layer|se_reduce|se_expand"
    r"|linear_layers|linear_layer|dense|kernel|bias|gamma|beta|moving_mean|moving_variance"
)


def _descend(nodes: list, names: list[str]) -> int | None:
    number = 0
    for name in names:
        number = nodes[number].children.get(name, -1)
        if not 0 <= number < len(nodes):
            return None
    return number


def _is_ignored(key: str, weights: str, form: str) -> bool:
    other_copy = form == "tf1" and (key.startswith("ema_model/") != (weights == "ema"))
    return other_copy or _TRAINING_STATE.search(key) is not None


class _Architecture(NamedTuple):
    depth: int
    width: float | int
    sk_ratio: float
    se_ratio: float
    small_stem: bool
    layers: list[Layer]

    @property
    def name(self) -> str:
        return f"simclr_resnet{self.depth}"

    def options(self) -> dict[str, float | int | str]:
        ratios = {"sk_ratio": self.sk_ratio, "se_ratio": self.se_ratio}
        return {
            "width": self.width, **{name: ratio for name, ratio in ratios.items() if ratio},
            "stem": "small" if self.small_stem else "imagenet",
        }  # fmt: skip

    def build(self) -> ResNet:
        return resnet(self.depth, **self.options())


def _encoder_of(bundle: Bundle, stored: dict[str, str], form: Literal["tf2", "tf1"], prefix: Path) -> _Architecture:
    """Return the architecture whose variables are those of the checkpoint, by name and by shape."""
    root = "model/resnet_model/" if form == "tf2" else "base_model/"
    present = {key for name, key in stored.items() if name.startswith(root) and not _TRAINING_STATE.search(name)}
    for depth, sk, se, small in product(DEPTHS, (False, True), (False, True), (False, True)):
        layers = encoder_layers(depth, sk, se, small)
        names = official_names(layers, form)
        # compared by key: the objects of a SavedModel can be reached by several paths
        if not stored.keys() >= set(names.values()) or {stored[name] for name in names.values()} != present:
            continue
        shapes = {ours: bundle.entries[stored[name]].shape for ours, name in names.items()}
        try:
            architecture = _Architecture(depth, *_sizes(shapes, sk, se), small, layers)
            with torch.device("meta"):
                expected = architecture.build().state_dict()
        except (ValueError, IndexError, ZeroDivisionError, OverflowError, RuntimeError):  # of shapes that are none
            continue
        if all(shapes[ours] == _official_shape(expected[ours]) for ours in names):
            return architecture
    raise RunError(prefix, f"its {len(present)} encoder variables are not those of an official ResNet")


def _sizes(shapes: dict[str, tuple[int, ...]], sk: bool, se: bool) -> tuple[float | int, float, float]:
    """Return width and the two ratios, from the shapes of the last group's first block."""
    base = shapes["bn1.weight"][0]
    filters = 8 * base
    sk_ratio = SK_RATIO if sk else 0.0
    middle = shapes.get("layer4.0.conv2.reduce.weight")
    if middle and middle[-1] != max(int(filters * SK_RATIO), 32):
        sk_ratio = middle[-1] / filters
    width = base // 64 if base % 64 == 0 else base / 64
    return width, sk_ratio, shapes["layer4.0.se.reduce.weight"][-1] / filters if se else 0.0


def _official_shape(tensor: Tensor) -> tuple[int, ...]:
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(tensor.dim(), tuple(range(tensor.dim())))
    return tuple(tensor.shape[axis] for axis in axes)


def _head_of(
    stored: dict[str, str], bundle: Bundle, form: Literal["tf2", "tf1"]
) -> tuple[dict[str, str], dict[str, int] | None]:
    """Return names and configuration of the projection head; a last layer with an offset means that others were
    removed."""
    count = 0
    while official_names(head_layers(count + 1), form)[f"layers.{count}.dense.weight"] in stored:
        count += 1
        if count > MAX_HEAD_LAYERS:
            raise RunError(bundle.prefix, f"its projection head has more than {MAX_HEAD_LAYERS} layers")
    if count == 0:
        return {}, None
    whole = official_names(head_layers(count), form)
    longer = official_names(head_layers(count + 1, kept=count), form)
    cut = longer[f"layers.{count - 1}.norm.bias"] in stored
    first, last = (bundle.entries[stored[whole[f"layers.{j}.dense.weight"]]].shape for j in (0, count - 1))
    if len(first) != 2 or len(last) != 2:
        raise RunError(bundle.prefix, f"its projection head has weights of shapes {first} and {last}", names=("head",))
    if cut:
        return longer, {"layers": count + 1, "kept": count, "hidden": first[1]}
    return whole, {"layers": count, "out_features": last[1], "hidden": first[1] if count > 1 else first[0]}


def _fill(module: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    expected = {name: t for name, t in module.state_dict().items() if not name.endswith("num_batches_tracked")}
    check_match(expected, tensors, what)
    module.load_state_dict(tensors, strict=False)  # only the batch counters are missing, as checked above


def _check_input(supervised: nn.Linear, encoder: ResNet, head: ProjectionHead | None, chosen: int) -> None:
    sizes = [encoder.num_features, *(layer.dense.out_features for layer in (head.layers if head else []))]
    if not 0 <= chosen < len(sizes) or sizes[chosen] != supervised.in_features:
        allowed = f"an entry of the head's activations with {supervised.in_features} features (they have {sizes})"
        raise SettingError("supervised_input", allowed, chosen)
