"""From a template to a page: everything is escaped, and nothing that is missing passes for empty."""

from pathlib import Path
from typing import Any

from sft_dist.history.records import printable

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """The whole file. Text of any origin is shown as it is and obeyed nowhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
    )
    return environment.get_template(template).render(values)


def _plain(value: Any) -> Any:
    return printable(value) if type(value) is str else value  # jinja2's own Markup is a str too, and has its line ends
