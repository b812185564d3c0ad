"""Pages from the templates beside this file."""

from pathlib import Path
from typing import Any

from simclr.runs.files import printable


def render_template(name: str, **values: Any) -> str:
    """Return a template with its values. Every text is escaped unless the template says that it is markup."""
    from jinja2 import Environment, FileSystemLoader

    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["printable"] = printable
    return environment.get_template(name).render(**values)
