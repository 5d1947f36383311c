"""Keys in chunks: each gives a partial result, without `tl.dot`, and another kernel joins them."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _part(
    Q,
    K,
    V,
    ACC,
    MX,
    SM,
    sqb,
    sqh,
    sqt,
    sqd,
    skb,
    skh,
    sks,
    skd,
    svb,
    svh,
    svs,
    svd,
    H,
    T,
    S,
    C,
    D: tl.constexpr,
    CAUSAL: tl.constexpr,
    BQ: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the largest score, the sum of weights and of weighted values, of CHUNK keys."""
    b = (tl.program_id(2) // H).to(tl.int64)
    h = (tl.program_id(2) % H).to(tl.int64)
    c = tl.program_id(1)
    t = tl.program_id(0) * BQ + tl.arange(0, BQ).to(tl.int64)
    d = tl.arange(0, BD).to(tl.int64)
    best = tl.full((BQ,), float("-inf"), tl.float32)
    total = tl.zeros((BQ,), tl.float32)
    acc = tl.zeros((BQ, BD), tl.float32)
    last = S
    if CAUSAL:
        last = tl.minimum(S, (tl.program_id(0) + 1) * BQ + S - T)
    first = c * CHUNK
    last = tl.minimum(last, first + CHUNK)
    if first < last:
        root = tl.sqrt(tl.full((1, 1), D, tl.float32))
        q = (
            tl.load(
                Q + b * sqb + h * sqh + t[:, None] * sqt + d[None, :] * sqd,
                mask=(t < T)[:, None] & (d < D)[None, :],
                other=0,
            ).to(tl.float32)
            / root
        )
        for at in range(first, last, BK):
            s = at + tl.arange(0, BK).to(tl.int64)
            there = (s < S)[:, None] & (d < D)[None, :]
            k = tl.load(
                K + b * skb + h * skh + s[:, None] * sks + d[None, :] * skd, mask=there, other=0
            ).to(tl.float32)
            v = tl.load(
                V + b * svb + h * svh + s[:, None] * svs + d[None, :] * svd, mask=there, other=0
            ).to(tl.float32)
            score = tl.sum(q[:, None, :] * k[None, :, :], axis=2)
            seen = (s < S)[None, :]
            if CAUSAL:
                seen = seen & (t[:, None] - T >= s[None, :] - S)
            score = tl.where(seen, score, float("-inf"))
            new = tl.maximum(best, tl.max(score, axis=1))
            base = tl.where(new == float("-inf"), 0.0, new)
            w = tl.exp(score - base[:, None])
            keep = tl.exp(best - base)
            total = total * keep + tl.sum(w, axis=1)
            acc = acc * keep[:, None] + tl.sum(w[:, :, None] * v[None, :, :], axis=1)
            best = new
    row = (tl.program_id(2).to(tl.int64) * T + t) * C + c
    tl.store(MX + row, best, mask=t < T)
    tl.store(SM + row, total, mask=t < T)
    tl.store(ACC + row[:, None] * D + d[None, :], acc, mask=(t < T)[:, None] & (d < D)[None, :])


@triton.jit
def _join(ACC, MX, SM, OUT, C, D, BD: tl.constexpr):
    """Write one result from the partial ones of all chunks."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BD)
    top = float("-inf")
    for c in range(0, C):
        top = tl.maximum(top, tl.load(MX + row * C + c))
    top = tl.where(top == float("-inf"), 0.0, top)
    total = 0.0
    acc = tl.zeros((BD,), tl.float32)
    for c in range(0, C):
        w = tl.exp(tl.load(MX + row * C + c) - top)
        total += w * tl.load(SM + row * C + c)
        acc += w * tl.load(ACC + (row * C + c) * D + d, mask=d < D, other=0.0)
    out = tl.where(total == 0.0, 0.0, acc / tl.where(total == 0.0, 1.0, total))
    tl.store(OUT + row * D + d, out.to(OUT.dtype.element_ty), mask=d < D)


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Return softmax(q kᵀ / √D) v."""
    B, H, T, D = q.shape
    S = k.shape[2]
    if S == 0:
        return torch.zeros(B, H, T, D, dtype=q.dtype, device=q.device)
    out = torch.empty(B, H, T, D, dtype=q.dtype, device=q.device)
    if B * H * T == 0:
        return out
    CHUNK = 256
    C = -(-S // CHUNK)
    f = {"dtype": torch.float32, "device": q.device}
    acc = torch.empty(B, H, T, C, D, **f)
    mx, sm = (torch.empty(B, H, T, C, **f) for _ in range(2))
    BD = triton.next_power_of_2(D)
    BQ = 4 if D > 64 else 16
    _part[(-(-T // BQ), C, B * H)](
        q,
        k,
        v,
        acc,
        mx,
        sm,
        *q.stride(),
        *k.stride(),
        *v.stride(),
        H,
        T,
        S,
        C,
        D,
        CAUSAL=bool(causal),
        BQ=BQ,
        BK=32,
        BD=BD,
        CHUNK=CHUNK,
    )
    _join[(B * H * T,)](acc, mx, sm, out, C, D, BD=BD)
    return out
