"""What our pages have in common: templates, escaping and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """What a table's cell shows, and in small beneath."""

    text: str
    small: str = ""


@dataclass(frozen=True, kw_only=True)
class PageTable:
    """A table of the page.

    Attributes:
        caption: above it.
        columns: heads; the first is that of the row heads.
        words: indices of columns that hold words; the others hold numbers.
        marked: indices of rows that stand out.
        notes: beneath it.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: Sequence[int] = ()
    marked: Sequence[int] = ()
    notes: Sequence[str] = ()


def render_page(template: str, **values: Any) -> str:
    """A template of `report/templates` with its values. Names, wherever from, are escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("biigma_cli.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
