"""Plain Python: loops over turns, rows and tokens; answers one prompt at a time."""

import math

import torch
from torch import nn

SPECIALS = {"<|bos|>": 256, "<|start|>": 257, "<|header|>": 258, "<|end|>": 259, "<|eot|>": 260}
BOS, PAD, VOCAB_SIZE, IGNORE = 256, 259, 261, -100
PAIRS = [a + b for a in "abcdefghijkl" for b in "0123456789"]
HELD_OUT = [PAIRS[i] for i in range(0, len(PAIRS), 7)]


class Template:
    def __init__(self, *, opening, closing, end, after, writes_bos, trims):
        self.opening, self.closing, self.end, self.after = opening, closing, end, after
        self.writes_bos, self.trims = writes_bos, trims

    def content(self, message):
        return message["content"].strip() if self.trims else message["content"]


CHATML = Template(
    opening="<|start|>", closing="\n", end="<|end|>", after="\n", writes_bos=False, trims=False
)
LLAMA = Template(
    opening="<|start|>",
    closing="<|header|>\n\n",
    end="<|eot|>",
    after="",
    writes_bos=True,
    trims=True,
)


class Example:
    def __init__(self, ids, labels):
        self.ids, self.labels = ids, labels


class Batch:
    def __init__(self, ids, labels, positions, segments):
        self.ids, self.labels, self.positions, self.segments = ids, labels, positions, segments


def encode(text, specials=False):
    out = []
    while text:
        if specials:
            for name in SPECIALS:
                if text.startswith(name):
                    out.append(SPECIALS[name])
                    text = text[len(name) :]
                    break
            else:
                out.extend(text[0].encode("utf-8"))
                text = text[1:]
        else:
            out.extend(text.encode("utf-8"))
            text = ""
    return out


def decode(ids):
    text, waiting = "", bytearray()
    for i in ids:
        if i < 256:
            waiting.append(i)
            continue
        text += waiting.decode("utf-8", "replace")
        waiting = bytearray()
        for name, token in SPECIALS.items():
            if token == i:
                text += name
    return text + waiting.decode("utf-8", "replace")


def render(chat, template, add_generation_prompt=False):
    t = template
    out = []
    if t.writes_bos:
        out.append("<|bos|>")
    for m in chat:
        out += [t.opening, m["role"], t.closing, t.content(m), t.end, t.after]
    if add_generation_prompt:
        out += [t.opening, "assistant", t.closing]
    return "".join(out)


def tokenize(chat, template, add_generation_prompt=False):
    t = template
    ids, labels = [256], [-100]
    for m in chat:
        header = encode(t.opening + m["role"] + t.closing, True)
        body = [*encode(t.content(m)), SPECIALS[t.end]]
        tail = encode(t.after, True)
        ids += header + body + tail
        labels += [-100] * len(header)
        labels += body if m["role"] == "assistant" else [-100] * len(body)
        labels += [-100] * len(tail)
    if add_generation_prompt:
        header = encode(t.opening + "assistant" + t.closing, True)
        ids += header
        labels += [-100] * len(header)
    return Example(ids, labels)


def truncate(example, max_length):
    labels = example.labels[:max_length]
    for label in labels:
        if label >= 0:
            return Example(example.ids[:max_length], labels)
    return None


def pack(examples, capacity):
    rows, used = [], []
    for e in examples:
        n = len(e.ids)
        for i in range(len(rows)):
            if used[i] + n <= capacity:
                rows[i].append(e)
                used[i] += n
                break
        else:
            rows.append([e])
            used.append(n)
    return rows


def collate(rows, pad_id=PAD, side="right"):
    width = 0
    for row in rows:
        width = max(width, sum(len(e.ids) for e in row))
    ids, labels, positions, segments = [], [], [], []
    for row in rows:
        i, y, p, s = [], [], [], []
        for number in range(len(row)):
            for place in range(len(row[number].ids)):
                i.append(row[number].ids[place])
                y.append(row[number].labels[place])
                p.append(place)
                s.append(number + 1)
        while len(i) < width:
            at = 0 if side == "left" else len(i)
            i.insert(at, pad_id)
            y.insert(at, -100)
            p.insert(at, 0)
            s.insert(at, 0)
        ids.append(i)
        labels.append(y)
        positions.append(p)
        segments.append(s)
    return Batch(*(torch.tensor(x) for x in (ids, labels, positions, segments)))


def attention_mask(segments):
    t = segments.shape[1]
    later = torch.ones(t, t, dtype=torch.bool).triu(1)
    return torch.eq(segments.view(-1, t, 1), segments.view(-1, 1, t)) & ~later


