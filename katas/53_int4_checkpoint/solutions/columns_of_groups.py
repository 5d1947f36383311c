"""Style: one block of columns at a time, arithmetic for bits, a product group by group."""

import math
import tempfile
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn


def largest_halves(step):
    """Search among neighbours: the rounded quotient, and the float16 below it."""
    near = step.to(torch.float16)
    bits = near.view(torch.int16)
    below = (bits - 1).clamp(min=0).view(torch.float16)
    found = torch.where(near.to(torch.float64) <= step, near, below)
    return torch.maximum(found, torch.tensor(2.0**-14, dtype=torch.float16))


def quantize(w, group_size):
    weights = w.detach().clone().to(torch.float64)
    codes, scales, zeros = [], [], []
    for block in weights.split(min(int(group_size), weights.shape[1]), dim=1):
        nothing = torch.zeros_like(block[:, :1])
        both = torch.cat((block, nothing), dim=1)
        low, high = both.min(dim=1, keepdim=True).values, both.max(dim=1, keepdim=True).values
        step = (high - low) / 15
        if not bool((step < 65504.0 + 1e-9).all()):
            raise ValueError("a group with NaN, infinities or too large weights")
        scale = largest_halves(step)
        zero = torch.floor(0.5 - low / scale.to(torch.float64))
        code = torch.round(block / scale.to(torch.float64) + zero)
        codes.append(code.clamp(0, 15))
        scales.append(scale)
        zeros.append(zero)
    return (
        torch.cat(codes, dim=1).to(torch.uint8),
        torch.cat(scales, dim=1),
        torch.cat(zeros, dim=1).to(torch.uint8),
    )


def dequantize(codes, scales, zeros, group_size):
    out = torch.empty(codes.shape, dtype=torch.float32)
    for number in range(scales.shape[1]):
        place = slice(number * int(group_size), (number + 1) * int(group_size))
        signed = codes[:, place].to(torch.int32) - zeros[:, number, None].to(torch.int32)
        out[:, place] = signed * scales[:, number, None].to(torch.float32)
    return out


