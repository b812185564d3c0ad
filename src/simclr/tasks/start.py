"""Start of a run from weights that exist: what they decide, and what the run remembers of them."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simclr.errors import RunError, SettingError
from simclr.models.options import check_options
from simclr.models.start import Start, open_start
from simclr.runs.recipe import is_import_path, saved_recipe
from simclr.runs.results import named_run, weights_path
from simclr.runs.run import Run

DEFAULT = "simclr_resnet50"  # encoder of a run that starts from random weights


class StartsFromWeights:
    """Part of a task with the settings `encoder`, `encoder_options` and `init`, whose weights decide the encoder.

    A run records the hash of the weights and the encoder that they decided. It resumes when the file is gone, and is
    refused when the file has another content.
    """

    if TYPE_CHECKING:
        encoder: str | None
        encoder_options: dict[str, Any]
        channels: int
        init: Path | None
        fresh: bool
        folder: Path

    @cached_property
    def start(self) -> Start | None:
        """The weights to start from; None for random ones, and for a run that has begun and whose weights are gone."""
        if self.init is None:
            return None
        try:
            path = named_run(self.init).path
        except RunError:  # weights that are not in timm's cache
            if self._has_begun:
                return None
            raise
        if path.resolve() == self.folder.resolve():
            raise SettingError("init", "another folder than that of the run", str(self.init))
        if not (path.is_file() or weights_path(path).is_file()) and self._has_begun:
            return None
        return open_start(self.init, self.encoder, self.encoder_options)

    def settle_encoder(self) -> None:
        """Set encoder and options to those that the weights decide, as far as they are not given."""
        if self.init is None:
            name, options = self.encoder or DEFAULT, self.encoder_options
        elif self.start is not None:
            name, options = self.start.card.encoder["name"], {**self.start.options, **self.encoder_options}
        else:
            recipe = saved_recipe(self.folder)
            name, options = recipe["encoder"], recipe["encoder_options"]
            if is_import_path(name) and name != self.encoder:
                raise code_refused(self.folder / "recipe.yaml", name)
        options = self._with_channels(options)
        check_options(name, options)
        object.__setattr__(self, "encoder", name)
        object.__setattr__(self, "encoder_options", options)

    def _with_channels(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options of the encoder with the number of channels, if it is not three."""
        stored = 3 if self.start is None else self.start.card.channels
        if stored not in (3, self.channels):
            raise SettingError("channels", f"{stored}, as of the images of {self.init}", self.channels)
        if self.init is None and options.get("in_chans", self.channels) != self.channels:
            raise SettingError("encoder_options.in_chans", f"channels ({self.channels})", options["in_chans"])
        return options if self.channels == 3 else {**options, "in_chans": self.channels}

    @property
    def start_identity(self) -> dict[str, Any]:
        """What identifies the weights among the data of the run; empty for random ones."""
        if self.init is None:
            return {}
        return {"init": self.start.sha256 if self.start else Run(self.folder).recorded_data.get("init")}

    @property
    def start_record(self) -> dict[str, Any]:
        """The entry of the card that says what the weights began as; empty for random ones."""
        return {name: {"name": str(self.init), "sha256": value} for name, value in self.start_identity.items()}

    def require_start(self, run: Run) -> None:
        """Raise RunError if the weights are gone and the run has no checkpoint to take their place."""
        if self.init is not None and self.start is None and run.restore() is None:
            raise RunError(self.init, "does not exist", "Put it back: the run has no checkpoint yet")

    @property
    def _has_begun(self) -> bool:
        run = Run(self.folder)
        return not self.fresh and run.has_progress and saved_recipe(self.folder).get("init") == str(self.init)


def code_refused(path: Path, name: str) -> RunError:
    """Return the error for a recipe whose encoder is code of the user's own that the command line does not name."""
    problem = f"names an encoder by import path, {name}, which is code and runs only if you name it too"
    return RunError(path, problem, f"Add --encoder {name}", ("encoder",))
