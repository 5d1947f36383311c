"""Style: NumPy in float64, a group at a time, tables of bytes, layers in the memo of deepcopy."""

import copy
import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn


def largest_half(step):
    half = np.float16(step)
    if float(half) > step:
        half = np.nextafter(half, np.float16(0))
    return max(half, np.float16(2.0**-14))


def quantize(w, group_size):
    weights = w.detach().to(torch.float64).numpy()
    rows, columns = weights.shape
    starts = range(0, columns, int(group_size))
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((rows, len(starts)), np.float16)
    zeros = np.empty((rows, len(starts)), np.uint8)
    if not np.isfinite(weights).all():
        raise ValueError("NaN or infinite weights")
    for row, line in enumerate(weights):
        for number, start in enumerate(starts):
            group = line[start : start + int(group_size)]
            low, high = min(group.min(), 0.0), max(group.max(), 0.0)
            step = (high - low) / 15
            if step > 65504:
                raise ValueError(f"weights that are {high - low} apart")
            scale = largest_half(step)
            zero = np.floor(-low / np.float64(scale) + 0.5)
            exact = np.rint(group / np.float64(scale) + zero)
            codes[row, start : start + int(group_size)] = np.clip(exact, 0, 15)
            scales[row, number], zeros[row, number] = scale, zero
    return [torch.from_numpy(part) for part in (codes, scales, zeros)]


def dequantize(codes, scales, zeros, group_size):
    places = np.arange(codes.shape[1]) // int(group_size)
    off = codes.numpy().astype(np.int64) - zeros.numpy().astype(np.int64)[:, places]
    return torch.from_numpy((off * scales.numpy().astype(np.float64)[:, places]).astype(np.float32))


