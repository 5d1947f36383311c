"""Style: torch's operators on lists of tensors, for all parameters of a kind at once."""

import itertools
import math

import torch


class AdamW:
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        params = list(params)
        if not params:
            raise ValueError("AdamW needs parameters")
        if torch.is_tensor(params[0]):
            params = [{"params": params}]
        self.param_groups = []
        for group in params:
            group = dict(group, params=list(group["params"]))
            group.setdefault("lr", lr)
            group.setdefault("betas", betas)
            group.setdefault("eps", eps)
            group.setdefault("weight_decay", weight_decay)
            wrong = [name for name in ("lr", "eps", "weight_decay") if not group[name] >= 0]
            wrong += ["betas"] * any(not 0 <= beta < 1 for beta in group["betas"])
            if wrong:
                raise ValueError(f"out of range: {wrong}")
            self.param_groups.append(group)
        if not self._all():
            raise ValueError("AdamW needs parameters")
        if len({id(p) for p in self._all()}) != len(self._all()):
            raise ValueError("a parameter twice")
        self.steps, self.means, self.squares = {}, {}, {}

    def _all(self):
        return list(itertools.chain.from_iterable(group["params"] for group in self.param_groups))

    def zero_grad(self):
        for p in self._all():
            p.grad = None

    def step(self):
        with torch.no_grad():
            for group in self.param_groups:
                given = [p for p in group["params"] if p.grad is not None]
                for p in given:
                    if id(p) not in self.steps:
                        self.steps[id(p)] = 0
                        self.means[id(p)] = torch.zeros(p.shape, dtype=working(p))
                        self.squares[id(p)] = torch.zeros(p.shape, dtype=working(p))
                    self.steps[id(p)] += 1
                for dtype in (torch.float32, torch.float64):
                    chosen = [p for p in given if working(p) == dtype]
                    if chosen:
                        self._step(chosen, dtype, group)

    def _step(self, params, dtype, group):
        beta1, beta2 = group["betas"]
        grads = [p.grad.to(dtype) for p in params]
        means = [self.means[id(p)] for p in params]
        squares = [self.squares[id(p)] for p in params]
        counts = [self.steps[id(p)] for p in params]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [math.sqrt(1 - beta2**count) for count in counts])
        torch._foreach_add_(roots, group["eps"])
        values = torch._foreach_mul(
            [p.to(dtype) for p in params], 1 - group["lr"] * group["weight_decay"]
        )
        scales = [-group["lr"] / (1 - beta1**count) for count in counts]
        torch._foreach_addcdiv_(values, means, roots, scales)
        torch._foreach_copy_(params, values)

    def state_dict(self):
        groups, state, number = [], {}, 0
        for group in self.param_groups:
            numbers = []
            for p in group["params"]:
                if id(p) in self.steps:
                    state[number] = {
                        "step": float(self.steps[id(p)]),
                        "exp_avg": self.means[id(p)].clone(),
                        "exp_avg_sq": self.squares[id(p)].clone(),
                    }
                numbers.append(number)
                number += 1
            groups.append({**group, "params": numbers})
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict):
        pairs = list(itertools.zip_longest(self.param_groups, state_dict["param_groups"]))
        for mine, saved in pairs:
            if mine is None or saved is None or len(mine["params"]) != len(saved["params"]):
                raise ValueError("the groups differ")
        self.steps, self.means, self.squares = {}, {}, {}
        for mine, saved in pairs:
            for name in ("lr", "betas", "eps", "weight_decay"):
                mine[name] = saved[name]
            for p, number in zip(mine["params"], saved["params"], strict=True):
                if number in state_dict["state"]:
                    entry = state_dict["state"][number]
                    self.steps[id(p)] = int(entry["step"])
                    self.means[id(p)] = entry["exp_avg"].clone().to(working(p))
                    self.squares[id(p)] = entry["exp_avg_sq"].clone().to(working(p))


def working(tensor):
    return torch.promote_types(tensor.dtype, torch.float32)


def clip_grad_norm_(params, max_norm):
    grads = [grad for grad in (p.grad for p in params) if grad is not None]
    with torch.no_grad():
        total = torch.zeros((), dtype=torch.float32)
        for grad in grads:
            wide = grad.to(working(grad))
            total = total + (wide * wide).sum()
        if any(grad.dtype == torch.float64 for grad in grads):
            total = total.double()
        norm = total.sqrt()
        factor = min(1.0, max_norm / (norm.item() + 1e-6))
        for grad in grads:
            grad[...] = (grad.to(working(grad)) * factor).to(grad.dtype)
        return norm


def lr_at(step, max_lr, min_lr, warmup, total):
    if step >= total:
        return float(min_lr)
    if step < warmup:
        return (1 + step) * (max_lr / warmup)
    angle = math.pi * (step - warmup) / (total - warmup)
    return (max_lr + min_lr) / 2 + (max_lr - min_lr) / 2 * math.cos(angle)
