"""What `biigma explain` says on standard output: lines or one JSON document, as it is made."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from biigma_cli.cli.boundary import note
from biigma_cli.cli.explain_records import Loaded, Target, line, record

if TYPE_CHECKING:
    from biigma_cli.errors import DataError
    from biigma_cli.report.explanation import Explanation


class Telling:
    """Writes and counts what is explained, image by image, and closes the document.

    Failures that come before the first answer are kept back, so that a run without any leaves no
    document.

    Args:
        facts: on the model.
        total: images in all.
        as_json: a document instead of lines.
        clear: called before anything is written, to take a line of progress away.

    Attributes:
        explained: images so far.
        failed: images so far.
        failure: the first.
    """

    def __init__(
        self, facts: Mapping[str, Any], total: int, *, as_json: bool, clear: Callable[[], None]
    ) -> None:
        self.facts = facts
        self.total = total
        self.as_json = as_json
        self.clear = clear
        self.explained = self.failed = 0
        self.failure: DataError | None = None
        self._held: list[str] = []
        self._begun = self._listed = self._ended = False

    def answer(self, found: Explanation, image: Loaded, target: Target) -> None:
        """One image that was explained, and drawn."""
        self.explained += 1
        if self.as_json:
            self._hold(record(found, image, target))
            self._write_held()
        else:
            self._put(line(found, image, target) + "\n")

    def fail(self, path: str, error: DataError) -> None:
        """One image that was not; of several, that is said at once."""
        self.failed += 1
        self.failure = self.failure or error
        if self.total > 1:
            self.clear()
            note(f"error: {error.message}")
        if self.as_json:
            self._hold({"path": path, "error": error.message})
            if self._begun:
                self._write_held()

    def end(self, *, even_if_empty: bool = False) -> None:
        """Close the document, whole or cut short; without an answer only if `even_if_empty`."""
        if not self.as_json or self._ended or not (self._begun or even_if_empty):
            return
        self._write_held()
        self._ended = True
        left = self.total - self.explained - self.failed
        summary = {"explained": self.explained, "failed": self.failed, "left": left}
        self._put(f'\n  ],\n  "summary": {json.dumps(summary)}\n}}\n')

    def _hold(self, told: Mapping[str, Any]) -> None:
        self._held.append(textwrap.indent(json.dumps(told, indent=2), "    "))

    def _write_held(self) -> None:
        from biigma_cli.report.predictions import DISCLAIMER

        text = ""
        if not self._begun:
            head = json.dumps({"model": self.facts, "disclaimer": DISCLAIMER}, indent=2)
            text = head.removesuffix("\n}") + ',\n  "explanations": ['
        if self._held:
            text += (",\n" if self._listed else "\n") + ",\n".join(self._held)
            self._listed = True
        self._held, self._begun = [], True
        self._put(text)

    def _put(self, text: str) -> None:
        if text:
            self.clear()
            typer.echo(text, nl=False)  # which flushes
