"""The recipes that come with the package."""

from dataclasses import dataclass
from typing import ClassVar

from simclr.runs.recipe import recipe_folder


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """List the bundled recipes, or print one; `--config NAME` uses it."""

    command: ClassVar[str] = "recipes"

    name: str | None = None
    """recipe to print"""

    def __call__(self) -> dict[str, str]:
        texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(recipe_folder().glob("*.yaml"))}
        if self.name is None:
            width = max(map(len, texts))
            for name, text in texts.items():
                print(f"{name:<{width}}  {headline(text)}")
        elif self.name in texts:
            print(texts[self.name], end="")
        else:
            raise ValueError(f"there is no recipe {self.name!r}; there are {', '.join(texts)}")
        return texts


def headline(text: str) -> str:
    """The first line of a recipe's comment."""
    return text.splitlines()[0].lstrip("# ")
