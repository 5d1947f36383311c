"""Style: one column at a time, through all layers, whatever the chunk; einsum over groups."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
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
        self.max_length, self.length = max_length, 0
        slots = max_length
        if config.sliding_window:
            slots = min(config.sliding_window, max_length)
        shape = batch_size, config.num_key_value_heads, slots, config.head_dim
        self.keys, self.values = [], []
        for _ in range(config.num_hidden_layers):
            self.keys.append(torch.zeros(shape, dtype=dtype))
            self.values.append(torch.zeros(shape, dtype=dtype))

    def store(self, layer, column, key, value):
        """Write the keys and values (B, Hkv, D) of one column of a layer."""
        slot = column % self.keys[layer].shape[2]
        self.keys[layer][:, :, slot] = key
        self.values[layer][:, :, slot] = value

    def load(self, layer, columns):
        slots = torch.tensor(columns) % self.keys[layer].shape[2]
        return self.keys[layer][:, :, slots], self.values[layer][:, :, slots]

    def reorder(self, beam_indices):
        for part in (self.keys, self.values):
            for layer, old in enumerate(part):
                part[layer] = torch.stack([old[beam] for beam in beam_indices.tolist()])


class Unstored:
    """Keys and values of a call without a cache, kept in lists, so that gradients go through."""

    def __init__(self, config):
        self.columns = [[] for _ in range(config.num_hidden_layers)]

    def store(self, layer, column, key, value):
        self.columns[layer].append((key, value))

    def load(self, layer, columns):
        picked = [self.columns[layer][column] for column in columns]
        return tuple(torch.stack(part, dim=2) for part in zip(*picked, strict=True))


def attend(q, k, v, visible):
    q = q.unflatten(1, (k.shape[1], -1))
    scores = torch.einsum("bkgtd,bksd->bkgts", q, k).to(wide(q.dtype)) / math.sqrt(q.shape[-1])
    hidden = ~visible[:, None, None]
    scores = scores.masked_fill(hidden, -math.inf)
    top = scores.amax(-1, keepdim=True).detach()
    weights = (scores - top.masked_fill(top == -math.inf, 0)).exp()
    total = weights.sum(-1, keepdim=True)
    weights = weights / total.masked_fill(total == 0, 1)
    return torch.einsum("bkgts,bksd->bkgtd", weights.to(v.dtype), v).flatten(1, 2)


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


class Weight(torch.nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(shape))
        if len(shape) > 1:
            torch.nn.init.normal_(self.weight, std=shape[-1] ** -0.5)

    def forward(self, x):
        return x @ self.weight.T


class Norm(Weight):
    def __init__(self, config):
        super().__init__(config.hidden_size)
        self.eps = config.rms_norm_eps

    def forward(self, x):
        exact = x.to(wide(x.dtype))
        rms = (exact.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        return (exact / rms * self.weight).to(x.dtype)


class Layer(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        e, f, d = config.hidden_size, config.intermediate_size, config.head_dim
        h, kv = config.num_attention_heads, config.num_key_value_heads
        self.input_layernorm, self.post_attention_layernorm = Norm(config), Norm(config)
        self.self_attn, self.mlp = torch.nn.Module(), torch.nn.Module()
        for name, out in (("q_proj", h * d), ("k_proj", kv * d), ("v_proj", kv * d)):
            self.self_attn.add_module(name, Weight(out, e))
        self.self_attn.o_proj = Weight(e, h * d)
        self.mlp.gate_proj, self.mlp.up_proj = Weight(f, e), Weight(f, e)
        self.mlp.down_proj = Weight(e, f)


class Llama(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = torch.nn.Module()
        self.model.embed_tokens = Weight(config.vocab_size, config.hidden_size)
        self.model.layers = torch.nn.ModuleList(
            Layer(config) for _ in range(config.num_hidden_layers)
        )
        self.model.norm = Norm(config)
        self.lm_head = Weight(config.vocab_size, config.hidden_size)

    def forward(self, ids, cache=None, attention_mask=None):
        first = 0 if cache is None else cache.length
        last = first + ids.shape[1]
        if cache is not None and last > cache.max_length:
            raise ValueError(f"no room: {last} columns, but max_length is {cache.max_length}")
        if attention_mask is None:
            attention_mask = torch.ones(ids.shape[0], last)
        memory = Unstored(self.config) if cache is None else cache
        logits = []
        for column in range(first, last):
            real = attention_mask[:, : column + 1] > 0
            logits.append(self.column(ids[:, column - first], memory, real))
        if cache is not None:
            cache.length = last
        return torch.stack(logits, dim=1)

    def column(self, tokens, memory, real):
        """Return the logits (B, V) of the column after which `real` (B, columns) ends."""
        config, column = self.config, real.shape[1] - 1
        oldest = 0
        if config.sliding_window is not None:
            oldest = max(0, column + 1 - config.sliding_window)
        columns = list(range(oldest, column + 1))
        visible = real[:, None, columns]
        position = (real.sum(1) - 1).clamp(min=0)
        x = self.model.embed_tokens.weight[tokens]
        for number, layer in enumerate(self.model.layers):
            block, normed = layer.self_attn, layer.input_layernorm(x)
            q, k, v = (
                project(normed).unflatten(-1, (-1, config.head_dim))
                for project in (block.q_proj, block.k_proj, block.v_proj)
            )
            memory.store(number, column, self.turned(k, position), v)
            keys, values = memory.load(number, columns)
            out = attend(self.turned(q, position)[:, :, None], keys, values, visible)
            x = x + block.o_proj(out.flatten(1))
            normed = layer.post_attention_layernorm(x)
            gate = layer.mlp.gate_proj(normed)
            x = x + layer.mlp.down_proj(gate * torch.sigmoid(gate) * layer.mlp.up_proj(normed))
        return self.lm_head(self.model.norm(x))

    def turned(self, x, position):
        """Return x (B, H, D) turned by its row's position (B,)."""
        half = self.config.head_dim // 2
        speed = torch.tensor(
            [self.config.rope_theta ** (-i / half) for i in range(half)], dtype=torch.float64
        )
        angle = (position[:, None] * speed)[:, None]
        cos, sin = (t.to(wide(x.dtype)) for t in (angle.cos(), angle.sin()))
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


