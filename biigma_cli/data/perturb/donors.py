"""Which pictures are perturbed, and whose backgrounds they get."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from biigma_cli.data.manifest import Record
from biigma_cli.data.perturb.kinds import stream

# A donor has to show this much skin, or its background is mostly invented.
DONOR_BACKGROUND = 0.4


def choose_images(
    records: Sequence[Record], count: int | None, *, seed: int = 0
) -> tuple[Record, ...]:
    """At most `count` of the records, whole lesions at a time, in the order they came in.

    Lesions are taken in the order of a hash of seed and name, so the choice does not depend on the
    order of the records, and classes come about as often as among all. A lesion that no longer fits
    is passed over. None takes all.
    """
    if count is None or count >= len(records):
        return tuple(records)
    lesions: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        lesions[record.lesion_id or record.image_id].append(record)
    chosen: set[str] = set()
    for name in sorted(lesions, key=lambda name: _key(seed, name)):
        if len(chosen) + len(lesions[name]) <= count:
            chosen.update(r.image_id for r in lesions[name])
    return tuple(r for r in records if r.image_id in chosen)


def choose_donors(
    records: Sequence[Record],
    pool: Sequence[Record],
    area: Mapping[str, float],
    *,
    same_class: bool,
    seed: int = 0,
) -> dict[str, str]:
    """The id of a donor for each image, by image id; images that no donor fits are left out.

    A donor is another lesion's, and its own lesion covers at most `1 - DONOR_BACKGROUND` of the
    picture. Another class is drawn first, each as likely, then a picture of it: drawn among all
    pictures, most would be of the commonest class. The choice depends on seed, image and pool, not
    on which other images there are.

    Args:
        pool: where donors are taken from.
        area: share of the picture that is lesion, by image id.
    """
    by_class: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(pool, key=lambda r: r.image_id):
        if area[record.image_id] <= 1 - DONOR_BACKGROUND:
            by_class[record.label].append(record)
    donors = {}
    for record in records:
        rng = stream(seed, record.image_id, f"donor, {'same' if same_class else 'other'} class")
        classes = [c for c in sorted(by_class) if (c == record.label) is same_class]
        while classes:
            fitting = by_class[classes.pop(int(rng.integers(len(classes))))]
            fitting = [r for r in fitting if _other_lesion(r, record)]
            if fitting:
                donors[record.image_id] = fitting[int(rng.integers(len(fitting)))].image_id
                break
    return donors


def _other_lesion(a: Record, b: Record) -> bool:
    return (a.lesion_id or a.image_id) != (b.lesion_id or b.image_id)


def _key(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\t{name}".encode(), digest_size=16).digest()
