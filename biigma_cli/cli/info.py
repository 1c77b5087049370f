"""`biigma info`: what is installed and what is here."""

from __future__ import annotations

import platform
from typing import Annotated, Any

import typer

from biigma_cli.cli.boundary import boundary

PACKAGES = (
    "torch", "torchvision", "onnxruntime-gpu", "onnxruntime", "onnx", "numpy", "pillow",
    "scikit-learn", "safetensors", "typer", "rich",
)  # fmt: skip


@boundary
def info(
    json_: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Show versions, devices, providers, models and data folders."""
    found = collect()
    if json_:
        import json

        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"biigma {found['biigma']}, Python {found['python']}, {found['platform']}")
    typer.echo("\npackages")
    for name, version in found["packages"].items():
        typer.echo(f"  {name:<16} {version}")
    typer.echo("\ndevices (training)")
    for device in found["devices"]:
        typer.echo(f"  {device}")
    typer.echo("\nproviders (inference)")
    for provider in found["providers"]:
        typer.echo(f"  {provider}")
    typer.echo("\nmodels")
    for model in found["models"]:
        if "error" in model:
            typer.echo(f"  {model['name']}: {model['error']}")
            continue
        typer.echo(
            f"  {model['name']}{' (default)' if model['default'] else ''}: "
            f"{len(model['classes'])} classes, side {model['side']}, {model['megabytes']} MB, "
            f"{model['licence']}"
        )
        typer.echo(f"    {model['protocol']}")
    typer.echo(f"\ndata folder\n  {found['home']}")
    for data in found["datasets"]:
        state = data.get("error") or f"{data['images']} images in {data['root']}"
        typer.echo(f"  {data['dataset']}: {state}")
    typer.echo("\nFor research use only. Not a medical device.")


def collect() -> dict[str, Any]:
    """Everything `info` shows, as plain values."""
    import onnxruntime
    import torch

    from biigma_cli import __version__
    from biigma_cli.storage import home

    devices = [f"cpu: {torch.get_num_threads()} threads, "
               f"{torch.backends.cpu.get_cpu_capability()}"]  # fmt: skip
    devices += [
        f"cuda:{i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "biigma": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "packages": {name: v for name in PACKAGES if (v := _version(name))},
        "devices": devices,
        "providers": onnxruntime.get_available_providers(),
        "models": _models(),
        "home": str(home()),
        "datasets": _datasets(),
    }


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _models() -> list[dict[str, Any]]:
    from biigma_cli.cli.models import describe
    from biigma_cli.errors import BiigmaError
    from biigma_cli.runtime.session import shipped_models

    result: list[dict[str, Any]] = []
    for path in shipped_models():
        try:
            result.append(describe(path))
        except BiigmaError as error:
            result.append({"name": path.stem, "error": error.message})
    return result


def _datasets() -> list[dict[str, Any]]:
    from biigma_cli.data.manifest import load_manifest
    from biigma_cli.errors import BiigmaError
    from biigma_cli.storage import home

    result: list[dict[str, Any]] = []
    for record in sorted((home() / "datasets").glob("*.json")):
        try:
            manifest = load_manifest(record.stem)
        except BiigmaError as error:
            result.append({"dataset": record.stem, "error": error.message})
            continue
        result.append(
            {
                "dataset": manifest.dataset,
                "images": len(manifest.records),
                "root": str(manifest.root),
                "classes": manifest.class_counts(),
                "licence": manifest.licence,
                "data_hash": manifest.data_hash,
            }
        )
    return result
