"""NumPy, with every gradient written out by hand in an autograd Function."""

import numpy as np
import torch


class _Known(torch.autograd.Function):
    """A value whose gradients for some tensors are known."""

    @staticmethod
    def forward(ctx, value, slopes, *tensors):
        ctx.slopes = slopes
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        grads = []
        for slope in ctx.slopes:
            shape = grad.shape + (1,) * (slope.dim() - grad.dim())
            grads.append((grad.reshape(shape) * slope).to(slope.dtype))
        return None, None, *grads


def _array(x):
    return x.detach().to(torch.float64).numpy()


def _tensor(x, dtype):
    return torch.from_numpy(np.asarray(x, dtype=np.float64)).to(dtype)


def sequence_logprobs(logits, labels, ignore_index=-100):
    dtype = torch.promote_types(logits.dtype, torch.float32)
    x, ids = _array(logits), labels.numpy()
    top = x.max(-1, keepdims=True)
    exps = np.exp(x - top)
    sums = exps.sum(-1, keepdims=True)
    logprobs = x - top - np.log(sums)
    slope = np.zeros_like(x)
    out = np.zeros(len(ids))
    rows, places = np.nonzero(ids[:, 1:] != ignore_index)
    targets = ids[rows, places + 1]
    np.add.at(out, rows, logprobs[rows, places, targets])
    slope[rows, places] = -(exps / sums)[rows, places]
    slope[rows, places, targets] += 1
    return _Known.apply(_tensor(out, dtype), [_tensor(slope, logits.dtype)], logits)


def dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta, label_smoothing=0.0):
    dtype = policy_chosen.dtype
    good = beta * (_array(policy_chosen) - _array(ref_chosen))
    bad = beta * (_array(policy_rejected) - _array(ref_rejected))
    margin = good - bad
    losses = np.logaddexp(0, -margin) + label_smoothing * margin
    sigmoid = np.exp(-np.logaddexp(0, -margin))
    slope = beta * (sigmoid - 1 + label_smoothing) / len(margin)
    slopes = [_tensor(slope, dtype), _tensor(-slope, dtype)]
    loss = _Known.apply(_tensor(losses.mean(), dtype), slopes, policy_chosen, policy_rejected)
    return loss, _tensor(good, dtype), _tensor(bad, dtype)


def gae(rewards, values, next_values, terminated, truncated, gamma, lam):
    r, v, after = _array(rewards), _array(values), _array(next_values)
    over = terminated.numpy()
    goes_on = ~(over | truncated.numpy())
    target = r + gamma * np.where(over, 0, after)
    advantages = target - v
    for t in range(len(r) - 2, -1, -1):
        advantages[t] += np.where(goes_on[t], gamma * lam * advantages[t + 1], 0)
    return _tensor(advantages, rewards.dtype), _tensor(advantages + v, rewards.dtype)


def ppo_loss(logprobs, old_logprobs, advantages, mask, clip=0.2):
    real = mask.numpy()
    count = max(int(real.sum()), 1)
    ratio = np.exp(_array(logprobs)[real] - _array(old_logprobs)[real])
    gain = _array(advantages)[real]
    clipped = np.clip(ratio, 1 - clip, 1 + clip)
    surrogate = np.minimum(ratio * gain, clipped * gain)
    slope = np.zeros(real.shape)
    slope[real] = np.where(clipped * gain < ratio * gain, 0, -ratio * gain / count)
    value = _tensor(-surrogate.sum() / count, logprobs.dtype)
    return _Known.apply(value, [_tensor(slope, logprobs.dtype)], logprobs)


def grpo_advantages(rewards, group_size):
    table = _array(rewards)
    if table.size % group_size != 0:
        raise ValueError(group_size)
    table = table.reshape(-1, group_size).copy()
    table -= table[:, [0]]
    table -= table.mean(1, keepdims=True)
    spread = np.sqrt((table**2).sum(1, keepdims=True) / max(group_size - 1, 1))
    return _tensor((table / (spread + 1e-6)).ravel(), rewards.dtype)


def kl_k3(logprobs, ref_logprobs, mask):
    real = mask.numpy()
    count = max(int(real.sum()), 1)
    diff = _array(ref_logprobs)[real] - _array(logprobs)[real]
    slope = np.zeros(real.shape)
    slope[real] = -np.expm1(diff) / count
    value = _tensor((np.expm1(diff) - diff).sum() / count, logprobs.dtype)
    return _Known.apply(value, [_tensor(slope, logprobs.dtype)], logprobs)
