"""Style: functional, with NumPy in float64 or float32 for all arithmetic and state by position."""

import math

import numpy as np
import torch

OPTIONS = ("lr", "betas", "eps", "weight_decay")


def array(tensor):
    """A copy of a tensor, in the precision to compute in."""
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().to(dtype).numpy().copy()


def write(tensor, values):
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(values)).reshape(tensor.shape))


def updated(value, grad, m, v, t, lr, betas, eps, weight_decay):
    b1, b2 = betas
    m = b1 * m + (1 - b1) * grad
    v = b2 * v + (1 - b2) * grad**2
    step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    return value - lr * weight_decay * value - lr * step, m, v


class AdamW:
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        given = dict(zip(OPTIONS, (lr, betas, eps, weight_decay), strict=True))
        params = list(params)
        self.param_groups = []
        for group in params if params and isinstance(params[0], dict) else [{"params": params}]:
            own = {"params": [*group["params"]]}
            for name in OPTIONS:
                own[name] = group.get(name, given[name])
            b1, b2 = own["betas"]
            for name in ("lr", "eps", "weight_decay"):
                if own[name] < 0:
                    raise ValueError(f"bad {name}")
            if min(b1, b2) < 0 or max(b1, b2) >= 1:
                raise ValueError("bad betas")
            self.param_groups.append(own)
        seen = [id(p) for p, _ in self.all()]
        if not seen or len(seen) != len(set(seen)):
            raise ValueError("there must be parameters, and each once")
        self.memory = [None] * len(seen)

    def all(self):
        return [(p, group) for group in self.param_groups for p in group["params"]]

    def zero_grad(self):
        for p, _ in self.all():
            p.grad = None

    def step(self):
        for number, (p, group) in enumerate(self.all()):
            if p.grad is None:
                continue
            value, grad = array(p), array(p.grad)
            t, m, v = self.memory[number] or (0, np.zeros_like(value), np.zeros_like(value))
            options = {name: group[name] for name in OPTIONS}
            value, m, v = updated(value, grad, m, v, t + 1, **options)
            self.memory[number] = (t + 1, m, v)
            write(p, value)

    def state_dict(self):
        state = {}
        for number, entry in enumerate(self.memory):
            if entry is not None:
                t, m, v = entry
                state[number] = {
                    "step": torch.tensor(t),
                    "exp_avg": torch.tensor(m),
                    "exp_avg_sq": torch.tensor(v),
                }
        groups, first = [], 0
        for group in self.param_groups:
            last = first + len(group["params"])
            groups.append({**group, "params": list(range(first, last))})
            first = last
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict):
        saved = state_dict["param_groups"]
        if [len(g["params"]) for g in saved] != [len(g["params"]) for g in self.param_groups]:
            raise ValueError("other groups")
        for group, other in zip(self.param_groups, saved, strict=True):
            for name in OPTIONS:
                group[name] = other[name]
        for number, (p, _) in enumerate(self.all()):
            entry = state_dict["state"].get(number)
            if entry is None:
                self.memory[number] = None
                continue
            dtype = array(p).dtype
            m, v = (
                entry[name].double().numpy().astype(dtype) for name in ("exp_avg", "exp_avg_sq")
            )
            self.memory[number] = (round(float(entry["step"])), m, v)


def clip_grad_norm_(params, max_norm):
    grads = [p.grad for p in params if p.grad is not None]
    squares = [float((array(g).astype(np.float64) ** 2).sum()) for g in grads]
    norm = math.sqrt(math.fsum(squares))
    factor = max_norm / (norm + 1e-6)
    if factor < 1:
        for g in grads:
            write(g, array(g) * factor)
    wide = any(g.dtype == torch.float64 for g in grads)
    return torch.tensor(norm, dtype=torch.float64 if wide else torch.float32)


def lr_at(step, max_lr, min_lr, warmup, total):
    if step in range(warmup):
        return (step + 1) / warmup * max_lr
    left = max(0, total - step) / max(1, total - warmup)
    return min_lr + (max_lr - min_lr) * math.sin(math.pi / 2 * left) ** 2
