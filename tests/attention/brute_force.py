"""The definition of Blossom attention as loops over single events, in float64 NumPy."""

import math

import numpy as np


def block_key_windows(k, block_size, window):
    """k [L, G, d] -> [complete blocks, G, window, d], zero before the start of the history."""
    length, groups, size = k.shape
    windows = np.zeros((length // block_size, groups, window, size))
    for block in range(length // block_size):
        last = block * block_size + block_size - 1
        for place in range(window):
            position = last - window + 1 + place
            if position >= 0:
                windows[block, :, place] = k[position]
    return windows


def select(q, block_keys, t, group, *, block_size, top_n, causal, share=1.0):
    """Selected block numbers of event t, rising."""
    size = q.shape[-1]
    per_group = q.shape[1] // block_keys.shape[1]
    own = t // block_size
    scored = []
    for block in range(len(block_keys)):
        if (block < own) if causal else (block != own):
            heads = range(group * per_group, (group + 1) * per_group)
            scores = [q[t, h] @ block_keys[block, group] / math.sqrt(size) for h in heads]
            scored.append((-np.mean(scores), block))
    total, reached, chosen = sum(math.exp(-score) for score, _ in scored), 0.0, []
    for score, block in sorted(scored)[:top_n]:
        if reached < share:
            chosen.append(block)
        reached += math.exp(-score) / total
    return sorted(chosen)


def long_keys(chosen, t, length, *, block_size, causal):
    own = t // block_size
    return [
        s
        for s in range(length)
        if s // block_size in chosen or (s // block_size == own and (s <= t or not causal))
    ]


def short_keys(t, length, *, window, sinks, causal, power_base=2):
    keys, powers = [], {round(power_base**exponent) for exponent in range(200)}
    for s in range(t + 1 if causal else length):
        distance = abs(t - s)
        near = distance < window or distance in powers
        if near or (s < sinks if causal else s >= length - sinks):
            keys.append(s)
    return keys


def softmax_attention(q, k, v, t, head, group, keys, biases=0.0):
    scores = np.array([q[t, head] @ k[s, group] for s in keys]) / math.sqrt(q.shape[-1]) + biases
    weights = np.exp(scores - scores.max())
    return (weights / weights.sum()) @ v[keys, group]


def fused(q, k, v, gates, t, head, group, far, near, fusion):
    """Two softmaxes, weighed by the gates, or one over the union of the keys, near ones biased."""
    if fusion == "union":
        keys = sorted({*far, *near})
        biases = np.array([gates[t, head, 0] if s in near else 0.0 for s in keys])
        return softmax_attention(q, k, v, t, head, group, keys, biases)
    long = softmax_attention(q, k, v, t, head, group, far)
    short = softmax_attention(q, k, v, t, head, group, near)
    return gates[t, head, 0] * long + gates[t, head, 1] * short


def blossom(
    q,
    k,
    v,
    block_keys,
    gates,
    *,
    block_size=16,
    top_n=4,
    window=8,
    sinks=0,
    causal=True,
    fusion="gated",
    share=1.0,
    power_base=2,
):
    """One history: q [L, H, d], k and v [L, G, d], block_keys [blocks, G, d], gates [L, H, .]."""
    length, heads, _ = q.shape
    groups = k.shape[1]
    out = np.zeros_like(q)
    selected = np.full((length, groups, top_n), -1)
    for t in range(length):
        form = {"window": window, "sinks": sinks, "causal": causal, "power_base": power_base}
        near = short_keys(t, length, **form)
        for group in range(groups):
            form = {"block_size": block_size, "top_n": top_n, "causal": causal, "share": share}
            chosen = select(q, block_keys, t, group, **form)
            selected[t, group, : len(chosen)] = chosen
            far = long_keys(chosen, t, length, block_size=block_size, causal=causal)
            for head in range(group * (heads // groups), (group + 1) * (heads // groups)):
                out[t, head] = fused(q, k, v, gates, t, head, group, far, near, fusion)
    return out, selected
