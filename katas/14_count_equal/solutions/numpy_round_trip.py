"""A NumPy round trip; bfloat16, which NumPy lacks, goes by way of float32."""

import numpy as np
import torch


def count_equal(x, k, out):
    out.fill_(int(np.count_nonzero(_equal(x, k))))


def count_rows(x, k, out):
    out.copy_(torch.from_numpy(np.count_nonzero(_equal(x, k), axis=1).astype(np.int64)))


def _equal(x, k):
    if x.dtype == torch.bfloat16:
        x = x.float()  # exact
    array = x.detach().numpy()
    return array == array.dtype.type(k)
