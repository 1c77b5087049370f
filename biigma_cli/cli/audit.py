"""`biigma audit`: what is wrong with a data set, and what its splits leak."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from biigma_cli.cli.boundary import boundary, note
from biigma_cli.cli.options import DataDirOption, JsonOption, file_path, given_path


@boundary
def audit(
    dataset: Annotated[str, typer.Argument(help="Name of a recorded data set, such as isic18.")],
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="Split that --strict judges: lesion, paper or official.  [default: the one that "
            "train takes]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the splits.")] = 0,
    test_fraction: Annotated[
        float, typer.Option("--test-fraction", help="Share of images in the test part.")
    ] = 0.2,
    val_fraction: Annotated[
        float, typer.Option("--val-fraction", help="Share of images in the validation part.")
    ] = 0.1,
    json_: JsonOption = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", parser=file_path, help="Write a contact sheet."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="DIR",
            parser=given_path,
            help="Write audit.html and audit.json there.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="Findings of each kind that are shown.")
    ] = 24,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Exit 1 on leaks between parts, unreadable images, label conflicts."
        ),
    ] = False,
    same_lesion: Annotated[
        bool,
        typer.Option(
            "--same-lesion",
            help="Also look for pictures that probably show one lesion, whatever their lesion ids "
            "say: another frame, distance or light. Takes minutes.",
        ),
    ] = False,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table",
            metavar="FILE",
            parser=file_path,
            help="With --same-lesion: write a CSV for 'biigma datasets add' in which such pictures "
            "share a lesion id.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="Of --same-lesion: auto, cpu, cuda, cuda:N or mps.")
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-j", min=1, help="Decoding threads; default: one per core."),
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Look for leaks, duplicates, label conflicts and damaged images.

    Lesions and near-duplicates across the parts of each split, byte-identical files, labels that
    contradict each other, unreadable and odd images, class counts, and images or metadata rows
    without a partner; with --same-lesion pictures that show one lesion in another frame. Nothing is
    changed. JSON holds all that --limit leaves out.
    """
    from biigma_cli.cli.progress import Progress
    from biigma_cli.cli.targets import check_ending
    from biigma_cli.config import DataConfig
    from biigma_cli.data.audit import (
        audit_manifest,
        joined_troubles,
        lesion_table,
        may_be_replaced,
    )
    from biigma_cli.data.manifest import load_manifest
    from biigma_cli.data.splits import PROTOCOLS, make_split, own_split_meant
    from biigma_cli.errors import EXIT_FAILURE, UsageError
    from biigma_cli.report.audit import audit_html, audit_json, audit_text
    from biigma_cli.report.tables import table_width
    from biigma_cli.storage import (
        atomic_write_text,
        check_writable,
        real_path,
        write_json,
    )

    if protocol is not None and protocol not in PROTOCOLS:
        raise UsageError(
            f"unknown --protocol {protocol!r}", fix=f"choose one of: {', '.join(PROTOCOLS)}"
        )
    for name, share in (("test", test_fraction), ("val", val_fraction)):
        if not 0 < share < 0.5:
            raise UsageError(f"--{name}-fraction is {share}", fix="give a share between 0 and 0.5")
    if not same_lesion and (table is not None or device != "auto"):
        name = "--table" if table is not None else "--device"
        raise UsageError(
            f"{name} goes with --same-lesion", fix=f"add --same-lesion, or leave {name} out"
        )
    if table is not None:
        check_writable(table)
    pages = [html] if html else []
    if report is not None:
        if report.exists() and not report.is_dir():
            raise UsageError(f"{report} is no folder", fix="give a folder, or use --html FILE")
        pages.append(report / "audit.html")
        check_writable(report / "audit.json")
    for page in pages:
        check_writable(page)
    check_ending("--html", html, ".html", ".htm")
    check_ending("--table", table, ".csv")
    if table is not None and not may_be_replaced(table):
        raise UsageError(
            f"--table {table} is there, and is no table of this command",
            fix="choose another name, or remove it first",
        )
    manifest = load_manifest(dataset)
    asked, no_split = protocol is not None, ""
    if protocol is None:
        protocol = "lesion"
        try:
            protocol = "official" if own_split_meant(manifest) else "lesion"
        except UsageError as error:  # parts that are no split
            no_split = f"{error.message}, so train asks for --protocol"
    config = DataConfig(
        dataset=dataset,
        protocol=protocol,  # type: ignore[arg-type]
        split_seed=seed,
        test_fraction=test_fraction,
        val_fraction=val_fraction,
    )
    if asked:  # what was asked for and cannot be is an error; otherwise it is a finding
        make_split(manifest, config)
    if table is not None and Path(real_path(table)).parent == Path(real_path(manifest.root)):
        raise UsageError(
            f"{table} lies among the images, where a CSV would be read as the data set itself",
            fix="write it to another folder",
        )
    if same_lesion:  # all that can fail before the work that takes minutes
        from biigma_cli.engine.device import pick_device
        from biigma_cli.judge.same_lesion import same_lesion as search
        from biigma_cli.judge.same_lesion import shipped_metric, shipped_views

        metric = shipped_metric()
        views = shipped_views(metric, pick_device(device))
    with contextlib.ExitStack() as stack:
        # Each bar starts with its own work, or its rate would count the other's time.
        bars: dict[str, Progress] = {}

        def show(title: str, done: int, total: int) -> None:
            if title not in bars:
                bars[title] = stack.enter_context(Progress(title, "images"))
            bars[title](done, total)

        found = audit_manifest(
            manifest,
            config,
            threads=workers,
            reading=lambda done, total: show("reading", done, total),
            comparing=lambda done, total: show("comparing", done, total),
        )
        if same_lesion:
            found = replace(
                found,
                alike=search(
                    manifest,
                    found.sizes,
                    metric=metric,
                    views=views,
                    threads=workers,
                    reading=lambda done, total: show("looking", done, total),
                    comparing=lambda done, total: show("matching", done, total),
                ),
            )
    whole = audit_json(found)
    if pages:
        text = audit_html(found, limit=limit)
        for page in pages:
            atomic_write_text(page, text)
    if report is not None:
        write_json(report / "audit.json", whole)
    if json_:
        typer.echo(json.dumps(whole, indent=2))
    else:
        tty = sys.stdout.isatty()
        typer.echo(audit_text(found, limit=limit, width=table_width(tty=tty), colour=tty), nl=False)
    for page in pages:
        note(f"saved in {page}")
    if table is not None:
        atomic_write_text(table, lesion_table(found, Path(real_path(table)).parent))
        note(f"saved in {table}")
        for line in joined_troubles(found):
            note(line)
        classes = ",".join(manifest.taxonomy.codes)
        note(f"next: biigma datasets add NAME {table} --classes {classes}")
    if strict and (failures := [*filter(None, [no_split]), *found.failures(protocol)]):
        for line in failures:
            note(f"strict: {line}")
        raise typer.Exit(EXIT_FAILURE)
