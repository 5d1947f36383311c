"""As much as possible by PyTorch's own operators; answers are judged by teacher forcing."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

LETTERS = "abcdefghij"
PAD, BOS, EOS, REVERSE, SORT = 0, 1, 2, 3, 4
VOCAB_SIZE = 15
TOKEN = {letter: token for token, letter in enumerate(LETTERS, 5)}


def encode_example(task, text):
    source = [TOKEN[letter] for letter in text]
    answer = sorted(source) if task == SORT else source[::-1]
    return [*source, task], answer


def draw_examples(count, lengths, generator):
    examples = []
    for _ in range(count):
        task = (REVERSE, SORT)[torch.randint(2, (), generator=generator)]
        size = lengths[torch.randint(len(lengths), (), generator=generator)]
        chosen = torch.randperm(10, generator=generator)[:size].tolist()
        examples.append(encode_example(task, "".join(LETTERS[i] for i in chosen)))
    return examples


def collate(examples):
    columns = itertools.zip_longest(*(source for source, _ in examples), fillvalue=PAD)
    source = torch.tensor(list(columns)).T.contiguous()
    longest = max(len(answer) for _, answer in examples) + 1
    inputs = torch.full((len(examples), longest), PAD)
    labels = inputs.clone()
    inputs[:, 0] = BOS
    for i, (_, answer) in enumerate(examples):
        end = len(answer)
        inputs[i, 1 : end + 1] = torch.tensor(answer, dtype=torch.int64)
        labels[i, :end] = inputs[i, 1 : end + 1]
        labels[i, end] = EOS
    return source, inputs, labels


class MultiHead(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.out = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(width, width)

    def forward(self, x, memory, mask=None, causal=False):
        def split(y):
            return y.view(*y.shape[:2], self.heads, -1).permute(0, 2, 1, 3)

        q, k, v = split(self.query(x)), split(self.key(memory)), split(self.value(memory))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(mixed.permute(0, 2, 1, 3).reshape(x.shape))


class Encoding(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.norm_1, self.norm_3 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = MultiHead(width, heads)
        self.ff = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, x, mask):
        y = self.norm_1(x)
        x = x + self.attention(y, y, mask)
        return x + self.ff(self.norm_3(x))


class Decoding(Encoding):
    def __init__(self, width, heads, hidden):
        super().__init__(width, heads, hidden)
        self.norm_2 = nn.LayerNorm(width)
        self.cross_attention = MultiHead(width, heads)

    def forward(self, x, memory, mask):
        y = self.norm_1(x)
        x = x + self.attention(y, y, causal=True)
        x = x + self.cross_attention(self.norm_2(x), memory, mask)
        return x + self.ff(self.norm_3(x))


class Seq2Seq(nn.Module):
    def __init__(self, vocab_size, d_model, n_heads, n_layers, d_ff):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.embedding.weight.data /= d_model**0.5
        self.encoder = nn.ModuleList([Encoding(d_model, n_heads, d_ff) for _ in range(n_layers)])
        self.decoder = nn.ModuleList([Decoding(d_model, n_heads, d_ff) for _ in range(n_layers)])
        self.encoder_norm = nn.LayerNorm(d_model)
        self.decoder_norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size)
        column = torch.arange(d_model)
        angle = torch.arange(64.0).outer(100.0 ** (-(column // 2 * 2) / d_model))
        table = torch.where(column % 2 == 0, angle.sin(), angle.cos())
        self.register_buffer("positions", table, persistent=False)

    def _embed(self, tokens):
        x = self.embedding(tokens)
        return x * x.shape[-1] ** 0.5 + self.positions[: tokens.shape[1]]

    def encode(self, source):
        x, mask = self._embed(source), source.ne(PAD)[:, None, None, :]
        for layer in self.encoder:
            x = layer(x, mask)
        return self.encoder_norm(x)

    def decode(self, decoder_input, memory, source):
        x, mask = self._embed(decoder_input), source.ne(PAD)[:, None, None, :]
        for layer in self.decoder:
            x = layer(x, memory, mask)
        return self.head(self.decoder_norm(x))

    def forward(self, source, decoder_input):
        return self.decode(decoder_input, self.encode(source), source)


def sequence_loss(logits, labels, smoothing=0.0):
    return F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=PAD, label_smoothing=smoothing
    )


def learning_rate(step, steps, warmup, peak):
    if step + 1 <= warmup:
        rising = (step + 1) / warmup
        if steps < warmup:
            return peak * rising
        return peak * min(rising, (steps - step) / (steps - warmup + 1))
    return peak * (steps - step) / (steps - warmup + 1)


def train_step(model, optimizer, batch, smoothing):
    source, inputs, labels = batch
    model.zero_grad()
    loss = sequence_loss(model(source, inputs), labels, smoothing)
    loss.backward()
    optimizer.step()
    return loss.detach()


def greedy_decode(model, source, max_new_tokens):
    out = torch.full((len(source), max_new_tokens), PAD)
    open_rows = torch.arange(len(source))
    with torch.no_grad():
        memory = model.encode(source)
        tokens = torch.full((len(source), 1), BOS)
        for place in range(max_new_tokens):
            logits = model.decode(tokens, memory[open_rows], source[open_rows])
            best = logits[:, -1, 1:].argmax(dim=1) + 1
            out[open_rows, place] = best
            going = best != EOS
            open_rows = open_rows[going]
            tokens = torch.cat([tokens, best[:, None]], dim=1)[going]
            if not len(open_rows):
                break
    return out


@torch.no_grad()
def evaluate(model, examples, batch_size=64):
    losses, right = [], []
    for start in range(0, len(examples), batch_size):
        source, inputs, labels = collate(examples[start : start + batch_size])
        logits = model(source, inputs)
        real = labels != PAD
        losses.append(F.cross_entropy(logits[real].double(), labels[real], reduction="none"))
        # Decoding is exactly right if it takes the right token after each right beginning.
        right.append(((logits[..., 1:].argmax(-1) + 1 == labels) | ~real).all(dim=1))
    return torch.cat(losses).mean().item(), torch.cat(right).double().mean().item()


def train(model, held_out, *, lengths, steps, batch_size, lr, warmup, smoothing, generator):
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-9)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(step, steps, warmup, lr)
    )
    for step in range(1, steps + 1):
        rate = float(optimizer.param_groups[0]["lr"])
        examples = draw_examples(batch_size, lengths, generator)
        loss = train_step(model, optimizer, collate(examples), smoothing)
        schedule.step()
        line = {"lr": rate, "loss": loss.item()}
        if step % 50 == 0 or step == steps:
            val_loss, exact = evaluate(model, held_out, batch_size=len(held_out))
            line.update(val_loss=val_loss, exact_match=exact)
        yield line


def run(seed=0, steps=None):
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    model = Seq2Seq(VOCAB_SIZE, 48, 4, 1, 96)
    torch.set_rng_state(before)
    generator = torch.Generator()
    generator.manual_seed(seed + 1)
    held_out = draw_examples(200, [4, 6], generator)
    settings = {"lengths": [1, 2, 3, 5, 7, 8], "steps": 300 if steps is None else steps}
    settings |= {"batch_size": 64, "lr": 0.01, "warmup": 40, "smoothing": 0.1}
    yield from train(model, held_out, generator=generator, **settings)