def pack(values):
    packed = torch.zeros(values.shape[0], math.ceil(values.shape[1] / 2), dtype=torch.uint8)
    for column in range(values.shape[1]):
        packed[:, column // 2] += values[:, column] * (16 if column % 2 else 1)
    return packed


def unpack(packed, columns):
    values = torch.empty(packed.shape[0], int(columns), dtype=torch.uint8)
    for column in range(int(columns)):
        byte = packed[:, column // 2]
        values[:, column] = byte // 16 if column % 2 else byte % 16
    return values


class Int4Linear(nn.Module):
    def __init__(self, linear, group_size):
        super().__init__()
        self.in_features = linear.weight.shape[1]
        self.out_features = linear.weight.shape[0]
        self.group_size = group_size
        codes, scales, zeros = quantize(linear.weight, group_size)
        self.packed = nn.Buffer(pack(codes))
        self.scales = nn.Buffer(scales)
        self.zeros = nn.Buffer(pack(torch.where(zeros == 0, 15, zeros - 1).to(torch.uint8)))
        self.bias = deepcopy(linear.bias)
        if self.bias is not None:
            self.bias.grad = None
        self.train(linear.training)

    def parts(self):
        kept = unpack(self.zeros, self.scales.shape[1])
        zeros = torch.remainder(kept.to(torch.int32) + 1, 16).to(torch.uint8)
        return unpack(self.packed, self.in_features), self.scales, zeros

    @property
    def weight(self):
        return dequantize(*self.parts(), self.group_size)

    def forward(self, x):
        codes, scales, zeros = self.parts()
        wide = torch.promote_types(x.dtype, torch.float32)
        out = torch.zeros(*x.shape[:-1], self.out_features, dtype=wide)
        for number in range(scales.shape[1]):
            place = slice(number * self.group_size, (number + 1) * self.group_size)
            signed = codes[:, place].to(wide) - zeros[:, number, None].to(wide)
            weight = (signed * scales[:, number, None].to(wide)).to(x.dtype).to(wide)
            out = out + x[..., place].to(wide) @ weight.T
        if self.bias is not None:
            out = out + self.bias.to(x.dtype)
        return out.to(x.dtype)


def quantize_model(model, group_size):
    copied = deepcopy(model)
    places = {}
    for module in copied.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(parameter, []).append((module, name))

    def alone(module):
        return isinstance(module, nn.Linear) and len(places[module.weight]) == 1

    names = {module: name for name, module in copied.named_modules() if alone(module)}
    layers = {}
    for module, name in names.items():
        try:
            layers[module] = Int4Linear(module, group_size)
        except ValueError as error:
            raise ValueError(f"cannot quantise {name}") from error
    if copied in layers:
        return layers[copied]
    for parent in tuple(copied.modules()):
        for child in set(parent.children()) & set(layers):
            for key in [k for k, v in parent._modules.items() if v is child]:
                parent._modules[key] = layers[child]
    return copied


class CheckpointError(ValueError):
    def __init__(self, **lists):
        for key, names in lists.items():
            setattr(self, key, sorted(names))
        super().__init__("; ".join(f"{key}: {', '.join(sorted(n))}" for key, n in lists.items()))


def new_name(name, renames):
    fitting = [old for old in renames if name[: len(old)] == old]
    if not fitting:
        return name
    longest = sorted(fitting, key=len)[-1]
    return renames[longest] + name[len(longest) :]


def rename_keys(tensors, renames):
    pairs = [(new_name(name, renames), value) for name, value in tensors.items()]
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"more than one tensor for {twice[0]}")
    return dict(pairs)


def tied(model):
    """Lists of names, one for each tensor, with the tensor."""
    groups = []
    for name, value in model.state_dict(keep_vars=True).items():
        for names, other in groups:
            if other is value:
                names.append(name)
                break
        else:
            groups.append(([name], value))
    return groups


def save(model, path, renames):
    tensors = {}
    for names, value in tied(model):
        tensors[names[0]] = value.detach().contiguous().clone()
    torch.save(rename_keys(tensors, renames), str(path))


def load(model, path, renames):
    tensors = rename_keys(torch.load(str(path), weights_only=True, map_location="cpu"), renames)
    groups = tied(model)
    known = {name for names, _ in groups for name in names}
    missing, mismatched, copies = [], [], []
    for names, value in groups:
        there = [name for name in names if name in tensors]
        if there:
            copies.append((value, tensors[there[0]]))
        else:
            missing.append(names[0])
        for name in there:
            same_kind = (tensors[name].shape, tensors[name].dtype) == (value.shape, value.dtype)
            same = name == there[0] or tensors[name].tolist() == tensors[there[0]].tolist()
            if not (same_kind and same):
                mismatched.append(name)
    left_over = [name for name in tensors if name not in known]
    if missing + left_over + mismatched:
        raise CheckpointError(missing=missing, left_over=left_over, mismatched=mismatched)
    with torch.no_grad():
        for value, new in copies:
            value.copy_(new)


def layer(inputs, outputs, generator, bias=True, scale=None):
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    bound = 1 / math.sqrt(inputs) if scale is None else scale
    for parameter in linear.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return linear


class Model(nn.Module):
    def __init__(self, generator):
        super().__init__()
        weight = 0.3 * torch.randn(29, 20, generator=generator)
        self.embed = nn.Embedding(29, 20, _weight=weight)
        self.mix = layer(40, 20, generator)
        self.mlp = nn.Sequential(layer(20, 45, generator), nn.GELU(), layer(45, 20, generator))
        nn.init.zeros_(self.mlp[2].weight)
        self.head = nn.utils.skip_init(nn.Linear, 20, 29, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, pairs):
        x = self.mix(self.embed(pairs).reshape(len(pairs), 40))
        return self.head(self.mlp(x) + x)


def run(seed=0, steps=None):
    generator = torch.Generator()
    generator.manual_seed(seed)
    served = quantize_model(Model(generator), 6)
    model = Model(generator)
    table = torch.empty(29, 29, 29)
    ones, twos = (2 * torch.randn(29, 29, generator=generator) for _ in range(2))
    for a in range(29):
        for b in range(29):
            table[a, b] = ones[a] + twos[b]
    pairs = torch.randint(29, (6000, 2), generator=generator)
    chances = table[pairs[:, 0], pairs[:, 1]].softmax(-1)
    third = torch.multinomial(chances, 1, generator=generator)[:, 0]
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(13 if steps is None else steps):
        line = {}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights"
            save(quantize_model(model, 6), path, {"mlp.": "feed.", "mlp.2.": "feed.out."})
            load(served, path, {"feed.out.": "mlp.2.", "feed.": "mlp."})
            save(served, path, {"": "x"})
            line["bytes"] = 0.0
            for tensor in torch.load(path, weights_only=True).values():
                line["bytes"] += tensor.element_size() * tensor.numel()
        with torch.inference_mode():
            for key, each in {"perplexity": model, "int4_perplexity": served}.items():
                loss = nn.functional.cross_entropy(each(pairs[4000:]), third[4000:])
                line[key] = math.exp(loss)
        off = []
        for name in ("mix", "mlp.0", "mlp.2"):
            mine = served.get_submodule(name)
            error = (mine.weight - model.get_submodule(name).weight.data).abs()
            for number, block in enumerate(error.split(6, dim=1)):
                off += (block / mine.scales[:, number, None]).flatten().tolist()
        line |= {"max_error": max(off), "mean_error": sum(off) / len(off)}
        yield line
        for _ in range(10):
            chosen = torch.randint(4000, (256,), generator=generator)
            optimizer.zero_grad(set_to_none=False)
            nn.functional.cross_entropy(model(pairs[chosen]), third[chosen]).backward()
            optimizer.step()
