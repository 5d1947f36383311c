"""Blocks of rows, whose masks are counted by count_nonzero."""

import torch


def count_equal(x, k, out):
    total = 0
    for rows in x.split(1024):
        total += torch.count_nonzero(rows == k).item()
    out.fill_(total)


def count_rows(x, k, out):
    start = 0
    for rows in x.split(1024):
        out[start : start + len(rows)] = torch.count_nonzero(rows == k, dim=1)
        start += len(rows)
