"""Pairs of archive images that show one lesion in nearly the same frame under different ids.

Found by `biigma audit` in HAM10000 and in the training and validation parts of ISIC 2017 (detail
correlation of 0.65 or more) and looked at. The two of a pair have no lesion id in common, so
nothing else keeps them on one side of a split.
"""

from __future__ import annotations

KNOWN_PAIRS: tuple[tuple[str, str], ...] = (
    # HAM10000
    ("ISIC_0025226", "ISIC_0030074"),
    ("ISIC_0027027", "ISIC_0029036"),
    ("ISIC_0027636", "ISIC_0027994"),
    ("ISIC_0029152", "ISIC_0033173"),
    # ISIC 2017
    ("ISIC_0000157", "ISIC_0014946"),
    ("ISIC_0000164", "ISIC_0014795"),
    ("ISIC_0000165", "ISIC_0014788"),
    ("ISIC_0000171", "ISIC_0015124"),
    ("ISIC_0000177", "ISIC_0014657"),
    ("ISIC_0000204", "ISIC_0014748"),
    ("ISIC_0000205", "ISIC_0014742"),
    ("ISIC_0000206", "ISIC_0014739"),
    ("ISIC_0000215", "ISIC_0015313"),
    ("ISIC_0000222", "ISIC_0014846"),
    ("ISIC_0000223", "ISIC_0014818"),
    ("ISIC_0000224", "ISIC_0014791"),
    ("ISIC_0000225", "ISIC_0014778"),
    ("ISIC_0000229", "ISIC_0014771"),
    ("ISIC_0012290", "ISIC_0013594"),
    ("ISIC_0012672", "ISIC_0012673"),
    ("ISIC_0012756", "ISIC_0013184"),
)

_TWIN = {image_id: pair[0] for pair in KNOWN_PAIRS for image_id in pair}


def twin_key(image_id: str) -> str:
    """What both images of a known pair share; empty for all others.

    ISIC 2019 appends `_downsampled` to some ids of the same images; in a user's own set the id is
    a path.
    """
    return _TWIN.get(image_id.rpartition("/")[2].removesuffix("_downsampled"), "")
