"""Columns of the CSV that `biigma predict` writes and `biigma score` reads."""

from __future__ import annotations

#: Before the classes; the first is the file.
BEFORE = ("path", "label", "malignant_probability", "suspicious")
#: Behind them.
BEHIND = ("novelty", "note", "error", "model", "version", "provider", "settings")
