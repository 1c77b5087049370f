"""`biigma download`: get a data set onto this machine, or record a copy that is there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import AllowMissingOption, DataDirOption, given_path

if TYPE_CHECKING:
    from rich.progress import TaskID

    from biigma_cli.data.fetch import Event, Step
    from biigma_cli.data.manifest import Manifest


@boundary
def download(
    dataset: Annotated[str, typer.Argument(help="Data set: isic17, isic18 (HAM10000) or isic19.")],
    from_: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="DIR",
            parser=given_path,
            help="Take an existing copy: archives, the unzipped official layout, or Kaggle's or "
            "Dataverse's. Images are left where they are. May be given several times.",
        ),
    ] = None,
    parts: Annotated[
        str, typer.Option("--parts", help="Parts of the challenge to fetch.")
    ] = "train,val,test",
    allow_missing: AllowMissingOption = False,
    mirror: Annotated[
        str | None,
        typer.Option(
            "--mirror", metavar="URL", help="Your own server of these files.  [$BIIGMA_MIRROR]"
        ),
    ] = None,
    list_urls: Annotated[
        bool, typer.Option("--list-urls", help="Print addresses, sizes and checksums, and stop.")
    ] = False,
    accept_checksum: Annotated[
        bool,
        typer.Option(
            "--accept-checksum",
            help="Take a file whose checksum differs from one that a single source gives.",
        ),
    ] = False,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Keep the zip files after unpacking.")
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Files at a time.")] = 3,
    offline: Annotated[
        bool, typer.Option("--offline", help="Open no socket.  [$BIIGMA_OFFLINE]")
    ] = False,
    data_dir: DataDirOption = None,
) -> None:
    """Get a data set, check it, and record where it lies.

    Downloads go on where they stopped, are verified, and unpacked into the data folder. Then
    every image is opened, and counts and classes are compared with the published ones.
    """
    from biigma_cli.data import sources
    from biigma_cli.data.datasets import OFFICIAL, read_copy
    from biigma_cli.errors import UsageError
    from biigma_cli.storage import home
    from biigma_cli.taxonomy import DERIVED

    if dataset in DERIVED:
        raise UsageError(
            f"{dataset} is a task on the images of {DERIVED[dataset]}",
            fix=f"biigma download {DERIVED[dataset]}",
        )
    if dataset not in OFFICIAL:
        raise UsageError(
            f"{dataset!r} cannot be downloaded",
            fix=f"choose one of: {', '.join(OFFICIAL)}; your own images: biigma datasets add",
        )
    wanted = _parts(parts)
    if list_urls:
        for url, size, checksum in sources.list_urls(dataset, wanted, mirror):
            typer.echo(f"{url}\t{size}\t{checksum}")
        return
    folder = home() / "data" / dataset
    if from_ is not None and set(wanted) != set(sources.PARTS):
        raise UsageError(
            "--parts chooses what is fetched; with --from all that lies there is read",
            fix="leave --parts out",
        )
    if from_ is None:
        from biigma_cli.data.fetch import download as fetch

        kept = _recorded_elsewhere(dataset, folder, wanted)

        with _Transfers() as shown:
            folders = [
                fetch(
                    dataset, folder, parts=wanted, mirror=mirror, accept_checksum=accept_checksum,
                    parallel=jobs, offline=offline, keep_archives=keep_archives, on_event=shown,
                ),
                *kept,
            ]  # fmt: skip
    else:
        from biigma_cli.data.fetch import find_archives, place_archives
        from biigma_cli.data.scan import resolved

        folders = []
        for source in (resolved(given, fix="check --from") for given in from_):
            if not find_archives(dataset, source):
                folders.append(source)
                continue
            with _Transfers() as shown:
                placed = place_archives(
                    dataset, source, folder, accept_checksum=accept_checksum, on_event=shown
                )
            # Beside the archives may lie what is unpacked already, or lesion masks.
            folders += [placed, *([source] if source.is_dir() else [])]

    from biigma_cli.cli.progress import Progress

    with Progress("checking", "images") as progress:
        manifest = read_copy(
            dataset, folders, allow_missing=allow_missing, progress=progress, warn=note
        )
    show_recorded(manifest)


def _recorded_elsewhere(dataset: str, folder: Path, wanted: list[str]) -> list[Path]:
    """Where the parts lie that are not fetched now but were recorded from another place."""
    from biigma_cli.data.manifest import load_manifest, record_path
    from biigma_cli.data.sources import PARTS
    from biigma_cli.errors import BiigmaError, UsageError
    from biigma_cli.storage import is_file, is_folder

    if set(wanted) == set(PARTS) or not is_file(record_path(dataset)):
        return []
    try:
        manifest = load_manifest(dataset)
    except BiigmaError:
        return []  # damaged or gone: nothing to keep
    others = {r.part for r in manifest.records} - set(wanted)
    if not others or manifest.root.resolve() == folder.resolve():
        return []
    if "" in others:
        raise UsageError(
            f"{dataset} is recorded from {manifest.root}, in a layout without official parts: "
            "a part alone cannot be added to it",
            fix=f"fetch all parts: biigma download {dataset}",
        )
    # Of several --from, all but the first are in the paths alone.
    elsewhere = (Path(r.path).parent for r in manifest.records if Path(r.path).is_absolute())
    return [manifest.root, *dict.fromkeys(p for p in elsewhere if is_folder(p))]


def show_recorded(manifest: Manifest) -> None:
    """Record a checked data set, and say what it holds."""
    from biigma_cli.data.manifest import save_manifest

    replaced = _replaced(manifest)
    path = save_manifest(manifest)
    if replaced:
        note(replaced)
    records = manifest.records
    with_lesion = [r.lesion_id for r in records if r.lesion_id]
    lesions = f" of {len(set(with_lesion))} lesions" if len(with_lesion) == len(records) else ""
    parts = {p: sum(r.part == p for r in records) for p in ("train", "val", "test")}
    typer.echo(f"{manifest.dataset}: {len(records)} images{lesions}, all open")
    if manifest.missing:
        typer.echo(f"missing: {manifest.missing} labelled images are not on this machine")
    typer.echo("classes: " + ", ".join(f"{c} {n}" for c, n in manifest.class_counts().items()))
    if any(parts.values()):
        typer.echo("parts:   " + ", ".join(f"{p} {n}" for p, n in parts.items() if n))
    typer.echo(f"images:  {manifest.root} (left where they are)")
    cite = f". Please cite: {manifest.citation}" if manifest.citation else ""
    typer.echo(f"licence: {manifest.licence}{cite}")
    note(f"recorded in {path}")


def _replaced(manifest: Manifest) -> str:
    """What the record of that name held so far, to show; empty where it held the same.

    A folder that has moved, and a record that can no longer be read, are not told of.
    """
    from biigma_cli.data.manifest import find_manifest

    old = find_manifest(manifest.dataset)
    if old is None or old.same_content(manifest):
        return ""
    before, now = (
        f"{len(m.records)} images ({', '.join(f'{c} {n}' for c, n in m.class_counts().items())})"
        for m in (old, manifest)
    )
    text = f"the record of {manifest.dataset} is replaced: it held {before}, "
    return text + (f"now {now}" if now != before else "now as many, which differ")


def _parts(text: str) -> list[str]:
    from biigma_cli.data.sources import PARTS
    from biigma_cli.errors import UsageError

    wanted = [p.strip() for p in text.split(",") if p.strip()]
    unknown = [p for p in wanted if p not in PARTS]
    if unknown or not wanted:
        raise UsageError(
            f"unknown --parts {', '.join(unknown) or 'nothing'}",
            fix=f"choose from: {','.join(PARTS)}",
        )
    return wanted


_DOING = {"download": "downloading", "verify": "verifying", "unpack": "unpacking"}


class _Transfers:
    """Shows several transfers at once on stderr: bars on a terminal, plain lines elsewhere."""

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self.began: dict[tuple[str, str], float] = {}
        self.said: dict[tuple[str, str], float] = {}
        console = Console(stderr=True)
        self.live = console.is_terminal
        self.bars = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
            TransferSpeedColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not self.live,
        )  # fmt: skip
        self.tasks: dict[tuple[str, str], TaskID] = {}
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, event: Event) -> None:
        from biigma_cli.data.fetch import Step

        if not isinstance(event, Step):
            self.say(f"{'warning: ' if event.warning else ''}{event.name}: {event.text}")
            return
        key = (event.name, event.phase)
        if self.live:
            if key not in self.tasks:
                what = f"{_DOING[event.phase]} {event.name}"
                self.tasks[key] = self.bars.add_task(what, total=event.total)
            self.bars.update(self.tasks[key], completed=event.done, total=event.total)
            if event.done == event.total:
                self.bars.remove_task(self.tasks.pop(key))
            return
        self.plain(event, key)

    def plain(self, event: Step, key: tuple[str, str]) -> None:
        """A line at the end, and one every ten seconds."""
        from biigma_cli.cli.progress import clock
        from biigma_cli.data.sources import human

        now = time.monotonic()
        finished = event.done == event.total
        first = self.began.setdefault(key, now)
        if not finished and now - self.said.get(key, first) < 10:
            return
        self.said[key] = now
        rate = event.done / (now - first) if now - first > 0.2 else 0.0
        of = f" of {human(event.total)}" if event.total is not None else ""
        left = (
            f", {clock((event.total - event.done) / rate)} left"
            if event.total is not None and rate and not finished
            else ""
        )
        speed = f", {human(rate)}/s" if rate else ""
        self.say(f"{_DOING[event.phase]} {event.name}: {human(event.done)}{of}{speed}{left}")

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.live:
            self.bars.console.print(text, markup=False, highlight=False)
        else:
            note(text)