@torch.inference_mode()
def generate(model, prompts, max_new_tokens, eos_id, pad_id):
    longest = max(len(prompt) for prompt in prompts)
    padding = [longest - len(prompt) for prompt in prompts]
    cache = KVCache(
        model.config, len(prompts), longest + max_new_tokens, model.lm_head.weight.dtype
    )
    feed = [[pad_id] * count + list(prompt) for count, prompt in zip(padding, prompts, strict=True)]
    answers = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    for step in range(max_new_tokens):
        mask = torch.tensor(
            [[0] * count + [1] * (longest + step - count) for count in padding], dtype=torch.long
        )
        best = model(torch.tensor(feed), cache, mask)[:, -1].argmax(-1).tolist()
        for row in sorted(open_rows):
            answers[row].append(best[row])
            if best[row] == eos_id:
                open_rows.remove(row)
        if not open_rows:
            break
        feed = [[token] for token in best]
    return answers


def run(seed=0, steps=None):
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    config = LlamaConfig(31, 24, 40, 2, 6, 3, 8, sliding_window=16)
    model = Llama(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    sizes = [6 if step % 4 == 0 else 1 for step in range(steps if steps is not None else 24)]
    total = sum(sizes)
    ids = torch.randint(31, (3, total))
    torch.set_rng_state(state)
    padding = [0, 2, 5]
    cache = KVCache(config, 3, total, torch.float32)
    with torch.no_grad():
        whole = [model(ids[row : row + 1, padding[row] :])[0] for row in range(3) if total]
    beams = [0, 1, 2]
    for step, size in enumerate(sizes):
        if step == 12:
            beams = [2, 0, 1]
            cache.reorder(torch.tensor(beams))
        first, last = cache.length, cache.length + size
        mask = torch.tensor(
            [[int(column >= padding[beam]) for column in range(last)] for beam in beams]
        )
        with torch.no_grad():
            logits = model(ids[beams, first:last], cache, mask)
        errors, same = [], []
        for row, beam in enumerate(beams):
            for column in range(max(first, padding[beam]), last):
                ours, theirs = logits[row, column - first], whole[beam][column - padding[beam]]
                errors.append((ours - theirs).abs().max().item())
                same.append(ours.argmax().item() == theirs.argmax().item())
        yield {
            "columns": float(last),
            "error": max(errors),
            "agreement": sum(same) / len(same),
        }
