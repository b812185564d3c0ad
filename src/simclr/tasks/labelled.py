"""Labelled images that a command learns from: all, a fraction of each class, or those of a list."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from simclr.data import Source
from simclr.data.multilabel import class_names, present_classes
from simclr.data.splits import rows_from_list, stratified_subset
from simclr.errors import DataError, SettingError
from simclr.runs.files import printable
from simclr.settings import setting

SHOWN = 10  # names of classes in a line


@dataclass(frozen=True, kw_only=True)
class LabelSubset:
    """Part of a task with the settings that select labels, the same images in every command for the same seed."""

    fraction: float = setting(1.0, above=0, at_most=1)
    """fraction of the labels to use, the same of each class (selected by a hash of the image's name)"""
    labelled: Path | None = None
    """text file with the names of the labelled images to use, one per line, which replaces `fraction`, such as the
    official lists"""
    seed: int = 0
    """seed of every random draw, the selection of labels included"""

    def check_subset(self) -> None:
        """Raise SettingError if both settings select labels."""
        if self.fraction < 1 and self.labelled is not None:
            raise SettingError("fraction", "1 if labelled is given, since both select labels", self.fraction)

    def subset(
        self, train: Source, held_out: Bool[np.ndarray, " n"] | None = None, test: Source | None = None
    ) -> tuple[Source, float]:
        """Return the selected images of a labelled training split, without those held out, and the fraction of its
        labels that the selection is before they are taken away; a list that names images of `test` is refused, and so
        are images of one class."""
        rows = np.arange(len(train)) if self.labelled is None else rows_from_list(train, self.labelled, test)
        fraction = self.fraction * len(rows) / len(train)
        if held_out is not None:
            rows = rows[~held_out[rows]]
            if not len(rows):
                raise DataError(train.name, "all of its few labelled images are held out", "Give more of them")
        source = train.select(rows, train.split) if len(rows) < len(train) else train
        source = stratified_subset(source, self.fraction, self.seed)
        if len(present := present_classes(source)) < 2:
            names = tuple(class_names(source)[c] for c in present)
            problem = f"has labelled images of one class only{''.join(f' ({printable(name)})' for name in names)}"
            raise DataError(self.labelled or train.name, problem, "Add images of at least one other class", names)
        return source, fraction

    def describe_classes(self, source: Source) -> str:
        """Return the number of classes as text, and the names of those without an image in the list of images."""
        names = class_names(source)
        present = range(len(names)) if self.labelled is None else present_classes(source)
        if not (absent := [printable(name) for c, name in enumerate(names) if c not in present]):
            return f"{len(names)} classes"
        some = ", ".join(absent[:SHOWN]) + (", ..." if len(absent) > SHOWN else "")
        return f"{len(present)} of {len(names)} classes (none of {some})"

    @property
    def uses_subset(self) -> bool:
        """Whether labels are left out."""
        return self.fraction < 1 or self.labelled is not None

    @property
    def file_suffix(self) -> str:
        """The end of the names of files and folders; empty for all labels."""
        return f"-{self.labelled.stem}" if self.labelled else f"-{self.fraction:g}" if self.fraction < 1 else ""

    def protocol_on_subset(self, protocol: str) -> str:
        """Return a protocol with the labels it learns from, if they are not all."""
        return f"{protocol}, {self.amount}" if self.uses_subset else protocol

    @property
    def amount(self) -> str:
        """The labels as text."""
        return f"{100 * self.fraction:g} % of labels" if self.labelled is None else "listed labels"
