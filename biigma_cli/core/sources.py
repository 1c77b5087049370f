"""The data that a network has learnt from, itself or through the networks behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from biigma_cli.core.weights import Checkpoint
from biigma_cli.taxonomy import SYNTHETIC, TAXONOMIES, base_of

#: A data set that was learnt from, see `as_source`; `caveat` beside it where images that a network
#: is validated or tested on could not be compared with it.
Source = dict[str, Any]

#: From the freest to the strictest; each allows what is made to go under one further on.
LICENCES = ("CC0-1.0", "CC-BY-4.0", "CC-BY-NC-4.0")
#: Data sets of ISIC whose images are among another's.
WITHIN = {"isic19": ("isic17", "isic18")}

_KEYS = ("dataset", "data_hash", "split_hash", "licence", "citation")


def as_source(values: Mapping[str, Any], *, beside: str = "") -> Source:
    """A data set's name, hashes, licence and citation.

    Args:
        values: holds those.
        beside: a data set that it joined; images of that one were left out.
    """
    return {**{key: values.get(key) or "" for key in _KEYS}, "beside": beside}


def sources_of(checkpoint: Checkpoint) -> list[Source]:
    """What a checkpoint says of it; one of an earlier version knows its own data alone."""
    meta = checkpoint.meta
    if "sources" in meta:
        return list(meta["sources"])
    dataset = checkpoint.config.data.dataset
    own = as_source({**meta.get("split", {}), **meta, "dataset": dataset})
    return [own, *(as_source(extra, beside=dataset) for extra in meta.get("extra", []))]


def merged(*lists: Iterable[Source]) -> list[Source]:
    """Several lists as one, each data set of a split once, with a caveat that any has of it."""
    found: dict[tuple[str, str, str], Source] = {}
    for entry in (entry for entries in lists for entry in entries):
        key = (entry["dataset"], entry["split_hash"], entry["beside"])
        caveat = {k: v for k, v in entry.items() if k == "caveat"}
        found[key] = {**found.get(key, entry), **caveat}
    return list(found.values())


def shares_images(entry: Source, dataset: str) -> bool:
    """Whether images of `dataset` may be among those of a source, whatever their split."""
    left = _images_of(entry["beside"]) if entry["beside"] else set()
    return bool((_images_of(entry["dataset"]) - left) & _images_of(dataset))


def may_share(entry: Source, dataset: str) -> bool:
    """Whether names alone leave open that images of `dataset` are among those of a source.

    So they do of a user's own data set; but what joined another (`beside`) brought none of that.
    """
    bases = {base_of(entry["dataset"]), base_of(dataset)}
    if SYNTHETIC.dataset in bases or bases <= TAXONOMIES.keys():
        return False
    return not entry["beside"] or base_of(dataset) not in _images_of(entry["beside"])


def _images_of(dataset: str) -> set[str]:
    base = base_of(dataset)
    return {base, *WITHIN.get(base, ())}


def joint_licence(sources: Sequence[Source]) -> str:
    """An SPDX expression: the strictest of `LICENCES`, and any other beside it."""
    names = dict.fromkeys(
        name for entry in sources for name in (entry["licence"] or "unknown").split(" AND ")
    )
    known = [name for name in LICENCES if name in names]
    others = [name for name in names if name not in LICENCES]
    if known and not (others and known[-1] == LICENCES[0]):  # the freest asks for nothing
        others.insert(0, known[-1])
    return " AND ".join(others)


def joint_citation(sources: Sequence[Source]) -> str:
    """Each citation once."""
    return " ".join(dict.fromkeys(e["citation"] for e in sources if e["citation"]))
