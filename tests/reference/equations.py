"""The paper's equations as slow float64 loops, one function each, sharing no code with the package.

Dimension letters are those of `biigma_cli.core`. Every function takes tensors of any float type and
answers in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def centring_matrix(n: int) -> Tensor:
    """C = I - (1/n) 1 1^T."""
    return torch.eye(n, dtype=torch.float64) - torch.full((n, n), 1 / n, dtype=torch.float64)


def positions(head_DHW: Tensor) -> Tensor:
    """The reshape before Eq. 1: HW vectors of D dimensions, row by row, `(N, D)`."""
    d, h, w = head_DHW.shape
    out = torch.empty(h * w, d, dtype=torch.float64)
    for y in range(h):
        for x in range(w):
            out[y * w + x] = head_DHW[:, y, x].double()
    return out


def rbf_gram(vectors_ND: Tensor, sigma: float) -> Tensor:
    """exp(-|r_i - r_j|^2 / (2 sigma^2)), by two loops."""
    rows = vectors_ND.double().tolist()
    gram = []
    for one in rows:
        d2 = [sum((a - b) ** 2 for a, b in zip(one, two, strict=True)) for two in rows]
        gram.append([math.exp(-d / (2 * sigma**2)) for d in d2])
    return torch.tensor(gram, dtype=torch.float64)


def cross_covariance_eq1(phi1_NP: Tensor, phi2_NQ: Tensor) -> Tensor:
    """Eq. 1, (1/N) sum_j of outer products of mean-normalised features, `(P, Q)`."""
    n = len(phi1_NP)
    one = phi1_NP.double() - phi1_NP.double().mean(0)
    two = phi2_NQ.double() - phi2_NQ.double().mean(0)
    total = torch.zeros(one.shape[1], two.shape[1], dtype=torch.float64)
    for j in range(n):
        total += torch.outer(one[j], two[j])
    return total / n


def hsic_eq2(gram1_NN: Tensor, gram2_NN: Tensor) -> float:
    """Eq. 2, Tr[K1 C K2 C] / N^2, the trace summed entry by entry."""
    n = len(gram1_NN)
    c = centring_matrix(n)
    left, right = (gram1_NN @ c).tolist(), (gram2_NN @ c).tolist()
    trace = 0.0
    for i in range(n):
        for j in range(n):
            trace += left[i][j] * right[j][i]
    return trace / n**2


def hsic_unbiased(gram1_NN: Tensor, gram2_NN: Tensor) -> float:
    """Song et al. (2012), Eq. 5: K and L without their diagonals, in three sums."""
    n = len(gram1_NN)
    k, m = gram1_NN.tolist(), gram2_NN.tolist()
    for i in range(n):
        k[i][i] = m[i][i] = 0.0
    trace = sum(k[i][j] * m[j][i] for i in range(n) for j in range(n))
    sums = sum(map(sum, k)) * sum(map(sum, m))
    rows = sum(sum(k[i]) * sum(m[i]) for i in range(n))
    return (trace + sums / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3))


ESTIMATORS = {"biased": hsic_eq2, "unbiased": hsic_unbiased}


def cka(gram1_NN: Tensor, gram2_NN: Tensor, estimator: str = "biased") -> float:
    """HSIC divided by the geometric mean of the heads' HSIC with themselves."""
    hsic = ESTIMATORS[estimator]
    own = hsic(gram1_NN, gram1_NN) * hsic(gram2_NN, gram2_NN)
    return hsic(gram1_NN, gram2_NN) / math.sqrt(own)


def mean_cosine(one_ND: Tensor, two_ND: Tensor) -> float:
    """Mean over positions of the cosine of two heads' vectors (Fig. 3, Table 2)."""
    total = 0.0
    for a, b in zip(one_ND.double(), two_ND.double(), strict=True):
        norms = float(a.norm()) * float(b.norm())
        total += float(a @ b) / norms if norms else 0.0
    return total / len(one_ND)


