"""The mixture with the user's own items as plain loops, for every event and every item."""

from __future__ import annotations

import torch


def log_mixture(own, hidden, catalogue, items, times=None, ahead=None, first=0):
    """Logarithms of the probabilities of all items after the events of one history from ``first``.

    own: an ``OwnHistory``; hidden: [T, D]; catalogue: [I, D]; items, times, ahead: lists of T.
    [T - first, I].
    """
    places = [list(range(len(items)))]
    moments = [[place + 1 for place in places[0]]]
    if own.timed:
        passed, last = [0], times[0]
        for time in times[1:]:
            passed.append(passed[-1] + (max(time - last, 0) if min(time, last) >= 0 else 0))
            last = time
        later = [max(gap, 0) for gap in ahead] if ahead else [0] * len(items)
        places.append(passed)
        moments.append([passed[t] + later[t] for t in range(len(items))])
        for t in range(len(items) - 1):
            moments[1][t] = min(moments[1][t], passed[t + 1])
    rows = []
    for t in range(first, len(items)):
        mix = own.mix(hidden[t])
        steps, scales = len(own.log_step_rates), len(own.scales)
        led = items[t] in items[:t]
        if not led:
            keep = torch.ones_like(mix, dtype=torch.bool)
            keep[-scales - steps : -scales] = False
            mix = torch.where(keep, mix, -torch.inf)
        mix = mix.log_softmax(0)
        total = mix[0].exp() * (catalogue @ hidden[t]).softmax(0)
        number, begin = 1, 0
        last_seen = []
        for scale, place, moment in zip(own.scales, places, moments, strict=True):
            for rate in scale.log_rates.exp():
                counts = torch.zeros_like(total)
                for s in range(t + 1):
                    counts = counts + one_hot(total, items[s]) * torch.exp(
                        -rate * (place[t] - place[s])
                    )
                total = total + mix[number].exp() * counts / counts.sum()
                number += 1
            weights = torch.zeros_like(total)
            for item in set(items[: t + 1]):
                seen = [s for s in range(t + 1) if items[s] == item]
                bucket = bucket_of(scale, moment[t] - place[seen[-1]])
                logs = log_weights(own, catalogue[item], seen, places, scale, place)
                logit = own.of_state(hidden[t])[begin + bucket] + logs[bucket].clamp(-8, 8)
                weights = weights + one_hot(total, item) * logit.exp()
            begin += scale.buckets
            last_seen.append(weights / weights.sum())
        for rate in own.log_step_rates.exp():
            counts = torch.zeros_like(total)
            for s in range(1, t + 1):
                if items[s - 1] == items[t]:
                    counts = counts + one_hot(total, items[s]) * torch.exp(-rate * (t - s))
            if led:
                total = total + mix[number].exp() * counts / counts.sum()
            number += 1
        for each in last_seen:
            total = total + mix[number].exp() * each
            number += 1
        rows.append(total.log())
    return torch.stack(rows)


def log_weights(own, vector, seen, places, scale, place):
    """What the latest of the occurrences ``seen`` weighs in each bucket, [B]."""
    counts = [
        sum(torch.exp(-rate * (of[seen[-1]] - of[s])) for s in seen).log()
        for each, of in zip(own.scales, places, strict=True)
        for rate in each.log_rates.exp()
    ]
    gap = scale.buckets
    if len(seen) > 1:
        gap = bucket_of(scale, place[seen[-1]] - place[seen[-2]])
    return (
        scale.of_item.weight @ vector
        + scale.of_counts.weight @ torch.stack(counts)
        + scale.of_gap.weight[gap]
    )


def bucket_of(scale, gap):
    return max(sum(start <= gap for start in scale.starts.tolist()) - 1, 0)


def one_hot(like, item):
    return torch.zeros_like(like).index_fill(0, torch.tensor([item]), 1.0)
