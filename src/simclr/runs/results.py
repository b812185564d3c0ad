"""Result files."""

import hashlib
from pathlib import Path
from typing import Any

from simclr.runs.files import require_file_path


def destination(task: Any) -> Path:
    """The file a measurement writes: `task.out`, or one beside the encoder that has the name of the task.

    Asked for before anything is computed: ValueError if nothing can be written there.
    """
    folder = task.run.parent if task.run.suffix == ".safetensors" else task.run
    return require_file_path(task.out or folder / f"{type(task).__name__.lower()}.json")


def provenance(run: Path) -> dict[str, str]:
    """The hash of a run's recipe (of its card where the weights came without one) and of its weights."""
    folder = run.parent if run.suffix == ".safetensors" else run
    recipe = folder / "recipe.yaml"
    found = {"recipe": recipe if recipe.is_file() else folder / "card.json", "weights": folder / "encoder.safetensors"}
    return {what: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for what, path in found.items() if path.is_file()}
