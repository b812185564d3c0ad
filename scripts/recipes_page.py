"""Write docs/recipes.md from the recipes and the figures that they record. Run as: python scripts/recipes_page.py"""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "recipes.md"
HEAD = """# Recipes

Settings that come with the package. `--config NAME` uses a recipe, flags override it, `simclr recipes NAME` prints it,
and `simclr reproduce NAME` trains and evaluates it and compares the figures with those recorded here (top-1 in %, with
the tolerance for one more seed). Each says for which hardware it is, and which of its figures are published ones.

| recipe | contents | k-NN | linear |
|---|---|---|---|
"""


def page() -> str:
    """Return the page."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "recipes").glob("*.yaml"))}
    rows, sections = [], []
    for name, text in texts.items():
        figures = yaml.safe_load(text).get("expected", {}).get("figures", {})
        cells = [cell(figures.get(measure)) for measure in ("knn", "linear")]
        rows.append(f"| [{name}](#{name}) | {text.splitlines()[0].lstrip('# ')} | {' | '.join(cells)} |\n")
        sections.append(f"\n## {name}\n\n```yaml\n{text}```\n")
    return HEAD + "".join(rows) + "".join(sections)


def cell(figure: dict[str, Any] | None) -> str:
    """Return a recorded figure with its tolerance."""
    return "" if figure is None else f"{100 * figure['value']:.1f} ± {100 * figure['tolerance']:.1f}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