def median_distance(images_BND: Tensor) -> float:
    """The lower median of |r_i - r_j|, i < j, over all images of one head."""
    distances = []
    for vectors in images_BND.double():
        for i in range(len(vectors)):
            for j in range(i + 1, len(vectors)):
                distances.append(float((vectors[i] - vectors[j]).norm()))
    return sorted(distances)[(len(distances) - 1) // 2]


def criterion_pairs(
    heads_BKDHW: Tensor, criterion: str, sigma_K: list[float], estimator: str = "biased"
) -> tuple[Tensor, float]:
    """The criterion for each ordered pair, mean over images, and the mean off-diagonal kernel."""
    b, k = heads_BKDHW.shape[:2]
    table = torch.zeros(k, k, dtype=torch.float64)
    kernels = 0.0
    for image in heads_BKDHW:
        vectors = [positions(head) for head in image]
        grams = [rbf_gram(v, s) for v, s in zip(vectors, sigma_K, strict=True)]
        for gram in grams:
            n = len(gram)
            kernels += float(gram.sum() - gram.trace()) / (n * (n - 1) * b * k)
        for i in range(k):
            for j in range(k):
                if criterion == "cosine":
                    table[i, j] += mean_cosine(vectors[i], vectors[j]) / b
                elif criterion == "cka":
                    table[i, j] += cka(grams[i], grams[j], estimator) / b
                else:
                    table[i, j] += ESTIMATORS[estimator](grams[i], grams[j]) / b
    return table, kernels


def independence_eq3(pairs_KK: Tensor, pairs: str) -> float:
    """First term of Eq. 3 as printed (`ordered_mean`), or over i < j without 1/K^2."""
    k = len(pairs_KK)
    total = 0.0
    for i in range(k):
        for j in range(k):
            if pairs == "ordered_mean" and i != j:
                total += float(pairs_KK[i, j]) / k**2
            if pairs == "unordered_sum" and i < j:
                total += float(pairs_KK[i, j])
    return total


def l2_eq3(weight: Tensor, form: str) -> float:
    """Second term of Eq. 3: the norm of the weights, or the mean of their squares."""
    squares = [float(w) ** 2 for w in weight.double().flatten()]
    return math.sqrt(sum(squares)) if form == "norm" else sum(squares) / len(squares)


def mica_eq4(
    feat_BCHW: Tensor, project: list[Tensor], squeeze: list[Tensor], excite: list[Tensor]
) -> Tensor:
    """Eq. 4: per head 1x1 conv, ReLU and an SE block, concatenated, `(B, K * D, H, W)`.

    Args:
        feat_BCHW: R.
        project: `(D, C, 1, 1)` for each head.
        squeeze: `(S, D)` for each head.
        excite: `(D, S)` for each head.
    """
    heads = []
    for w, down, up in zip(project, squeeze, excite, strict=True):
        x = F.conv2d(feat_BCHW.double(), w.double()).clamp(min=0)
        for image in x:
            pooled = torch.stack([channel.mean() for channel in image])
            gate = 1 / (1 + torch.exp(-(up.double() @ (down.double() @ pooled).clamp(min=0))))
            for channel, g in zip(image, gate, strict=True):
                channel *= g
        heads.append(x)
    return torch.cat(heads, 1)


def adapter(
    tap_BCHW: Tensor, factor: int, pooling: str, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """A of section 2.2: 1x1 convolution where there is a weight, then pooling by `factor`."""
    x = tap_BCHW.double()
    if weight is not None and bias is not None:
        x = torch.einsum("bchw,oc->bohw", x, weight.double()[:, :, 0, 0])
        x = x + bias.double()[None, :, None, None]
    b, c, h, w = x.shape
    out = torch.empty(b, c, h // factor, w // factor, dtype=torch.float64)
    for i in range(h // factor):
        for j in range(w // factor):
            window = x[:, :, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
            out[:, :, i, j] = window.amax((2, 3)) if pooling == "max" else window.mean((2, 3))
    return out


def pruned_channels(stack_CHW: Tensor, prune: str) -> list[int]:
    """Channels of S that stay: variance over positions against the mean of all variances."""
    variances = []
    for channel in stack_CHW.double():
        mean = float(channel.mean())
        variances.append(sum((float(v) - mean) ** 2 for v in channel.flatten()) / channel.numel())
    mean_variance = sum(variances) / len(variances)
    if prune == "low_variance":
        return [c for c, v in enumerate(variances) if not v < mean_variance]
    if prune == "high_variance":
        return [c for c, v in enumerate(variances) if v < mean_variance]
    return list(range(len(variances)))


def saliency_eq5(stack_BCHW: Tensor, prune: str, form: str) -> Tensor:
    """Eq. 5 with pruning: sigmoid of the mean of the channels that stay, `(B, H, W)`."""
    maps = []
    for image in stack_BCHW.double():
        kept = pruned_channels(image, prune)
        mean = torch.zeros(image.shape[1:], dtype=torch.float64)
        for c in kept:
            mean += image[c] / len(kept)
        if form == "standardised":
            centred = mean - mean.mean()
            mean = centred / math.sqrt(float((centred**2).mean()) + 1e-6)
        maps.append(1 / (1 + torch.exp(-mean)))
    return torch.stack(maps)


def inverse_eq6(map_BHW: Tensor) -> Tensor:
    """Eq. 6: 1 - M."""
    return torch.ones_like(map_BHW) - map_BHW


def hybrid_section22(feat_BCHW: Tensor, map_BHW: Tensor, draw_P: Tensor, method: str) -> Tensor:
    """The set B, Theta and H = M * R + M_inv * Theta of section 2.2, position by position.

    Args:
        feat_BCHW: R.
        map_BHW: M.
        draw_P: for `replacement`, position p takes member floor(draw[p] * |B|) of B; for
            `permutation`, the p-th smallest draw names the position it takes.
        method: `replacement` or `permutation`.
    """
    feat, m = feat_BCHW.double(), map_BHW.double()
    inverse = inverse_eq6(m)
    b, c, h, w = feat.shape
    every: list[Tensor] = []
    for i in range(b):
        for y in range(h):
            for x in range(w):
                every.append(feat[i, :, y, x] * inverse[i, y, x])
    background = [v for v in every if bool((v != 0).any())]
    order = sorted(range(len(every)), key=lambda p: float(draw_P[p]))
    hybrid = torch.empty_like(feat)
    for i in range(b):
        for y in range(h):
            for x in range(w):
                p = (i * h + y) * w + x
                if method == "permutation":
                    theta = every[order[p]]
                elif background:
                    theta = background[int(float(draw_P[p]) * len(background))]
                else:
                    theta = torch.zeros(c, dtype=torch.float64)
                hybrid[i, :, y, x] = m[i, y, x] * feat[i, :, y, x] + inverse[i, y, x] * theta
    return hybrid


def classify(ca_BEHW: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """G: global average pooling and a linear layer, `(B, Y)`."""
    rows = []
    for image in ca_BEHW.double():
        pooled = torch.stack([channel.mean() for channel in image])
        rows.append(weight.double() @ pooled + bias.double())
    return torch.stack(rows)


def inverse_frequency(counts: list[int], power: float) -> list[float]:
    """Weights n_y^-power (0 for an absent class), scaled to mean 1 over the samples."""
    raw = [n**-power if n else 0.0 for n in counts]
    mean = sum(r * n for r, n in zip(raw, counts, strict=True)) / sum(counts)
    return [r / mean for r in raw]


def log_softmax(row: list[float]) -> list[float]:
    """log of exp(z_y) / sum exp(z)."""
    top = max(row)
    log_sum = top + math.log(sum(math.exp(z - top) for z in row))
    return [z - log_sum for z in row]


def weighted_cross_entropy_eq8(
    logits_BY: Tensor, target: list[int], weights: list[float], smoothing: float = 0.0
) -> float:
    """L_WCE of Eq. 8: (1/B) sum_i w[y_i] times the cross-entropy with smoothed targets."""
    total = 0.0
    for row, y in zip(logits_BY.double().tolist(), target, strict=True):
        log_p = log_softmax(row)
        for c, value in enumerate(log_p):
            wanted = (1 - smoothing) * (c == y) + smoothing / len(row)
            total -= weights[y] * wanted * value
    return total / len(target)


def consistency_kl(original_BY: Tensor, hybrid_BY: Tensor) -> float:
    """KL(original || hybrid), mean over images."""
    total = 0.0
    for one, two in zip(original_BY.double().tolist(), hybrid_BY.double().tolist(), strict=True):
        for a, b in zip(log_softmax(one), log_softmax(two), strict=True):
            total += math.exp(a) * (a - b)
    return total / len(original_BY)


def map_distance(map_BHW: Tensor, gated_BKDHW: Tensor) -> float:
    """RMS over images and positions of M minus the product of the heads' own maps."""
    squares = []
    for m, heads in zip(map_BHW.double(), gated_BKDHW.double(), strict=True):
        for y in range(m.shape[0]):
            for x in range(m.shape[1]):
                product = 1.0
                for head in heads:
                    product *= 1 / (1 + math.exp(-float(head[:, y, x].mean())))
                squares.append((float(m[y, x]) - product) ** 2)
    return math.sqrt(sum(squares) / len(squares))


def total_eq9(terms: dict[str, float], weights: dict[str, float]) -> float:
    """Eq. 9 (with 8): the sum of the terms, each times its weight."""
    return sum(weights[name] * value for name, value in terms.items())
