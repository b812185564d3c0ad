"""Pages from the templates beside this file."""

from functools import cache
from pathlib import Path
from typing import Any

from simclr.runs.files import printable


def render_template(name: str, **values: Any) -> str:
    """Return a template with its values. Every text is escaped unless the template says that it is markup."""
    return _environment().get_template(name).render(**values)


@cache
def _environment() -> Any:
    """Return the environment, which compiles each template once for all pages of a process."""
    from jinja2 import Environment, FileSystemLoader

    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["printable"] = printable
    return environment
