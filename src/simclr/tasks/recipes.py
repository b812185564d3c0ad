"""Bundled recipes."""

from dataclasses import dataclass
from typing import ClassVar

from simclr.errors import SettingError
from simclr.runs.recipe import recipe_folder


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """List the bundled recipes, or print one of them. `--config NAME` uses a recipe."""

    command: ClassVar[str] = "recipes"

    name: str | None = None
    """name of the recipe to print"""

    def __call__(self) -> dict[str, str]:
        """Print and return the texts of the recipes by name."""
        texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(recipe_folder().glob("*.yaml"))}
        if self.name is None:
            width = max(map(len, texts))
            for name, text in texts.items():
                print(f"{name:<{width}}  {headline(text)}")
        elif self.name in texts:
            print(texts[self.name], end="")
        else:
            raise SettingError("name", f"the name of a recipe ({', '.join(texts)})", self.name)
        return texts


def headline(text: str) -> str:
    """Return the first line of a recipe's comment."""
    return text.splitlines()[0].lstrip("# ")