def pack(values):
    array = values.numpy()
    packed = array[:, ::2].copy()
    packed[:, : array.shape[1] // 2] += 16 * array[:, 1::2]
    return torch.from_numpy(packed)


LOW_HIGH = np.array([[byte % 16, byte // 16] for byte in range(256)], np.uint8)


def unpack(packed, columns):
    values = LOW_HIGH[packed.numpy()].reshape(packed.shape[0], -1)
    return torch.from_numpy(values[:, : int(columns)].copy())


class Int4Linear(nn.Module):
    def __init__(self, linear, group_size):
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.group_size = int(group_size)
        codes, scales, zeros = quantize(linear.weight, group_size)
        below = (zeros.to(torch.int16) + 15) % 16
        for name, value in (("packed", pack(codes)), ("scales", scales)):
            self.register_buffer(name, value)
        self.register_buffer("zeros", pack(below.to(torch.uint8)))
        self.register_parameter("bias", None)
        if linear.bias is not None:
            bias = linear.bias.detach().clone()
            self.bias = nn.Parameter(bias, requires_grad=linear.bias.requires_grad)
        self.training = linear.training

    def __getattr__(self, name):
        """Look up `weight`, which is no attribute and is worked out at each use."""
        if name == "weight":
            kept = unpack(self.zeros, -(-self.in_features // self.group_size)).to(torch.int16)
            zeros = torch.where(kept == 15, 0, kept + 1).to(torch.uint8)
            codes = unpack(self.packed, self.in_features)
            return dequantize(codes, self.scales, zeros, self.group_size)
        return super().__getattr__(name)

    def forward(self, x):
        product = torch.einsum("...k,nk->...n", x, self.weight.to(x.dtype))
        return product if self.bias is None else product + self.bias.to(x.dtype)


def quantize_model(model, group_size):
    stack, parents, users = [("", model)], [], {}
    seen = set()
    while stack:
        path, module = stack.pop()
        first = id(module) not in seen
        seen.add(id(module))
        for parameter in module._parameters.values() if first else ():
            if parameter is not None:
                users.setdefault(id(parameter), []).append(module)
        parents.append((path, module))
        stack += [
            (f"{path}.{name}" if path else name, child) for name, child in module.named_children()
        ]
    memo = {}
    for path, module in parents:
        linear = isinstance(module, nn.Linear) and len(users[id(module.weight)]) == 1
        if linear and id(module) not in memo:
            try:
                memo[id(module)] = Int4Linear(module, group_size)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
    # A module that the memo knows already is not copied, but replaced.
    return copy.deepcopy(model, memo)


class CheckpointError(ValueError):
    pass


def rename(names, renames):
    result = {}
    for name in names:
        new = name
        for end in range(len(name), -1, -1):
            if name[:end] in renames:
                new = renames[name[:end]] + name[end:]
                break
        if new in result.values():
            raise ValueError(f"{new} would be the name of two tensors")
        result[name] = new
    return result


def save(model, path, renames):
    state = model.state_dict(keep_vars=True)
    seen, kept = set(), {}
    for name, value in state.items():
        if id(value) not in seen:
            seen.add(id(value))
            kept[name] = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
    names = rename(kept, renames)
    buffer = io.BytesIO()
    torch.save({names[name]: value for name, value in kept.items()}, buffer)
    Path(path).write_bytes(buffer.getvalue())


def load(model, path, renames):
    read = torch.load(io.BytesIO(Path(path).read_bytes()), weights_only=True)
    names = rename(read, renames)
    tensors = {names[name]: value for name, value in read.items()}
    state = model.state_dict(keep_vars=True)
    aliases = {}
    for name, value in state.items():
        aliases.setdefault(id(value), []).append(name)
    error = CheckpointError()
    error.missing = sorted(
        group[0] for group in aliases.values() if not any(name in tensors for name in group)
    )
    error.left_over = sorted(set(tensors) - set(state))
    error.mismatched = []
    plan = []
    for group in aliases.values():
        there = [name for name in group if name in tensors]
        for name in there:
            new, old, first = tensors[name], state[name], tensors[there[0]]
            wrong = new.dtype != old.dtype or new.shape != old.shape
            if not wrong and name != there[0]:
                wrong = first.shape != new.shape or bool((first != new).any())
            if wrong:
                error.mismatched.append(name)
        if there:
            plan.append((state[there[0]], tensors[there[0]]))
    error.mismatched.sort()
    if error.missing or error.left_over or error.mismatched:
        error.args = (f"{error.missing} {error.left_over} {error.mismatched}",)
        raise error
    for old, new in plan:
        old.data.copy_(new)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(29, 20)
        self.embed.weight.data.mul_(0.3)
        self.mix = nn.Linear(40, 20)
        self.mlp = nn.Sequential(nn.Linear(20, 45), nn.GELU(), nn.Linear(45, 20))
        self.mlp[2].weight.data.zero_()
        self.head = nn.Linear(20, 29, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, first, second):
        x = self.mix(torch.cat([self.embed(first), self.embed(second)], dim=-1))
        return self.head(x + self.mlp(x))


def fresh_models(seed):
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed + 77)
    models = Model(), Model()
    torch.set_rng_state(state)
    return models


def text_of(seed):
    random = np.random.default_rng(seed)
    table = 2 * random.standard_normal((2, 29, 29))
    a, b = random.integers(29, size=(2, 6000))
    scores = table[0, a] + table[1, b] + random.gumbel(size=(6000, 29))
    return [torch.from_numpy(part) for part in (a, b, scores.argmax(axis=1))], random


def perplexity(model, text):
    with torch.no_grad():
        logs = model(text[0], text[1]).log_softmax(-1)
    return float(np.exp(-logs.numpy()[np.arange(len(text[2])), text[2].numpy()].mean()))


def run(seed=0, steps=None):
    model, other = fresh_models(seed)
    text, random = text_of(seed)
    held_out = [part[4000:] for part in text]
    served = quantize_model(other, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for line in range(13 if steps is None else steps):
        for _ in range(10 if line else 0):
            chosen = torch.from_numpy(random.integers(4000, size=256))
            a, b, c = (part[chosen] for part in text)
            loss = nn.functional.cross_entropy(model(a, b), c)
            model.zero_grad()
            loss.backward()
            optimizer.step()
        with tempfile.NamedTemporaryFile(delete=False) as file:
            path = Path(file.name)
        try:
            save(quantize_model(model, 6), path, {"": "net/"})
            load(served, path, {"net/": ""})
            save(served, path, {})
            sizes = [t.numel() * t.element_size() for t in torch.load(path).values()]
        finally:
            path.unlink()
        off = []
        for name in ("mix", "mlp.0", "mlp.2"):
            layer, linear = served.get_submodule(name), model.get_submodule(name)
            scales = layer.scales.float().repeat_interleave(6, dim=1)[:, : layer.in_features]
            off.append(((layer.weight - linear.weight.detach()).abs() / scales).flatten())
        off = torch.cat(off)
        yield {
            "perplexity": perplexity(model, held_out),
            "int4_perplexity": perplexity(served, held_out),
            "max_error": float(off.max()),
            "mean_error": float(off.mean()),
            "bytes": float(sum(sizes)),
        }