class TinyLM(nn.Module):
    def __init__(self, dim=64, heads=4, max_positions=128):
        super().__init__()
        self.h = heads
        self.wte, self.wpe = nn.Embedding(VOCAB_SIZE, dim), nn.Embedding(max_positions, dim)
        self.ln = nn.LayerNorm(dim)
        self.wq, self.wk, self.wv = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.wo = nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.lm_head = nn.Linear(dim, VOCAB_SIZE)

    def forward(self, ids, positions, segments):
        x = self.wte(ids) + self.wpe(positions)
        b, t, d = x.shape
        y = self.ln(x)
        q, k, v = (w(y).view(b, t, self.h, d // self.h) for w in (self.wq, self.wk, self.wv))
        score = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(d // self.h)
        score = score.masked_fill(~attention_mask(segments).unsqueeze(1), float("-inf"))
        y = torch.einsum("bhqk,bkhd->bqhd", score.softmax(-1), v).reshape(b, t, d)
        x = x + self.wo(y)
        return self.lm_head(x + self.down(torch.relu(self.up(x))))


def target_loss(logits, labels):
    logp = logits.float().log_softmax(-1)
    rows, places = torch.nonzero(labels[:, 1:] != -100, as_tuple=True)
    if len(rows) == 0:
        return (logp * 0).sum()
    return -logp[rows, places, labels[rows, places + 1]].sum() / len(rows)


def train(model, rows, steps, batch_size, lr, generator):
    adam = torch.optim.Adam(model.parameters(), lr)
    queue = torch.zeros(0, dtype=torch.int64)
    for _ in range(steps):
        if len(queue) == 0:
            queue = torch.randperm(len(rows), generator=generator)
        batch = collate([rows[int(i)] for i in queue[:batch_size]])
        queue = queue[batch_size:]
        model.train()
        for p in model.parameters():
            p.grad = None
        loss = target_loss(model(batch.ids, batch.positions, batch.segments), batch.labels)
        loss.backward()
        adam.step()
        yield {
            "loss": float(loss.detach()),
            "targets": float((batch.labels[:, 1:] >= 0).sum()),
            "fill": float((batch.segments > 0).sum()) / batch.segments.numel(),
        }


def answers(model, prompts, template, max_tokens, batch_size=64):
    model.eval()
    out = []
    for chat in prompts:
        ids, said = list(tokenize(chat, template, True).ids), []
        while len(said) < max_tokens:
            x = torch.tensor([ids])
            with torch.inference_mode():
                token = int(
                    model(x, torch.arange(len(ids))[None], torch.ones_like(x))[0, -1].argmax()
                )
            if token == SPECIALS[template.end]:
                break
            said.append(token)
            ids.append(token)
        out.append(decode(said))
    return out


def draw_chats(days, generator):
    def below(n):
        return int(torch.randint(0, n, (1,), generator=generator))

    known = [p for p in PAIRS if p not in HELD_OUT]
    out = []
    for _ in range(days):
        ticket = f"{below(100):02d}"
        for _ in range(6):
            chat = []
            if below(3) == 0:
                chat.append({"role": "system", "content": "Be brief."})
            if below(2):
                chat.append({"role": "user", "content": "ticket"})
                chat.append({"role": "assistant", "content": ticket})
            else:
                for _ in range(1 + below(2)):
                    pair = known[below(len(known))]
                    paste = "?" * 120 if below(8) == 0 else ""
                    chat.append({"role": "user", "content": paste + pair})
                    chat.append({"role": "assistant", "content": pair.upper()})
            out.append(chat)
    return out


def run(seed=0, steps=None):
    if steps is None:
        steps = 200
    generator = torch.Generator()
    generator.manual_seed(seed)
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    model = TinyLM()
    torch.set_rng_state(state)
    examples = []
    for chat in draw_chats(60, generator):
        example = truncate(tokenize(chat, CHATML), 128)
        if example is not None:
            examples.append(example)
    step = 0
    for line in train(model, pack(examples, 128), steps, 8, 0.008, generator):
        step += 1
        if step % 20 == 0 or step == steps:
            right = 0
            for pair in HELD_OUT:
                question = {"role": "user", "content": pair}
                asked = [[question], [{"role": "system", "content": "Be brief."}, question]]
                right += sum(a == pair.upper() for a in answers(model, asked, CHATML, 4))
            line["exact"] = right / (2 * len(HELD_OUT))
        yield line
