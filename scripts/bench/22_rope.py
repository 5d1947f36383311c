"""Rotary embeddings of a small model's queries, beside the complex product of published Llamas."""

import torch

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads: 4 sequences of 128 tokens in 8 heads of 64 float32 features."""
    x = torch.randn(4, 8, 128, 64)
    positions = torch.arange(128)
    cos, sin = reference.rope_tables(positions, 64)
    turn = torch.complex(cos, sin)
    weight = torch.randn(512, 256)

    def tables():
        rates = 10000.0 ** -(torch.arange(0, 64, 2) / 64)
        angles = torch.outer(positions, rates)
        return angles.cos(), angles.sin()

    def interleaved():
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(3)

    def halves():
        a, b = x.chunk(2, dim=-1)
        turned = torch.complex(a, b) * turn
        return torch.cat([turned.real, turned.imag], dim=-1)

    return [
        Case("tables", lambda: reference.rope_tables(positions, 64), tables),
        Case("halves", lambda: reference.apply_rope(x, cos, sin), halves),
        Case("neighbours", lambda: reference.apply_rope_interleaved(x, cos, sin), interleaved),
        Case(
            "conversion",
            lambda: reference.to_half_layout(weight, 8),
            lambda: weight.view(8, 32, 2, 256).transpose(1, 2).reshape(512, 256),
        ),
    ]
