"""Weights in four bits: quantise, pack, multiply, and a checkpoint that keeps them."""

import copy
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_SCALE = torch.finfo(torch.float16).tiny  # 2^-14; below it float16 loses digits


def quantize(w: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the codes, scales and zero points of weights (N, K), in groups along the rows.

    Codes are uint8 (N, K), scales float16 and zero points uint8, both (N, groups); a weight is
    about (code - zero point) * scale. A scale is rounded down: the ends of a group then have codes
    0 and 15, and dequantised weights are quantised to the same bits. ValueError for what float16
    cannot scale: NaN, infinities, and a group wider than 15 * 65504.
    """
    rows, columns = w.shape
    groups, size = math.ceil(columns / group_size), min(group_size, columns)
    padded = F.pad(w.float(), (0, groups * size - columns)).view(rows, groups, size)
    low = padded.amin(dim=2).clamp(max=0)
    high = padded.amax(dim=2).clamp(min=0)
    step = (high - low) / 15
    if not (step <= torch.finfo(torch.float16).max).all():
        raise ValueError("weights that are not finite, or too far apart for a float16 scale")
    scales = round_down(step).clamp(min=SMALLEST_SCALE)
    zeros = (-low / scales.float() + 0.5).floor()
    codes = padded / scales.float().unsqueeze(2) + zeros.unsqueeze(2)
    codes = codes.round().clamp(0, 15).to(torch.uint8)
    return codes.view(rows, -1)[:, :columns].contiguous(), scales, zeros.to(torch.uint8)


def round_down(x: Tensor) -> Tensor:
    """Return the largest float16 that is not above each of these, which are 0 to 65504."""
    half = x.half()
    # Positive floats are in the order of their bits, so one less is the next below.
    return (half.view(torch.int16) - (half.float() > x).short()).view(torch.float16)


def per_column(x: Tensor, columns: int, group_size: int) -> Tensor:
    """Return for each column what its group has, float32 (N, columns)."""
    return x.float().repeat_interleave(min(group_size, columns), dim=1)[:, :columns]


def dequantize(codes: Tensor, scales: Tensor, zeros: Tensor, group_size: int) -> Tensor:
    """Return the float32 weights (N, K) that codes (N, K) stand for, exactly."""
    zeros, scales = (per_column(x, codes.shape[1], group_size) for x in (zeros, scales))
    return codes.float() * scales


def pack(values: Tensor) -> Tensor:
    """Pack values below 16, uint8 (N, K), into bytes (N, ceil(K / 2)), the first one low."""
    even = F.pad(values, (0, values.shape[1] % 2))
    return even[:, 0::2] | even[:, 1::2] << 4


def unpack(packed: Tensor, columns: int) -> Tensor:
    """Return the values, uint8 (N, columns), that `pack` has put into bytes."""
    return torch.cat((packed & 15, packed >> 4), dim=1)[:, :columns]


class Int4Linear(nn.Module):
    """A linear layer that keeps four-bit weights, and dequantises them at each use."""

    def __init__(self, linear: nn.Linear, group_size: int) -> None:
        """Quantise the weight of a layer; copy its bias and mode."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.group_size = group_size
        codes, scales, zeros = quantize(linear.weight, group_size)
        self.register_buffer("packed", pack(codes))
        self.register_buffer("scales", scales)
        # Less one, modulo 16, as GPTQ keeps them.
        self.register_buffer("zeros", pack((zeros - 1) & 15))
        self.bias = copy.deepcopy(linear.bias)
        self.train(linear.training)

    @property
    def weight(self) -> Tensor:
        """Return the weights, float32 (out_features, in_features)."""
        codes = unpack(self.packed, self.in_features)
        zeros = (unpack(self.zeros, self.scales.shape[1]) + 1) & 15
        return dequantize(codes, self.scales, zeros, self.group_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features), in the dtype of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


def quantize_model(model: nn.Module, group_size: int) -> nn.Module:
    """Return a copy with an `Int4Linear` for every `nn.Linear`, unless its weight is tied.

    ValueError for a layer that cannot be quantised, by its name.
    """
    model = copy.deepcopy(model)
    owners = Counter(p for module in model.modules() for p in module._parameters.values())
    made: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and owners[module.weight] == 1:
            try:
                made[module] = Int4Linear(module, group_size)
            except ValueError as error:
                raise ValueError(f"layer {name!r} has {error}") from error
    for parent in list(model.modules()):
        for child, module in parent._modules.items():
            setattr(parent, child, made.get(module, module))
    return made.get(model, model)


class CheckpointError(ValueError):
    """A file that does not fit a model, with the sorted names of all that does not fit."""

    def __init__(self, missing: list[str], left_over: list[str], mismatched: list[str]) -> None:
        """Take what the file lacks, what the model lacks, and what differs in shape or dtype."""
        self.missing, self.left_over = sorted(missing), sorted(left_over)
        self.mismatched = sorted(mismatched)
        lists = (self.missing, self.left_over, self.mismatched)
        super().__init__("missing: {}, left over: {}, mismatched: {}".format(*lists))


def renamed(tensors: Mapping[str, Tensor], renames: Mapping[str, str]) -> dict[str, Tensor]:
    """Replace the longest prefix of each name that is in `renames`, once, where there is one."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        prefix = max(filter(name.startswith, renames), key=len, default="")
        new = renames.get(prefix, "") + name.removeprefix(prefix)
        if new in result:
            raise ValueError(f"two tensors would be called {new}")
        result[new] = tensor
    return result


def names_by_tensor(model: nn.Module) -> dict[Tensor, list[str]]:
    """Return the tensors of the state dict with their names: several, for tied ones."""
    names: dict[Tensor, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(tensor, []).append(name)
    return names


def save(model: nn.Module, path: str | Path, renames: Mapping[str, str]) -> None:
    """Write the tensors of a model, each once, under the first of its names, renamed."""
    # Copies, for a view would take its whole storage along.
    tensors = {names[0]: x.detach().clone() for x, names in names_by_tensor(model).items()}
    torch.save(renamed(tensors, renames), path)


@torch.no_grad()
def load(model: nn.Module, path: str | Path, renames: Mapping[str, str]) -> None:
    """Fill a model in place from a file, whose names are renamed to those of the model.

    A tied tensor may have any of its names in the file, or several with the same values.
    CheckpointError if anything does not fit; the model is then left as it was.
    """
    given = renamed(torch.load(path, weights_only=True), renames)
    missing, mismatched, sources = [], [], {}
    for tensor, names in names_by_tensor(model).items():
        found = {name: given.pop(name) for name in names if name in given}
        if not found:
            missing.append(names[0])
            continue
        sources[tensor] = source = next(iter(found.values()))
        for name, new in found.items():
            fits = new.shape == tensor.shape and new.dtype == tensor.dtype
            if not fits or (new is not source and not torch.equal(new, source)):
                mismatched.append(name)
    if missing or given or mismatched:
        raise CheckpointError(missing, list(given), mismatched)
    state = {n: x.clone() for t, x in sources.items() for n in names_by_tensor(model)[t]}
    model.load_state_dict(state, assign=True)


class TinyLM(nn.Module):
    """Predicts an id from the two before it; the head is tied to the embedding."""

    def __init__(self, vocab_size: int = 29, width: int = 20, hidden: int = 45) -> None:
        """Draw weights from the global generator; the residual branch begins at zero."""
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.mix = nn.Linear(2 * width, width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.head.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.3)
        nn.init.zeros_(self.mlp[2].weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (N, 2) to logits (N, vocab_size)."""
        x = self.mix(self.embed(ids).flatten(1))
        return self.head(x + self.mlp(x))


def loss_of(model: nn.Module, text: Tensor) -> Tensor:
    """Return the mean cross-entropy of the third of three ids, (N, 3)."""
    return F.cross_entropy(model(text[:, :2]), text[:, 2])


@torch.no_grad()
def compare(model: nn.Module, served: nn.Module, text: Tensor) -> dict[str, float]:
    """Return both perplexities, and the errors of the weights in steps of their groups."""
    errors = []
    for name, layer in served.named_modules():
        if isinstance(layer, Int4Linear):
            error = (layer.weight - model.get_submodule(name).weight).abs()
            step = per_column(layer.scales, layer.in_features, layer.group_size)
            errors.append((error / step).flatten())
    return {
        "perplexity": loss_of(model, text).exp().item(),
        "int4_perplexity": loss_of(served, text).exp().item(),
        "max_error": torch.cat(errors).max().item(),
        "mean_error": torch.cat(errors).mean().item(),
    }


def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Train a model, and serve it in four bits, from a file, before every tenth step.

    Yields a line for each file, 13 of them by default; the first is of the untrained model.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, other = TinyLM(), TinyLM()
    table = 2 * torch.randn(2, 29, 29, generator=generator)
    pairs = torch.randint(29, (6000, 2), generator=generator)
    chances = (table[0, pairs[:, 0]] + table[1, pairs[:, 1]]).softmax(dim=1)
    text = torch.cat((pairs, torch.multinomial(chances, 1, generator=generator)), dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(13 if steps is None else steps):
        served = quantize_model(other, group_size=6)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "int4.pt")
            save(quantize_model(model, group_size=6), path, {"": "model.", "mix.": "model.proj."})
            load(served, path, {"model.": "", "model.proj.": "mix."})
            save(served, path, {})
            size = sum(tensor.nbytes for tensor in torch.load(path, weights_only=True).values())
        yield compare(model, served, text[4000:]) | {"bytes": float(size)}
        for batch in torch.randint(4000, (10, 256), generator=generator):
            optimizer.zero_grad()
            loss_of(model, text[batch]).backward()
            optimizer.step()
