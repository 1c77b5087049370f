"""Columns of the CSV that `biigma predict` writes and `biigma score` reads."""

from __future__ import annotations

#: Before the classes; the first is the file.
BEFORE = ("path", "label", "malignant_probability")
#: Behind them.
BEHIND = ("novelty", "note", "error", "model", "version", "provider", "settings")
#: Behind the first of these, where it was asked for.
SUSPICIOUS = "suspicious"
