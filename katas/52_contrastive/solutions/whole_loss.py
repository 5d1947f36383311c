"""Every rank computes the loss of all pairs, and its share is an equal part of that."""

import copy
import math

import torch
from torch import nn

from dojo.simulation import ranks as simulation


def make_pairs(count, generator):
    """Draw latents, then for each view its mixing and its noise."""
    latents = torch.empty(count, 8).normal_(generator=generator)
    views = []
    for width in (24, 20):
        mixing = torch.empty(8, width).normal_(0, 8**-0.5, generator=generator)
        noise = torch.empty(count, width).normal_(0, 0.1, generator=generator)
        views.append(torch.einsum("nl,lf->nf", latents, mixing).add_(noise))
    return tuple(views)


class Tower(nn.Module):
    """Two layers; features are dropped by a function."""

    def __init__(self, in_features, hidden, dim, dropout=0.1):
        """Hold the rate, and no module for it."""
        super().__init__()
        self.rate = dropout
        self.hidden = nn.Linear(in_features, hidden)
        self.project = nn.Linear(hidden, dim, bias=False)

    def forward(self, x):
        """Return unit rows."""
        z = self.hidden(x)
        z = 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
        z = torch.dropout(z, self.rate, self.training)
        z = self.project(z)
        return z / torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp(min=1e-12)


class TwoTowers(nn.Module):
    """Towers side by side."""

    def __init__(self, features, hidden, dim, dropout=0.1):
        """Make the towers of images and of texts, and the scale."""
        super().__init__()
        for name, width in zip(("image_tower", "text_tower"), features, strict=True):
            setattr(self, name, Tower(width, hidden, dim, dropout))
        self.log_scale = nn.Parameter(-torch.tensor(0.07).log())

    def forward(self, images, texts):
        """Return both embeddings."""
        return self.image_tower(images), self.text_tower(texts)


class Place(torch.autograd.Function):
    """Writes a rank's rows into a tensor of zeros and sums these over all ranks."""

    @staticmethod
    def forward(ctx, x, start, total, comm):
        """Return all rows."""
        ctx.window, ctx.comm = slice(start, start + len(x)), comm
        everything = torch.zeros(total, *x.shape[1:], dtype=x.dtype)
        everything[ctx.window] = x
        comm.all_reduce(everything)
        return everything

    @staticmethod
    def backward(ctx, grad):
        """Sum over ranks too, and cut out the rows that were given."""
        summed = torch.zeros(grad.shape, dtype=grad.dtype) + grad
        ctx.comm.all_reduce(summed)
        return summed[ctx.window].clone(), None, None, None


def span(count, comm):
    """Return where this rank's rows begin, and how many rows there are."""
    counts = torch.zeros(comm.get_world_size(), dtype=torch.int64)
    counts[comm.get_rank()] = count
    comm.all_reduce(counts)
    return int(counts[: comm.get_rank()].sum()), int(counts.sum())


def gather(x, comm):
    """Return all rows."""
    return Place.apply(x, *span(x.shape[0], comm), comm)


def contrastive_loss(images, texts, log_scale, comm):
    """Return the loss of all pairs over the number of ranks."""
    start, total = span(images.shape[0], comm)
    images, texts = (Place.apply(view, start, total, comm) for view in (images, texts))
    logits = torch.einsum("id,jd->ij", images, texts) * torch.exp(log_scale)
    own = logits.diagonal()
    both = logits.logsumexp(dim=1) + logits.logsumexp(dim=0) - 2 * own
    return both.mean() / 2 / comm.get_world_size()


def train_step(model, optimizer, images, texts, comm):
    """Reduce all gradients as one tensor."""
    model.train()
    model.zero_grad(set_to_none=True)
    share = contrastive_loss(*model(images, texts), model.log_scale, comm)
    share.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([share.detach()[None], *(grad.reshape(-1) for grad in grads)])
    comm.all_reduce(flat)
    at = 1
    for grad in grads:
        grad.copy_(flat[at : at + grad.numel()].view_as(grad))
        at += grad.numel()
    optimizer.step()
    if model.log_scale.item() > math.log(100):
        nn.init.constant_(model.log_scale, math.log(100))
    return float(flat[0])


class Ranks:
    """Replicas with their optimisers and streams of random numbers."""

    def __init__(self, model, count, generator):
        """Draw a seed for each rank's stream."""
        self.replicas = [copy.deepcopy(model) for _ in range(count)]
        self.optimizers = [torch.optim.Adam(r.parameters(), lr=3e-3) for r in self.replicas]
        first = int(torch.randint(2**40, (1,), generator=generator))
        self.states = []
        for rank in range(count):
            stream = torch.Generator()
            stream.manual_seed(first + 1009 * rank)
            self.states.append(stream.get_state())

    def step(self, comm, shards):
        """Take a step on one rank, which goes on with its stream of random numbers."""
        rank = comm.get_rank()
        torch.set_rng_state(self.states[rank])
        loss = train_step(self.replicas[rank], self.optimizers[rank], *shards[rank], comm)
        self.states[rank] = torch.get_rng_state()
        return loss


