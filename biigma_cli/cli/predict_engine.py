"""The options of `biigma predict --engine ray`, and what it runs on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from biigma_cli.runtime.ray_engine import RayEngine
    from biigma_cli.runtime.session import Predictor

ENGINES = ("local", "ray")

EngineOption = Annotated[
    str, typer.Option("--engine", help="local, or ray: many processes or machines.")
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDR",
        help="HOST:PORT of a Ray cluster.  [default: $RAY_ADDRESS, or one on this machine]",
    ),
]
RayWorkersOption = Annotated[
    int | None,
    typer.Option(
        "--ray-workers", min=1, metavar="N", help="[default: one per GPU, or per four cores]"
    ),
]


def check_engine(engine: str, address: str | None, workers: int | None) -> None:
    """Raise `UsageError` where the options do not fit together, or Ray is not installed."""
    from biigma_cli.errors import UsageError

    if engine not in ENGINES:
        raise UsageError(f"unknown --engine {engine!r}", fix=f"choose one of: {', '.join(ENGINES)}")
    if engine == "local" and (address is not None or workers is not None):
        name = "--ray-workers" if address is None else "--ray-address"
        raise UsageError(f"{name} without --engine ray", fix="add --engine ray")
    if engine == "ray":
        from biigma_cli.runtime.ray_cluster import check_installed

        check_installed()


@contextlib.contextmanager
def opened(
    engine: str,
    file: Path,
    *,
    device: str,
    address: str | None,
    workers: int | None,
    single: bool = False,
) -> Iterator[Predictor | RayEngine]:
    """What answers: a session in this process, or a cluster that is let go at the end.

    Args:
        single: there is one image, and all cores are to work at it.
    """
    from biigma_cli.runtime.pipeline import IN_FLIGHT
    from biigma_cli.runtime.session import Predictor

    if engine == "local":
        yield Predictor(file, device=device, callers=1 if single else IN_FLIGHT)
        return
    from biigma_cli.runtime.ray_engine import ray_engine

    with ray_engine(file, device=device, address=address, workers=workers) as cluster:
        yield cluster
