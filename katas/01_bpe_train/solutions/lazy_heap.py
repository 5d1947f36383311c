"""A linked list of nodes, and a heap whose entries are checked when they come up."""

import heapq
import re
from collections import Counter


class Node:
    __slots__ = ("id", "next", "prev", "weight")

    def __init__(self, id, weight, prev=None):
        self.id = id
        self.weight = weight
        self.prev = prev
        self.next = None


def train(text, vocab_size, pattern=None):
    if vocab_size < 256:
        raise ValueError(f"vocab_size={vocab_size} has no room for the 256 bytes")
    pieces = [text] if pattern is None else re.findall(pattern, text)
    counts = {}
    nodes = {}  # of each pair, the nodes that have been the left one of it
    for piece, weight in Counter(pieces).items():
        prev = None
        for byte in piece.encode("utf-8"):
            node = Node(byte, weight, prev)
            if prev is not None:
                prev.next = node
                add(counts, nodes, prev)
            prev = node

    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    vocab = {i: bytes([i]) for i in range(256)}
    merges = []
    while len(vocab) < vocab_size and heap:
        count, pair = heapq.heappop(heap)
        if counts.get(pair, 0) != -count or count == 0:
            continue  # its count has changed, and another entry says so
        new = len(vocab)
        vocab[new] = vocab[pair[0]] + vocab[pair[1]]
        merges.append(pair)
        changed = set()
        for node in nodes.pop(pair):
            gone = node.next
            if node.id != pair[0] or gone is None or gone.id != pair[1]:
                continue
            before, after = node.prev, gone.next
            if before is not None:
                counts[before.id, node.id] -= node.weight
                changed.add((before.id, node.id))
            if after is not None:
                counts[gone.id, after.id] -= node.weight
                changed.add((gone.id, after.id))
            counts[pair] -= node.weight
            node.id = new
            gone.id = None
            gone.prev = gone.next = None
            node.next = after
            if before is not None:
                changed.add(add(counts, nodes, before))
            if after is not None:
                after.prev = node
                changed.add(add(counts, nodes, node))
        counts.pop(pair, None)
        changed.discard(pair)
        for other in changed:
            if counts.get(other):
                heapq.heappush(heap, (-counts[other], other))
    return vocab, merges


def add(counts, nodes, node):
    pair = (node.id, node.next.id)
    counts[pair] = counts.get(pair, 0) + node.weight
    nodes.setdefault(pair, []).append(node)
    return pair
