"""Tensors and masks: one tagged character each, padding by pad_sequence, torch's own loader."""

import dataclasses
import itertools

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

NAMES = "<|bos|> <|start|> <|header|> <|end|> <|eot|>".split()
SPECIALS = {name: 256 + place for place, name in enumerate(NAMES)}
BOS, PAD, VOCAB_SIZE, IGNORE = SPECIALS["<|bos|>"], SPECIALS["<|end|>"], 261, -100
PAIRS = ["".join(p) for p in itertools.product("abcdefghijkl", "0123456789")]
HELD_OUT = tuple(itertools.islice(PAIRS, 0, None, 7))
BACK = {token: name for name, token in SPECIALS.items()}


@dataclasses.dataclass
class Template:
    opening: str
    closing: str
    end: str
    after: str
    writes_bos: bool
    trims: bool


CHATML = Template("<|start|>", "\n", "<|end|>", "\n", False, False)
LLAMA = Template("<|start|>", "<|header|>\n\n", "<|eot|>", "", True, True)


@dataclasses.dataclass
class Example:
    ids: list
    labels: list


@dataclasses.dataclass
class Batch:
    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor


def encode(text, specials=False):
    data = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    if not specials:
        return data.tolist()
    keep = np.ones(len(data), bool)
    raw = bytes(data.astype(np.uint8))
    for name, token in SPECIALS.items():
        at = raw.find(name.encode())
        while at >= 0:
            data[at] = token
            keep[at + 1 : at + len(name)] = False
            at = raw.find(name.encode(), at + 1)
    return data[keep].tolist()


def decode(ids):
    parts = []
    for special, group in itertools.groupby(ids, lambda i: i > 255):
        tokens = list(group)
        parts += [BACK[i] for i in tokens] if special else [bytes(tokens).decode(errors="replace")]
    return "".join(parts)


def _turns(chat, template):
    for message in chat:
        text = message["content"]
        text = text.strip() if template.trims else text
        yield message["role"], template.opening + message["role"] + template.closing, text


def render(chat, template, add_generation_prompt=False):
    turns = [h + text + template.end + template.after for _, h, text in _turns(chat, template)]
    prompt = [template.opening, "assistant", template.closing] * add_generation_prompt
    return "<|bos|>" * template.writes_bos + "".join(turns + prompt)


def tokenize(chat, template, add_generation_prompt=False):
    parts = [(encode("<|bos|>", True), 0)]
    for role, header, text in _turns(chat, template):
        parts.append((encode(header, True), 0))
        parts.append((encode(text) + encode(template.end, True), role == "assistant"))
        parts.append((encode(template.after, True), 0))
    if add_generation_prompt:
        parts.append((encode(template.opening + "assistant" + template.closing, True), 0))
    ids = np.concatenate([np.array(tokens, int) for tokens, _ in parts])
    learned = np.concatenate([np.full(len(tokens), bool(flag)) for tokens, flag in parts])
    return Example(ids.tolist(), np.where(learned, ids, IGNORE).tolist())


def truncate(example, max_length):
    cut = Example(list(example.ids)[:max_length], list(example.labels)[:max_length])
    return None if set(cut.labels) == {IGNORE} else cut


def pack(examples, capacity):
    sizes = np.zeros(len(examples), int)
    rows = [[] for _ in examples]
    for example in examples:
        row = int(np.argmax(sizes + len(example.ids) <= capacity))
        sizes[row] += len(example.ids)
        rows[row].append(example)
    return [row for row in rows if row]


def collate(rows, pad_id=PAD, side="right"):
    def column(values, filler):
        tensors = [torch.cat([torch.as_tensor(v) for v in row]) for row in values]
        if side == "right":
            return pad_sequence(tensors, True, filler)
        return pad_sequence([t.flip(0) for t in tensors], True, filler).flip(1)

    return Batch(
        column([[e.ids for e in row] for row in rows], pad_id),
        column([[e.labels for e in row] for row in rows], IGNORE),
        column([[torch.arange(len(e.ids)) for e in row] for row in rows], 0),
        column([[torch.full((len(e.ids),), i + 1) for i, e in enumerate(r)] for r in rows], 0),
    )


def attention_mask(segments):
    width = segments.shape[1]
    before = torch.arange(width)[:, None] >= torch.arange(width)
    return before & (segments.unsqueeze(2) - segments.unsqueeze(1)).eq(0)


