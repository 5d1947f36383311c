"""A Llama-like decoder that writes with a cache of keys and values."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a decoder, in the words of `transformers`."""

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
    """Keys, rotated, and values of the columns in sight: `keys[layer]` is (B, Hkv, S, D).

    Column c stands in slot c % S. Of a sliding window, the S slots are a ring.
    """

    def __init__(
        self, config: LlamaConfig, batch_size: int, max_length: int, dtype: torch.dtype
    ) -> None:
        """Make room for `max_length` columns, or for a window of them if that is less."""
        self.max_length, self.length = max_length, 0
        self.slots = min(max_length, config.sliding_window or max_length)
        shape = (batch_size, config.num_key_value_heads, self.slots, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, dtype=dtype) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype) for _ in layers]

    def columns_seen(self, tokens: int) -> Tensor:
        """Return the columns, (S,), of what `update` returns for the next `tokens`, if they fit."""
        stop = self.length + tokens
        if stop > self.max_length:
            raise ValueError(f"{stop} columns do not fit into a cache of {self.max_length}")
        if self._overwrites_what_is_seen(tokens):
            return torch.cat([self._columns_in_slots(self.length), torch.arange(self.length, stop)])
        return self._columns_in_slots(stop)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values, (B, Hkv, T, D); return all that its queries may see."""
        return self._append(self.keys[layer], keys), self._append(self.values[layer], values)

    def reorder(self, beam_indices: Tensor) -> None:
        """Let row n go on from what row `beam_indices[n]` was; the indices are int64, (N,)."""
        self.keys = [keys[beam_indices] for keys in self.keys]
        self.values = [values[beam_indices] for values in self.values]

    def _append(self, buffer: Tensor, new: Tensor) -> Tensor:
        stop = self.length + new.shape[2]
        seen = buffer
        if self._overwrites_what_is_seen(new.shape[2]):
            seen = torch.cat([buffer[:, :, : self.length], new], dim=2)
        slots = torch.arange(self.length, stop)[-self.slots :] % self.slots
        buffer[:, :, slots] = new[:, :, -self.slots :]
        return seen[:, :, :stop]

    def _overwrites_what_is_seen(self, tokens: int) -> bool:
        """Say whether some of the next `tokens` take slots of keys that others of them see."""
        return tokens > self.slots

    def _columns_in_slots(self, length: int) -> Tensor:
        """Return the column in each slot in use, once `length` columns are stored."""
        return torch.arange(length)[-self.slots :]


def rotary_table(positions: Tensor, dim: int, theta: float) -> Tensor:
    """Return cosines and sines of the angles at `positions` (B, T): float32, (2, B, T, dim / 2)."""
    angles = positions[..., None] * theta ** -(torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Return `x` (B, H, T, D) with features i and i + D / 2 turned as a pair, by `rotary_table`."""
    cos, sin = rotary.unsqueeze(2)  # the same for every head
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Return what `q` (B, H, T, D) attends to of keys (B, Hkv, S, D) `visible` (B, T, S) to it."""
    k, v = (x.repeat(1, q.shape[1] // x.shape[1], 1, 1) for x in (k, v))
    scores = (q @ k.mT).float() * q.shape[-1] ** -0.5
    # Not -inf: padding may see no key, and NaN would go from it to the tokens after it.
    scores = scores.masked_fill(~visible.unsqueeze(1), torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1).to(v.dtype) @ v


class Attention(nn.Module):
    """Self-attention with rotary positions, fewer key heads than query heads, and a cache."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        """Make the projections of layer number `layer`."""
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotary: Tensor, visible: Tensor, cache: KVCache | None) -> Tensor:
        """Return (B, T, hidden_size) for `x` of that shape."""
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, rotary), rotate(k, rotary)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        return self.o_proj(attend(q, k, v, visible).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU: Shazeer, https://arxiv.org/abs/2002.05202."""

    def __init__(self, config: LlamaConfig) -> None:
        """Make the projections."""
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, hidden_size) for `x` of that shape."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention and MLP, each fed with the normed stream and added to the stream."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        """Make layer number `layer`."""
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rotary: Tensor, visible: Tensor, cache: KVCache | None) -> Tensor:
        """Return (B, T, hidden_size) for `x` of that shape."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, visible, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """The decoder, with the state_dict of `LlamaForCausalLM` in `transformers`."""

    def __init__(self, config: LlamaConfig) -> None:
        """Make a model with random weights."""
        super().__init__()
        self.config = config
        layers = range(config.num_hidden_layers)
        self.model = nn.ModuleDict()
        self.model["embed_tokens"] = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model["layers"] = nn.ModuleList(DecoderLayer(config, layer) for layer in layers)
        self.model["norm"] = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self, ids: Tensor, cache: KVCache | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Return logits (B, T, V) of `ids` (B, T), the columns after those in the cache.

        `attention_mask` (B, length + T) is 0 at padding. With a cache, call it without gradients.
        """
        past, tokens = 0 if cache is None else cache.length, ids.shape[1]
        columns = torch.arange(past, past + tokens)
        seen = columns if cache is None else cache.columns_seen(tokens)
        mask = torch.ones(len(ids), past + tokens) if attention_mask is None else attention_mask
        real = mask.bool()
        distance = columns[:, None] - seen
        window = self.config.sliding_window or past + tokens
        visible = (distance >= 0) & (distance < window) & real[:, None, seen]
        positions = (real[:, past:].cumsum(dim=1) - 1).clamp(min=0) + past
        x = self.model["embed_tokens"](ids)
        rotary = rotary_table(positions, self.config.head_dim, self.config.rope_theta)
        for layer in self.model["layers"]:
            x = layer(x, rotary, visible, cache)
        if cache is not None:
            cache.length += tokens
        return self.lm_head(self.model["norm"](x))