def train(model, pairs, ranks, steps, batch_size, generator):
    """Train copies, and copy the weights of the first back after each step."""
    group, queue = Ranks(model, ranks, generator), []
    for _ in range(steps):
        if not queue:
            order = torch.randperm(len(pairs[0]), generator=generator).tolist()
            queue = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
        rows = queue.pop(0)
        shards = [[view[rows[rank::ranks]] for view in pairs] for rank in range(ranks)]
        losses = simulation.launch(ranks, group.step, shards)
        model.load_state_dict(group.replicas[0].state_dict())
        yield {"loss": losses[-1], "scale": math.exp(float(model.log_scale.detach()))}


def rank_gap(model, images, texts, ranks=2):
    """Compare gradients of a copy of the model."""
    clone = copy.deepcopy(model).eval()

    def measure(comm):
        each = [torch.tensor_split(v, comm.get_world_size()) for v in (images, texts)]
        loss = contrastive_loss(*clone(*(v[comm.get_rank()] for v in each)), clone.log_scale, comm)
        return [loss.detach(), *torch.autograd.grad(loss, tuple(clone.parameters()))]

    totals = []
    for count in (1, ranks):
        results = simulation.launch(count, measure)
        totals.append([torch.stack(parts).sum(0) for parts in zip(*results, strict=True)])
    return float(max((a - b).abs().max() for a, b in zip(*totals, strict=True)))


def recall_at_1(queries, keys):
    """Count the keys that are at least as similar; the own one is, so one is the least."""
    similarities = queries @ keys.mT
    rivals = (similarities >= similarities.diagonal()[:, None]).sum(dim=1)
    return int((rivals == 1).sum()) / len(queries)


def evaluate(image_tower, text_tower, pairs, batch_size=256):
    """Embed with copies of the towers, which are in evaluation mode for good."""
    embeddings = []
    for tower, view in zip((image_tower, text_tower), pairs, strict=True):
        modes = {module: module.training for module in tower.modules()}
        tower.eval()
        with torch.inference_mode():
            parts = [tower(view[at : at + batch_size]) for at in range(0, len(view), batch_size)]
            embeddings.append(torch.vstack(parts))
        for module, training in modes.items():
            module.training = training
    return recall_at_1(*embeddings)


def distillation_loss(student_logits, teacher_logits, temperature):
    """Follow the formula."""
    with torch.no_grad():
        p = (teacher_logits / temperature).softmax(dim=-1)
        entropy = torch.special.entr(p).sum()
    log_q = (student_logits / temperature).log_softmax(dim=-1)
    return temperature**2 * (-(p * log_q).sum() - entropy) / len(p)


def distill_step(student, teacher, optimizer, images, texts):
    """Ask the teacher without recording, then step."""
    modes = [(module, module.training) for module in teacher.modules()]
    teacher.eval()
    with torch.no_grad():
        x, y = teacher(images, texts)
        y = y * teacher.log_scale.exp()
    for module, training in modes:
        module.training = training
    student.train().zero_grad()
    logits = torch.einsum("id,jd->ij", student(images), y)
    hard = (logits.logsumexp(dim=1) - logits.diagonal()).mean()
    loss = 0.5 * distillation_loss(logits, x @ y.mT, 2) + 0.5 * hard
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def run(seed=0, steps=None):
    """Keep the global generator's state by hand."""
    total = 120 if steps is None else steps
    data, order = torch.Generator(), torch.Generator()
    data.manual_seed(seed)
    order.manual_seed(seed + 10**6)
    views = make_pairs(758, data)
    pairs, held_out = [v[:630] for v in views], [v[630:] for v in views]
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model, student = TwoTowers((24, 20), 64, 16), Tower(24, 16, 16, 0.0)
    torch.set_rng_state(state)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    queue = []
    for step, line in enumerate(train(model, pairs, 2, total, 63, data)):
        queue = queue or list(torch.randperm(630, generator=order).view(10, 63))
        rows = queue.pop()
        line["distill_loss"] = distill_step(student, model, optimizer, *(v[rows] for v in pairs))
        if (step + 1) % 20 == 0 or step + 1 == total:
            line["recall"] = evaluate(model.image_tower, model.text_tower, held_out)
            line["student_recall"] = evaluate(student, model.text_tower, held_out)
            line["rank_gap"] = rank_gap(model, *(v[:25] for v in held_out))
        yield line
