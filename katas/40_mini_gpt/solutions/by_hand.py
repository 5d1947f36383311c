"""Style: layers, loss, clipping and draws written out, with one head and one row at a time."""

import math

import torch
from torch import nn


class Dense(nn.Module):
    def __init__(self, into, out, std):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, into) * std)
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x):
        return x.matmul(self.weight.t()) + self.bias


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * self.weight + (
            self.bias
        )


class Table(nn.Module):
    def __init__(self, rows, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, width) * 0.02)


def drop(x, p, training):
    if not training or p == 0:
        return x
    return x * (torch.rand_like(x) >= p) / (1 - p)


class Attention(nn.Module):
    def __init__(self, width, heads, small, p):
        super().__init__()
        self.heads, self.p = heads, p
        self.c_attn = Dense(width, 3 * width, 0.02)
        self.c_proj = Dense(width, width, small)

    def forward(self, x):
        length, width = x.shape[1:]
        size = width // self.heads
        hidden = torch.triu(torch.full((length, length), -torch.inf, dtype=x.dtype), 1)
        qkv = self.c_attn(x)
        outputs = []
        for start in range(0, width, size):
            q, k, v = (qkv[:, :, first + start :][:, :, :size] for first in (0, width, 2 * width))
            scores = torch.einsum("btd,bsd->bts", q, k) * size**-0.5 + hidden
            scores = scores - scores.amax(-1, keepdim=True)
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            outputs.append(drop(weights, self.p, self.training) @ v)
        return drop(self.c_proj(torch.cat(outputs, dim=-1)), self.p, self.training)


class MLP(nn.Module):
    def __init__(self, width, small, p):
        super().__init__()
        self.p = p
        self.c_fc = Dense(width, 4 * width, 0.02)
        self.c_proj = Dense(4 * width, width, small)

    def forward(self, x):
        x = self.c_fc(x)
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
        return drop(self.c_proj(0.5 * x * (1 + inner.tanh())), self.p, self.training)


class Block(nn.Module):
    def __init__(self, width, heads, small, p):
        super().__init__()
        self.ln_1 = Norm(width)
        self.attn = Attention(width, heads, small, p)
        self.ln_2 = Norm(width)
        self.mlp = MLP(width, small, p)

    def forward(self, x):
        middle = self.attn(self.ln_1(x)) + x
        return self.mlp(self.ln_2(middle)) + middle


class Body(nn.Module):
    def __init__(self, vocabulary, block, layers, heads, width, p):
        super().__init__()
        small = 0.02 / math.sqrt(2 * layers)
        self.wte, self.wpe = Table(vocabulary, width), Table(block, width)
        self.h = nn.ModuleList([Block(width, heads, small, p) for _ in range(layers)])
        self.ln_f = Norm(width)


class GPT(nn.Module):
    def __init__(self, vocab_size, block_size, n_layer, n_head, n_embd, dropout=0.0):
        super().__init__()
        self.block, self.p = block_size, dropout
        self.transformer = Body(vocab_size, block_size, n_layer, n_head, n_embd, dropout)
        self.lm_head = nn.Module()
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, ids, targets=None):
        body, length = self.transformer, ids.shape[1]
        if length > self.block:
            raise ValueError("longer than the block")
        x = drop(body.wte.weight[ids] + body.wpe.weight[:length], self.p, self.training)
        for block in body.h:
            x = block(x)
        logits = torch.einsum("btc,vc->btv", body.ln_f(x), self.lm_head.weight)
        if targets is None:
            return logits, None
        right = logits.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        surprise = (torch.logsumexp(logits, -1) - right) * (targets >= 0)
        return logits, surprise.sum() / (targets >= 0).sum()


def configure_optimizer(model, lr, weight_decay):
    return torch.optim.AdamW(
        [
            {"params": [p], "weight_decay": weight_decay if p.dim() > 1 else 0.0}
            for p in model.parameters()
        ],
        lr=lr,
        betas=(0.9, 0.95),
    )


def get_batch(ids, block_size, batch_size, generator):
    inputs, targets = [], []
    for _ in range(batch_size):
        dice = torch.rand((), dtype=torch.float64, generator=generator).item()
        start = int(dice * (len(ids) - block_size))
        inputs.append(ids[start : start + block_size])
        targets.append(ids[start + 1 : start + block_size + 1])
    return torch.stack(inputs), torch.stack(targets)


def train(model, ids, steps, lr, batch_size, seed):
    optimizer = configure_optimizer(model, lr, 0.1)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    generator = torch.Generator().manual_seed(seed)
    model.train()
    warmup = steps // 10
    for step in range(steps):
        rate = lr * (step + 1) / warmup if warmup else lr
        if step >= warmup:
            angle = math.pi * (step - warmup) / (steps - warmup)
            rate = lr * (0.55 + 0.45 * math.cos(angle))
        x, y = get_batch(ids, model.block, batch_size, generator)
        loss = model(x, y)[1]
        grads = torch.autograd.grad(loss, parameters)
        norm = sum(float(grad.double().pow(2).sum()) for grad in grads) ** 0.5
        for group, p, grad in zip(optimizer.param_groups, parameters, grads, strict=True):
            group["lr"] = rate
            p.grad = grad * min(1.0, 1.0 / (norm + 1e-6))
        optimizer.step()
        yield {"loss": loss.item(), "lr": rate, "grad_norm": norm}


def generate(model, ids, max_new_tokens, temperature=1.0, top_k=None, generator=None):
    was = model.training
    model.train(False)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(ids[:, max(0, ids.shape[1] - model.block) :])[0][:, -1, :]
        logits = (logits - logits.amax(-1, keepdim=True)) / temperature
        if top_k is not None and top_k < logits.shape[1]:
            keep = torch.zeros_like(logits).scatter(1, logits.topk(top_k).indices, 1.0)
            logits = logits.where(keep > 0, -torch.inf)
        # The largest of logits with Gumbel noise is a draw from their softmax.
        noise = torch.rand(logits.shape, dtype=torch.float64, generator=generator)
        noise = -torch.log(-torch.log(noise.clamp(1e-300, 1 - 1e-16)))
        ids = torch.cat((ids, (logits + noise).argmax(-1, keepdim=True)), 1)
    model.train(was)
    return ids


def run(seed=0, steps=None):
    text = "Overfit one batch first. If the loss will not fall, there is a bug; "
    text += "if it falls at once, a leak."
    letters = "".join(sorted(set(text)))
    ids = torch.tensor([letters.find(letter) for letter in text])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(len(letters), 40, 2, 4, 32)
    count = 200 if steps is None else steps
    log = train(model, ids, count, 0.02, 12, seed)
    for done in range(1, count + 1):
        numbers = next(log)
        if done % 100 == 0 or done == count:
            sample = generate(model, ids[:8][None], len(ids) - 8, 1.0, 1, torch.Generator())[0]
            said = "".join(letters[token] for token in sample)
            right = 0
            while right < len(text) and said[right] == text[right]:
                right += 1
            numbers["recited"] = right / len(text)
        yield numbers
