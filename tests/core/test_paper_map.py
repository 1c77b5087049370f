"""`docs/paper_map.md` names only what exists."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path

from biigma_cli.config import SECTIONS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/paper_map.md").read_text(encoding="utf-8")


def defines(path: Path, name: str) -> bool:
    """Whether a function or class of that name stands in the file."""
    return bool(re.search(rf"^\s*(def|class) {name}\b", path.read_text(encoding="utf-8"), re.M))


def test_tests_exist() -> None:
    """Every test id runs."""
    ids = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)
    assert len(ids) > 40
    assert [i for i in ids if not defines(ROOT / i[0], i[1])] == []


def test_functions_exist() -> None:
    """Every `file`: `name` of the tables is there."""
    rows = re.findall(r"`((?:core/)?\w+\.py)`: ((?:`\w+`(?:, )?)+)", TEXT)
    named = [(path, name) for path, names in rows for name in re.findall(r"\w+", names)]
    assert len(named) > 20
    assert [n for n in named if not defines(ROOT / "biigma_cli" / n[0], n[1])] == []


def test_config_keys_and_values_exist() -> None:
    """Every `section.key=value` is one that the config takes."""
    found = re.findall(r"\b(model|loss|data|train)\.(\w+)(?:=([\w.]+))?", TEXT)
    assert len(found) > 25
    for section, key, value in found:
        if key == "py":  # a file name
            continue
        fields = {f.name for f in dataclasses.fields(SECTIONS[section])}
        assert key in fields, f"{section}.{key}"
        hint = typing.get_type_hints(SECTIONS[section])[key]
        if value and typing.get_origin(hint) is typing.Literal:
            assert value in typing.get_args(hint), f"{section}.{key}={value}"


def test_all_seventeen_points_are_answered() -> None:
    """One row for each."""
    assert re.findall(r"^\| (\d+) \|", TEXT, re.M) == [str(n) for n in range(1, 18)]


def test_what_the_paper_does_not_state() -> None:
    """Each such choice is named with its setting and value, and passes for the paper's nowhere."""
    choices = TEXT.partition("### Further choices")[2].partition("\n## ")[0]
    for section, key in (("model", "adapter_channels"), ("train", "batch_size")):
        default = getattr(SECTIONS[section](), key)
        assert re.search(rf"does\s+not\s+state\b[^*]* {default} here: `{section}\.{key}`", choices)
    training = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    row = next(line for line in training.splitlines() if line.startswith("| `paper-isic17`"))
    assert "the batch of 32 is ours" in row