@torch.no_grad()
def generate(
    model: Llama, prompts: list[list[int]], max_new_tokens: int, eos_id: int, pad_id: int
) -> list[list[int]]:
    """Return the greedy answer to each prompt; one that meets `eos_id` ends with it."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.arange(longest) >= longest - lengths[:, None]
    cache = KVCache(model.config, len(ids), longest + max_new_tokens, model.lm_head.weight.dtype)
    answers: list[list[int]] = [[] for _ in prompts]
    finished = torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(max_new_tokens):
        token = model(ids, cache, mask)[:, -1].argmax(dim=-1)
        for row in (~finished).nonzero().flatten().tolist():
            answers[row].append(int(token[row]))
        finished = token == eos_id
        if finished.all():
            break
        ids, mask = token[:, None], F.pad(mask, (0, 1), value=True)
    return answers


@torch.no_grad()
def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Feed turns of six columns, and three more one by one; log how far the cache is from none."""
    sizes = [1 if step % 4 else 6 for step in range(24 if steps is None else steps)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Llama(LlamaConfig(31, 24, 40, 2, 6, 3, 8, sliding_window=16))
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        ids = torch.randint(31, (3, sum(sizes)))
    mask = torch.arange(sum(sizes)) >= torch.tensor([0, 2, 5])[:, None]
    alone = torch.zeros(*ids.shape, 31)
    for row, real in enumerate(mask):
        alone[row, real] = model(ids[row, real][None])[0]
    cache = KVCache(model.config, len(ids), sum(sizes), alone.dtype)
    for step, size in enumerate(sizes):
        if step == 12:  # as beams do
            ids, mask, alone = (x.roll(1, dims=0) for x in (ids, mask, alone))
            cache.reorder(torch.tensor([2, 0, 1]))
        now = slice(cache.length, cache.length + size)
        real = mask[:, now]
        logits, expected = model(ids[:, now], cache, mask[:, : now.stop])[real], alone[:, now][real]
        yield {
            "columns": float(cache.length),
            "error": (logits - expected).abs().max().item(),
            "agreement": (logits.argmax(-1) == expected.argmax(-1)).float().mean().item(),
        }