class TinyLM(nn.Module):
    def __init__(self, dim=64, heads=4, max_positions=128):
        super().__init__()
        self.heads = heads
        self.token, self.position = nn.Embedding(VOCAB_SIZE, dim), nn.Embedding(max_positions, dim)
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.hidden = nn.Sequential(nn.Linear(dim, 3 * dim), nn.SiLU(), nn.Linear(3 * dim, dim))
        self.out = nn.Linear(dim, VOCAB_SIZE)

    def forward(self, ids, positions, segments):
        x = self.token(ids) + self.position(positions)
        hidden = ~attention_mask(segments).repeat_interleave(self.heads, 0)
        y = self.norm(x)
        x = x + self.attention(y, y, y, attn_mask=hidden, need_weights=False)[0]
        return self.out(x + self.hidden(x))


def target_loss(logits, labels):
    labels = labels[:, 1:]
    real = labels != IGNORE
    chosen = logits[:, :-1].float()[real]
    right = chosen.gather(1, labels[real][:, None])[:, 0]
    losses = chosen.logsumexp(1) - right
    return losses.mean() if len(losses) else logits.float().sum() * 0


def train(model, rows, steps, batch_size, lr, generator):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    loader = DataLoader(rows, batch_size, shuffle=True, generator=generator, collate_fn=collate)
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for batch in itertools.islice(epochs, steps):
        model.train()
        optimizer.zero_grad(set_to_none=False)
        loss = target_loss(model(batch.ids, batch.positions, batch.segments), batch.labels)
        loss.backward()
        optimizer.step()
        targets = (batch.labels[:, 1:] != IGNORE).sum()
        fill = batch.segments.ne(0).double().mean()
        yield {"loss": loss.item(), "targets": float(targets), "fill": float(fill)}


def answers(model, prompts, template, max_tokens, batch_size=64):
    end, out = SPECIALS[template.end], []
    model.eval()
    for start in range(0, len(prompts), batch_size):
        rows = [tokenize(p, template, True) for p in prompts[start : start + batch_size]]
        said = [[] for _ in rows]
        open_rows = list(range(len(rows)))
        for _ in range(max_tokens):
            if not open_rows:
                break
            grown = [
                [Example(rows[i].ids + said[i], rows[i].labels + [IGNORE] * len(said[i]))]
                for i in open_rows
            ]
            batch = collate(grown, 0)
            last = batch.segments.sum(1) - 1
            with torch.no_grad():
                logits = model(batch.ids, batch.positions, batch.segments)
            tokens = logits[torch.arange(len(grown)), last].argmax(1).tolist()
            still = []
            for i, token in zip(open_rows, tokens, strict=True):
                if token != end:
                    said[i].append(token)
                    still.append(i)
            open_rows = still
        out += map(decode, said)
    return out


def draw_chats(days, generator):
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    known = sorted(set(PAIRS) - set(HELD_OUT))
    chats = []
    for _ in range(days):
        ticket = f"{rng.integers(100):02}"
        for _ in range(6):
            turns = [("user", "ticket"), ("assistant", ticket)]
            if rng.random() < 0.5:
                turns = []
                for pair in rng.choice(known, rng.integers(1, 3)).tolist():
                    turns.append(("user", "?" * 120 * int(rng.random() < 1 / 8) + pair))
                    turns.append(("assistant", pair.upper()))
            if rng.random() < 1 / 3:
                turns.insert(0, ("system", "Be brief."))
            chats.append([{"role": role, "content": content} for role, content in turns])
    return chats


def run(seed=0, steps=None):
    steps = 200 if steps is None else steps
    generator = torch.Generator().manual_seed(seed + 1000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyLM()
    cut = [truncate(tokenize(chat, CHATML), 128) for chat in draw_chats(60, generator)]
    rows = pack([example for example in cut if example], 128)
    asked = [[{"role": "user", "content": pair}] for pair in HELD_OUT]
    asked += [[{"role": "system", "content": "Be brief."}, *chat] for chat in asked]
    for step, line in enumerate(train(model, rows, steps, 8, 8e-3, generator)):
        if step % 20 == 19 or step == steps - 1:
            said = answers(model, asked, CHATML, 4)
            line["exact"] = float(
                np.mean([a == c[-1]["content"].upper() for a, c in zip(said, asked, strict=True)])
            )
        yield line
