"""Attention as a Triton kernel: one pass over the keys, with an online softmax."""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = math.log2(math.e)


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Return softmax(q kᵀ / √D) v, like `q` in shape and dtype.

    `q` is (B, H, T, D), `k` and `v` are (B, H, S, D), of float32 or float16 and any strides, with D
    up to 256. `causal` aligns the last query with the last key; a query that may attend to no key
    gets zeros. Scores, sums and outputs are accumulated in float32.

    FlashAttention-2, Dao, 2023, algorithm 1: https://arxiv.org/abs/2307.08691
    """
    batches, heads, queries, size = q.shape
    keys = k.shape[2]
    out = torch.empty_like(q)
    if not out.numel():
        return out

    def grid(config: dict[str, Any]) -> tuple[int]:
        return (batches * heads * triton.cdiv(queries, config["BLOCK_M"]),)

    strides = (*q.stride(), *k.stride(), *v.stride(), *out.stride())
    scale = LOG2_E / math.sqrt(size)
    block = max(triton.next_power_of_2(size), 16)
    length = queries.bit_length()
    _attention[grid](
        q, k, v, out, *strides, heads, queries, keys, scale, length, size, block, causal
    )
    return out


def _config(rows: int, columns: int, warps: int, stages: int) -> triton.Config:
    """Return the configuration for tiles of `rows` queries by `columns` keys."""
    blocks = {"BLOCK_M": rows, "BLOCK_N": columns}
    return triton.Config(blocks, num_warps=warps, num_stages=stages)


CONFIGS = [
    _config(16, 32, warps=8, stages=2),
    _config(64, 16, warps=8, stages=2),
    _config(64, 64, warps=4, stages=3),
    _config(128, 64, warps=4, stages=3),
    _config(128, 64, warps=8, stages=2),
    _config(128, 64, warps=8, stages=3),
    _config(128, 128, warps=8, stages=2),
]


def _worth_timing(
    configs: list[triton.Config], arguments: dict[str, Any], **options: Any
) -> list[triton.Config]:
    """Return the configurations to choose from.

    A few queries fill no more than the smallest tile, and float32, which tensor cores do not
    multiply, fills the registers from the second on.
    """
    if arguments["T"] <= 64:
        return configs[:1]
    return configs[:2] if arguments["q_ptr"].dtype == torch.float32 else configs


@triton.autotune(
    configs=CONFIGS[:1] if triton.knobs.runtime.interpret else CONFIGS,
    key=["length", "D", "CAUSAL"],
    prune_configs_by={"early_config_prune": _worth_timing},
)
@triton.jit(do_not_specialize=["H", "T", "S", "length"])
def _attention(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    stride_qb,
    stride_qh,
    stride_qm,
    stride_qd,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_kd,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_vd,
    stride_ob,
    stride_oh,
    stride_om,
    stride_od,
    H,
    T,
    S,
    scale,  # makes powers of two of the scores' exponentials
    length,  # the number of bits in T: a configuration is chosen for each
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Write the outputs of BLOCK_M queries of one head."""
    # A head's last queries come first: under a causal mask they take longest.
    tiles = tl.cdiv(T, BLOCK_M)
    tile = tiles - 1 - tl.program_id(0) % tiles
    index = (tl.program_id(0) // tiles).to(tl.int64)
    batch = index // H
    head = index % H
    q_ptr += batch * stride_qb + head * stride_qh
    k_ptr += batch * stride_kb + head * stride_kh
    v_ptr += batch * stride_vb + head * stride_vh
    out_ptr += batch * stride_ob + head * stride_oh

    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_m = rows.to(tl.int64)[:, None]
    offs_n = tl.arange(0, BLOCK_N).to(tl.int64)[:, None]
    offs_d = tl.arange(0, BLOCK_D).to(tl.int64)[None, :]
    in_d = offs_d < D
    in_q = (offs_m < T) & in_d
    k_ptrs = k_ptr + offs_n * stride_kn + offs_d * stride_kd
    v_ptrs = v_ptr + offs_n * stride_vn + offs_d * stride_vd
    q = tl.load(q_ptr + offs_m * stride_qm + offs_d * stride_qd, mask=in_q, other=0.0)
    if q.dtype == tl.float32:
        # Its products may be infinite where scores are not. Those of float16 never are.
        q *= scale
        scale = 1.0

    # All rows attend to the first seen_by_all keys, some to the first seen, row i to limit[i].
    seen_by_all = S
    seen = S
    limit = tl.full((BLOCK_M,), S, tl.int32)
    if CAUSAL:
        diagonal = S - T + 1
        seen_by_all = tl.maximum(tile * BLOCK_M + diagonal, 0)
        seen = tl.minimum((tile + 1) * BLOCK_M - 1 + diagonal, S)
        limit = rows + diagonal
    unmasked = seen_by_all // BLOCK_N
    blocks = tl.cdiv(seen, BLOCK_N)

    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    row_sum = tl.zeros((BLOCK_M,), tl.float32)
    row_max = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    for masked in tl.static_range(2):
        for block in range(unmasked if masked else 0, blocks if masked else unmasked):
            start = block * BLOCK_N
            cols = start + tl.arange(0, BLOCK_N)
            mask = in_d
            if masked:
                mask = (cols < S)[:, None] & in_d
            k = tl.load(k_ptrs + tl.cast(start, tl.int64) * stride_kn, mask=mask, other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            if masked:
                scores = tl.where(cols[None, :] < limit[:, None], scores, -float("inf"))

            new_max = tl.maximum(row_max, tl.max(scores, axis=1))
            shift = tl.where(new_max == -float("inf"), 0.0, new_max)
            p = tl.exp2(scores - shift[:, None])
            alpha = tl.exp2(row_max - shift)
            row_max = new_max
            row_sum = row_sum * alpha + tl.sum(p, axis=1)
            acc = acc * alpha[:, None]
            v = tl.load(v_ptrs + tl.cast(start, tl.int64) * stride_vn, mask=mask, other=0.0)
            acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")

    out = acc / tl.where(row_sum == 0, 1.0, row_sum)[:, None]
    out_ptrs = out_ptr + offs_m * stride_om + offs_d * stride_od
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=in_q)
