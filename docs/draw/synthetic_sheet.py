"""Draw docs/img/synthetic.jpg: six synthetic lesions of each class.

python docs/draw/synthetic_sheet.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from biigma_cli.data.synthetic import SyntheticOptions, contact_sheet

WIDTH = 1000


def main() -> None:
    """Write the picture."""
    sheet = contact_sheet(SyntheticOptions(count=300, seed=3), per_class=6).convert("RGB")
    size = (WIDTH, round(sheet.height * WIDTH / sheet.width))
    target = Path(__file__).parents[1] / "img" / "synthetic.jpg"
    sheet.resize(size, Image.Resampling.LANCZOS).save(target, quality=82)


if __name__ == "__main__":
    main()
