"""Figures of maps against lesion masks as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from textwrap import fill

from rich import box
from rich.table import Table
from rich.text import Text

from biigma_cli.metrics import Figure
from biigma_cli.metrics.localisation import (
    CENTRE_SPREAD,
    LOCALISATION,
    LOCALISATION_TITLES,
    RANKED,
    REFERENCES,
    Localisation,
)

MAP_TITLES = {
    "answer": "evidence, answer",
    "truth": "evidence, truth",
    "plain": "M, plain",
    "standardised": "M, standardised",
    "centre": "(centre prior)",
    "uniform": "(uniform)",
    "mask": "(mask itself)",
}
AS_PLAIN = "as plain"
SAME_ORDER = (
    "Standardising M keeps the order of its cells: pointing game and pixel AUC are the same for "
    "both forms."
)


def own_maps(names: Iterable[str]) -> list[str]:
    """The model's own maps among them: those that are no references."""
    return [name for name in names if name not in REFERENCES]


def shown_once(names: Iterable[str]) -> tuple[str, ...]:
    """Maps whose `RANKED` figures are another's, lest equal figures look like a comparison."""
    return ("standardised",) if {"plain", "standardised"} <= set(names) else ()


def remarks(without_energy: Mapping[str, int]) -> list[str]:
    """How the figures are to be read; of every map shown, how many images have no energy."""
    told = [SAME_ORDER] if shown_once(without_energy) else []
    told.append(
        f"Lesions lie in the middle: what does not beat the centre prior, a Gaussian there (of "
        f"{CENTRE_SPREAD} of the side), shows the lesion no better than pointing at the middle of "
        "any picture. The mask itself has the highest AUC that so few cells allow."
    )
    return told + [
        f"{MAP_TITLES.get(name, name)}: {without_energy[name]} images without a positive value "
        "have no share of energy."
        for name in own_maps(without_energy)
        if without_energy[name]
    ]


def localisation_tables(
    maps: Mapping[str, Localisation],
    counts: Mapping[str, int],
    *,
    title: str,
) -> list[Table | str]:
    """All maps, their differences from the centre prior, and classes; 80 columns.

    Args:
        maps: by name, the references among them.
        counts: images by class.
        title: of the first table.
    """
    own, shared = own_maps(maps), shown_once(maps)
    items: list[Table | str] = [
        _map_table({n: maps[n].overall for n in maps}, title=title, shared=shared),
        _map_table(
            {n: maps[n].over_centre for n in own},
            title="minus the centre prior (paired differences)",
            signed=True, shared=shared,
        ),
    ]  # fmt: skip
    told = remarks({name: maps[name].without_energy for name in maps})
    items += [fill(line, 80) for line in told]
    form = "standardised" if "standardised" in maps else "plain"
    shown = [n for n in ("answer", form, "centre") if n in maps]
    items.append(_class_table(maps, counts, shown, "pointing"))
    items.append(_class_table(maps, counts, shown, "auc"))
    return items


def _map_table(
    rows: Mapping[str, Mapping[str, Figure]],
    *,
    title: str,
    signed: bool = False,
    shared: tuple[str, ...] = (),
) -> Table:
    table = Table(
        title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        collapse_padding=True,
    )  # fmt: skip
    table.add_column("map", overflow="fold")
    for name in LOCALISATION:
        table.add_column(LOCALISATION_TITLES[name], justify="right", no_wrap=True)
    for name, figures in rows.items():
        cells = [
            Text(AS_PLAIN, style="dim")
            if name in shared and figure in RANKED
            else _cell(figures[figure], signed=signed, digits=2 if figure == "lift" else 3)
            for figure in LOCALISATION
        ]
        table.add_row(Text(MAP_TITLES[name]), *cells)
    return table


def _class_table(
    maps: Mapping[str, Localisation],
    counts: Mapping[str, int],
    shown: list[str],
    figure: str,
) -> Table:
    table = Table(
        title=f"{LOCALISATION_TITLES[figure]} by class", title_justify="left",
        box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    table.add_column("class", overflow="fold")
    table.add_column("images", justify="right", no_wrap=True)
    for name in shown:
        # The order is what these figures are about, so either form of M does.
        title = "M" if name in ("plain", "standardised") else MAP_TITLES[name]
        table.add_column(title, justify="right", no_wrap=True)
    for code, count in counts.items():
        cells = [_cell(maps[name].per_class[code][figure]) for name in shown]
        table.add_row(Text(code), str(count), *cells)
    return table


def _cell(figure: Figure, *, signed: bool = False, digits: int = 3) -> Text:
    form = f"{'+' if signed else ''}.{digits}f"
    if figure.value is None:
        return Text("-")
    span = "" if figure.low is None else f"\n{figure.low:{form}}..{figure.high:{form}}"
    return Text.assemble(f"{figure.value:{form}}", (span, "dim"))
