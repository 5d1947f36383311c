"""Style: PyTorch's own operator, complex rotations, and a ring that writes down its columns."""

import dataclasses

import torch
from torch import nn
from torch.nn import functional as F

NO_COLUMN = -1


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    sliding_window: int | None = None


class KVCache:
    def __init__(self, config, batch_size, max_length, dtype):
        slots = max_length
        if config.sliding_window is not None:
            slots = min(slots, config.sliding_window)
        self.memory = torch.zeros(
            2,
            config.num_hidden_layers,
            batch_size,
            config.num_key_value_heads,
            slots,
            config.head_dim,
            dtype=dtype,
        )
        self.columns = torch.full((slots,), NO_COLUMN)
        self.max_length = max_length
        self.length = 0

    keys = property(lambda self: list(self.memory[0]))
    values = property(lambda self: list(self.memory[1]))

    def put(self, layer, new, columns):
        """Write the last of the new keys and values (2, B, Hkv, T, D) to the slots."""
        count = self.columns.numel()
        slots = columns[-count:] % count
        self.memory[:, layer].index_copy_(-2, slots, new[..., -count:, :])

    def reorder(self, beam_indices):
        self.memory = self.memory.index_select(2, beam_indices)


def attend(q, k, v, visible):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None], enable_gqa=True)


def turned(x, turn):
    """Return x (B, T, H, D) times the complex numbers of turn (B, T, D / 2)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    pairs = torch.complex(*wide.chunk(2, dim=-1)) * turn[:, :, None]
    return torch.cat([pairs.real, pairs.imag], dim=-1).to(x.dtype)


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        size = config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        width, inner = config.hidden_size, config.intermediate_size
        self.size = size
        self.input_layernorm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(width, heads * size, bias=False),
                "k_proj": nn.Linear(width, kv_heads * size, bias=False),
                "v_proj": nn.Linear(width, kv_heads * size, bias=False),
                "o_proj": nn.Linear(heads * size, width, bias=False),
            }
        )
        self.post_attention_layernorm = nn.RMSNorm(width, eps=config.rms_norm_eps)
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, inner, bias=False),
                "up_proj": nn.Linear(width, inner, bias=False),
                "down_proj": nn.Linear(inner, width, bias=False),
            }
        )

    def projected(self, x, turn):
        """Return q, k and v of x (B, T, E), each (B, heads, T, D)."""
        q, k, v = (
            self.self_attn[f"{name}_proj"](x).unflatten(-1, (-1, self.size)) for name in "qkv"
        )
        return (t.transpose(1, 2) for t in (turned(q, turn), turned(k, turn), v))

    def feed_forward(self, x):
        return self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](x)) * self.mlp["up_proj"](x))


class Llama(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.model.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids, cache=None, attention_mask=None):
        config = self.config
        batch, count = ids.shape
        start = cache.length if cache else 0
        if cache and start + count > cache.max_length:
            raise ValueError(
                f"cache of {cache.max_length} columns is asked to hold {start + count}"
            )
        if attention_mask is None:
            attention_mask = torch.ones(batch, start + count, dtype=torch.long)
        real = attention_mask != 0
        new = torch.arange(start, start + count)
        held = cache.columns if cache else new[:0]
        columns = torch.cat([held, new])
        mask = (columns <= new[:, None]) & (columns != NO_COLUMN)
        if config.sliding_window is not None:
            mask = mask & (columns > new[:, None] - config.sliding_window)
        mask = mask & real[:, columns.clamp(min=0)][:, None]

        # float64, so that no dtype and no length can blur an angle
        frequencies = torch.arange(config.head_dim // 2, dtype=torch.float64) * 2 / config.head_dim
        positions = (real.long().cumsum(-1) - real.long())[:, start:]
        angles = positions[..., None] / float(config.rope_theta) ** frequencies
        wide = torch.promote_types(self.lm_head.weight.dtype, torch.float32)
        turn = torch.polar(torch.ones_like(angles), angles).to(wide.to_complex())

        x = self.model.embed_tokens(ids)
        for number, layer in enumerate(self.model.layers):
            q, k, v = layer.projected(layer.input_layernorm(x), turn)
            if cache:
                own = torch.stack([k, v])
                k, v = torch.cat([cache.memory[:, number], own], dim=-2)
                cache.put(number, own, new)
            out = attend(q, k, v, mask).transpose(1, 2).flatten(2)
            x = x + layer.self_attn["o_proj"](out)
            x = x + layer.feed_forward(layer.post_attention_layernorm(x))
        if cache:
            slots = len(cache.columns)
            cache.columns[new[-slots:] % slots] = new[-slots:]
            cache.length = start + count
        return self.lm_head(self.model.norm(x))


def generate(model, prompts, max_new_tokens, eos_id, pad_id):
    with torch.no_grad():
        rows, longest = len(prompts), max(map(len, prompts))
        ids = torch.full((rows, longest + max_new_tokens), pad_id)
        mask = torch.ones_like(ids, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) : longest] = torch.tensor(prompt)
            mask[row, : longest - len(prompt)] = False
        ends = [longest + max_new_tokens] * rows
        cache = KVCache(model.config, rows, ids.shape[1], next(model.parameters()).dtype)
        for column in range(longest, ids.shape[1]):
            logits = model(ids[:, cache.length : column], cache, mask[:, :column])[:, -1]
            ids[:, column] = logits.argmax(-1)
            for row in range(rows):
                if ids[row, column] == eos_id:
                    ends[row] = min(ends[row], column + 1)
            if max(ends) <= column + 1:
                break
        return [ids[row, longest:end].tolist() for row, end in enumerate(ends)]


def run(seed=0, steps=None):
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        model = Llama(LlamaConfig(31, 24, 40, 2, 6, 3, 8, sliding_window=16)).requires_grad_(False)
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) / 2)
    sizes = [(6, 1, 1, 1)[step % 4] for step in range(24 if steps is None else steps)]
    rows = [
        torch.randint(31, (max(0, sum(sizes) - padding),), generator=generator)
        for padding in (0, 2, 5)
    ]
    cache = KVCache(model.config, 3, sum(sizes), torch.float32)
    with torch.no_grad():
        truth = [model(row[None])[0] for row in rows]
    for step, size in enumerate(sizes):
        if step == 12:
            cache.reorder(torch.tensor([2, 0, 1]))
            rows, truth = [[things[i] for i in (2, 0, 1)] for things in (rows, truth)]
        stop = cache.length + size
        ids = torch.stack([F.pad(row, (sum(sizes) - len(row), 0)) for row in rows])
        mask = torch.stack([torch.arange(sum(sizes)) >= sum(sizes) - len(row) for row in rows])
        with torch.no_grad():
            logits = model(ids[:, cache.length : stop], cache, mask[:, :stop])
        pairs = []
        for row, expected, ours in zip(rows, truth, logits, strict=True):
            end = stop - (sum(sizes) - len(row))
            count = min(end, size)
            pairs.append((ours[size - count :], expected[end - count : end]))
        ours, theirs = (torch.cat(part) for part in zip(*pairs, strict=True))
        yield {
            "columns": float(stop),
            "error": float((ours - theirs).abs().max()),
            "agreement": float((ours.argmax(-1) == theirs.argmax(-1)).double().mean()),
        }
