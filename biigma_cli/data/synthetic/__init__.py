"""Synthetic dermoscopy with known truth: seven classes, skin tones, artefacts and a bias dial.

`plan` says what is drawn, `render` draws one image and its lesion mask, `write_synthetic` puts a
whole data set on disk. Equal options give equal bytes at any number of workers, with the same
versions of numpy and Pillow.
"""

from biigma_cli.data.synthetic.plan import (
    ARTEFACTS,
    ITA_GROUPS,
    OWN_ARTEFACT,
    REVERSED_ARTEFACT,
    Sample,
    SyntheticOptions,
    agreement,
    plan,
)
from biigma_cli.data.synthetic.render import render, render_clean, skin_colour
from biigma_cli.data.synthetic.write import (
    COLUMNS,
    FORMAT,
    contact_sheet,
    read_options,
    write_synthetic,
)

__all__ = [
    "ARTEFACTS",
    "COLUMNS",
    "FORMAT",
    "ITA_GROUPS",
    "OWN_ARTEFACT",
    "REVERSED_ARTEFACT",
    "Sample",
    "SyntheticOptions",
    "agreement",
    "contact_sheet",
    "plan",
    "read_options",
    "render",
    "render_clean",
    "skin_colour",
    "write_synthetic",
]
