"""Style: PyTorch's fused attention, windows as a view, LambdaLR, and draws by inverse sampling."""

import math

import torch
import torch.nn.functional as F
from torch import nn

TEXT = (
    "Overfit one batch first. If the loss will not fall, there is a bug; "
    "if it falls at once, a leak."
)


def linear(into, out, std=0.02, bias=True):
    layer = nn.Linear(into, out, bias=bias)
    nn.init.normal_(layer.weight, mean=0.0, std=std)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def embedding(count, width):
    return nn.Embedding(count, width, _weight=0.02 * torch.randn(count, width))


class Block(nn.Module):
    def __init__(self, layers, heads, width, p):
        super().__init__()
        self.heads, self.p = heads, p
        small = 0.02 * (2 * layers) ** -0.5
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict(
            {"c_attn": linear(width, 3 * width), "c_proj": linear(width, width, small)}
        )
        self.mlp = nn.ModuleDict(
            {"c_fc": linear(width, 4 * width), "c_proj": linear(4 * width, width, small)}
        )

    def forward(self, x):
        p = self.p if self.training else 0.0
        q, k, v = self.attn["c_attn"](self.ln_1(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed = F.scaled_dot_product_attention(
            *(part.transpose(1, 2) for part in (q, k, v)), dropout_p=p, is_causal=True
        )
        x = x + F.dropout(self.attn["c_proj"](mixed.transpose(1, 2).flatten(2)), p)
        hidden = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + F.dropout(self.mlp["c_proj"](hidden), p)


class GPT(nn.Module):
    def __init__(self, vocab_size, block_size, n_layer, n_head, n_embd, dropout=0.0):
        super().__init__()
        self.block_size, self.p = block_size, dropout
        blocks = [Block(n_layer, n_head, n_embd, dropout) for _ in range(n_layer)]
        self.transformer = nn.ModuleDict()
        self.transformer["wte"] = embedding(vocab_size, n_embd)
        self.transformer["wpe"] = embedding(block_size, n_embd)
        self.transformer["h"] = nn.Sequential(*blocks)
        self.transformer["ln_f"] = nn.LayerNorm(n_embd)
        self.lm_head = linear(n_embd, vocab_size, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, ids, targets=None):
        length = ids.size(-1)
        if length > self.block_size:
            raise ValueError(f"too long: {length} > {self.block_size}")
        x = self.transformer["wte"](ids) + self.transformer["wpe"].weight[:length]
        x = F.dropout(x, self.p, self.training)
        x = self.transformer["ln_f"](self.transformer["h"](x))
        logits = x @ self.lm_head.weight.T
        if targets is None:
            return logits, None
        counts = targets != -1
        chosen = logits[counts].log_softmax(-1).gather(-1, targets[counts][:, None])
        return logits, -chosen.mean()


def configure_optimizer(model, lr, weight_decay):
    decayed, rest = [], []
    for name, p in model.named_parameters():
        plain = name.endswith("bias") or ".ln_" in name
        (rest if plain else decayed).append(p)
    groups = [{"params": rest}, {"params": decayed, "weight_decay": weight_decay}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)


def get_batch(ids, block_size, batch_size, generator):
    windows = ids.unfold(0, block_size + 1, 1)
    rows = windows[torch.randint(0, windows.size(0), (batch_size,), generator=generator)]
    return rows[:, :-1].clone(), rows[:, 1:].clone()


def share(step, steps):
    warmup = steps // 10
    if step < warmup:
        return (step + 1) / warmup
    left = 1 - (step - warmup) / (steps - warmup)
    return 0.1 + 0.9 * math.sin(math.pi / 2 * left) ** 2


def train(model, ids, steps, lr, batch_size, seed):
    optimizer = configure_optimizer(model, lr, 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step, max(steps, 1)))
    generator = torch.Generator()
    generator.manual_seed(seed)
    model.train()
    for _ in range(steps):
        rate = schedule.get_last_lr()[0]
        inputs, targets = get_batch(ids, model.block_size, batch_size, generator)
        loss = model(inputs, targets=targets)[1]
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(list(model.parameters()), 1.0)
        optimizer.step()
        schedule.step()
        yield {"loss": loss.item(), "lr": float(rate), "grad_norm": norm.item()}


def generate(model, ids, max_new_tokens, temperature=1.0, top_k=None, generator=None):
    mode = model.training
    model.eval()
    rows, length = ids.shape
    text = torch.empty(rows, length + max_new_tokens, dtype=ids.dtype)
    text[:, :length] = ids
    with torch.no_grad():
        for end in range(length, length + max_new_tokens):
            logits = model(text[:, max(0, end - model.block_size) : end])[0][:, -1]
            best, order = (logits / temperature).sort(dim=-1, descending=True)
            total = best[:, :top_k].softmax(-1).cumsum(-1)
            # Less than the last total, whatever it was rounded to.
            dice = torch.rand(rows, 1, dtype=total.dtype, generator=generator) * total[:, -1:]
            place = (total <= dice).sum(-1, keepdim=True).clamp(max=total.size(-1) - 1)
            text[:, end] = order.gather(1, place)[:, 0]
    model.train(mode)
    return text


def run(seed=0, steps=None):
    steps = 200 if steps is None else steps
    alphabet = {letter: number for number, letter in enumerate(sorted(set(TEXT)))}
    ids = torch.tensor([alphabet[letter] for letter in TEXT])
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    model = GPT(len(alphabet), 40, 2, 4, 32)
    torch.set_rng_state(before)
    for number, row in enumerate(train(model, ids, steps, 0.02, 12, seed), start=1):
        if number == steps or number % 100 == 0:
            dice = torch.Generator().manual_seed(0)
            text = generate(model, ids[None, :8], len(ids) - 8, top_k=1, generator=dice)
            wrong = [i for i, ok in enumerate((text[0] == ids).tolist()) if not ok]
            row = {**row, "recited": (wrong[0] if wrong else len(ids)) / len(ids)}
        yield row
