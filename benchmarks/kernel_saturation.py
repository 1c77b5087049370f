"""Two weaknesses of the method, shown on a trained network's own features.

For validation images of a checkpoint's own split it prints, for several bandwidths, the mean
off-diagonal kernel value (near 0: the kernel is an identity matrix and gives no gradient), HSIC
beside its floor (n - 1) / n^2, the gradient it gives, and CKA by the biased and the unbiased
estimator; then the same for heads of pure noise, which are independent by construction. Last, how
much the plain and the standardised saliency maps vary within an image.

    python benchmarks/kernel_saturation.py runs/NAME/weights/best.safetensors [--images 64]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from biigma_cli.core.hsic import independence
from biigma_cli.core.saliency import saliency_map
from biigma_cli.core.weights import load_checkpoint, load_model
from biigma_cli.data.images import load_part
from biigma_cli.data.manifest import load_manifest
from biigma_cli.data.splits import check_same_split, make_split


def report(title: str, heads_BKDHW: torch.Tensor) -> None:
    """One table of the criterion's values on these features."""
    n = heads_BKDHW.shape[-1] * heads_BKDHW.shape[-2]
    k = heads_BKDHW.shape[1]
    pairs = (k - 1) / k  # Eq. 3 averages over K^2 pairs, K (K - 1) of them off the diagonal
    print(f"\n{title}: {k} heads of {heads_BKDHW.shape[2]} channels, n = {n} positions")
    print(f"{'bandwidth':<12}{'kernel mean':>12}{'HSIC / pair':>13}{'floor':>9}{'|gradient|':>12}"
          f"{'CKA biased':>12}{'CKA unbiased':>14}")  # fmt: skip
    for name, sigma in (("0.5", 0.5), ("1", 1.0), ("2", 2.0), ("4", 4.0), ("median", None)):
        options = {"bandwidth": "median"} if sigma is None else {"sigma": sigma}
        leaf = heads_BKDHW.clone().requires_grad_()
        result = independence(leaf, criterion="hsic", **options)
        (gradient,) = torch.autograd.grad(result.value, leaf)
        cka = [
            independence(leaf.detach(), criterion="cka", estimator=e, **options).pairs_KK
            for e in ("biased", "unbiased")
        ]
        hsic = float(result.value.detach()) / pairs
        means = [float((c.sum() - c.trace()) / (k * (k - 1))) for c in cka]
        print(
            f"{name:<12}{float(result.kernel_mean):12.2e}{hsic:13.5f}"
            f"{(n - 1) / n**2:9.5f}{float(gradient.norm()):12.2e}{means[0]:12.4f}{means[1]:14.4f}"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.checkpoint)
    model = load_model(checkpoint)
    data = checkpoint.config.data
    manifest = load_manifest(data.dataset)
    split = make_split(manifest, data)
    check_same_split(split, checkpoint.meta["split"], source=str(options.checkpoint))
    part = load_part(manifest, split.val[: options.images], data.side)
    image = torch.from_numpy(part.pixels).permute(0, 3, 1, 2).float()
    if model.mica is None:
        raise SystemExit("this checkpoint has no heads")
    with torch.no_grad():
        taps = model.trunk(image * model.pixel_scale + model.pixel_shift)
        heads = model.mica(taps.last).gated()
    print(f"{options.checkpoint}, {len(image)} validation images, {split.title}")
    report("trained heads", heads)
    generator = torch.Generator().manual_seed(0)
    report("independent noise", torch.rand(heads.shape, generator=generator) * heads.std())
    if model.saliency is None:
        return
    print("\nsaliency, spread (standard deviation) within an image, mean over images")
    for form in ("plain", "standardised"):
        model.saliency.form = form
        with torch.no_grad():
            m = model.saliency(taps)
            r = saliency_map(taps.last, form=form)
        print(
            f"{form:<14} trained adapters: {float(m.std((2, 3)).mean()):.4f} "
            f"(min {float(m.min()):.3f}, max {float(m.max()):.3f});  "
            f"no adapters, last tap: {float(r.std((2, 3)).mean()):.4f} "
            f"(min {float(r.min()):.3f}, max {float(r.max()):.3f})"
        )


if __name__ == "__main__":
    main()
