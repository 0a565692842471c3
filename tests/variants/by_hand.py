"""Variants by hand: one sequence, one step at a time, in float64; nothing of fused_rnn's runs here.

What the package draws is drawn here too: Philox in plain integers.
"""

from __future__ import annotations

import torch
from torch.nn.functional import dropout

WORD = 2**32 - 1


def philox(counter, key):
    """Return the four words of Philox4x32-10, after Salmon et al. 2011."""
    a, b, c, d = counter
    k, q = key
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = second >> 32 ^ b ^ k, second & WORD, first >> 32 ^ d ^ q, first & WORD
        k, q = (k + 0x9E3779B9) & WORD, (q + 0xBB67AE85) & WORD
    return a, b, c, d


def keeps_old(seed, step, sequence, units, p, which):
    """Return the mask (units,) of one step of one sequence."""
    kept = []
    for unit in range(units):
        block, inside = divmod(unit, 64)
        word, lane = divmod(inside, 16)
        drawn = philox((block * 16 + lane, step, sequence, which), (seed & WORD, seed >> 32))
        kept.append(drawn[word] < p * 2**32)
    return torch.tensor(kept)


def drawn(module, n, options, dtype):
    """Return the masks and seeds that the next call draws, and leave the generator as it is."""
    states = module.num_layers * (2 if module.bidirectional else 1)
    size = module.proj_size or module.hidden_size
    masks, seeds = [None] * states, [None] * states
    with torch.random.fork_rng(devices=[]):
        if not module.training:
            return masks, seeds
        p = options.get("recurrent_dropout", 0)
        if p:
            masks = list(dropout(torch.ones(states, n, size, dtype=dtype), p, True) * (1 - p))
            masks = [mask.round() / (1 - p) for mask in masks]
        if options.get("zoneout", 0):
            seeds = torch.randint(2**62, (states, 1))[:, 0].tolist()
    return masks, seeds


def norm(a, gain, bias, eps):
    centred = a - a.mean()
    a = centred / ((centred**2).mean() + eps).sqrt() * gain
    return a if bias is None else a + bias


class Direction:
    """One layer and direction."""

    def __init__(self, module, k, options, mask, seed):
        self.module, self.o, self.mask, self.seed = module, options, mask, seed
        d = 2 if module.bidirectional else 1
        suffix = f"_l{k // d}{'_reverse' if k % d else ''}"
        self.reverse = k % d == 1
        own = dict(module.named_parameters())
        self.p = {n.removesuffix(suffix): p for n, p in own.items() if n.endswith(suffix)}
        self.H = module.hidden_size
        self.R = module.proj_size or self.H
        self.G = len(self.p["weight_ih"]) // self.H
        self.w_hh = self.block_diagonal()

    def block_diagonal(self):
        heads, w = self.o.get("num_heads", 1), self.p["weight_hh"]
        if heads == 1:
            return w
        dense = w.new_zeros(self.G * self.H, self.R)
        u, r = self.H // heads, self.R // heads
        for head in range(heads):
            for g in range(self.G):
                rows = slice(g * self.H + head * u, g * self.H + (head + 1) * u)
                dense[rows, head * r : (head + 1) * r] = w[head, g * u : (g + 1) * u]
        return dense

    def product(self, w, v, rows, gain, bias):
        a = w[rows] @ v
        bias = self.p.get(bias)
        bias = bias if bias is None else bias[rows]
        if self.o.get("layer_norm"):
            return norm(a, self.p[gain][rows], bias, self.o.get("norm_eps", 1e-5))
        return a if bias is None else a + bias

    def sigmoid(self, a):
        kind = self.o.get("recurrent_activation", "sigmoid")
        if kind == "sigmoid":
            return 1 / (1 + torch.exp(-a))
        alpha, beta = (1 / 6, 0.5) if kind == "hard_sigmoid" else kind[1:]
        return (alpha * a + beta).clamp(0, 1)

    def tanh(self, a):
        return torch.tanh(a) if self.o.get("activation", "tanh") == "tanh" else a.clamp(min=0)

    def step(self, x, h, c, n):
        """Return the new h (R,) and c (H,), before zoneout, and the gates."""
        every, H = slice(None), self.H
        heard = h if self.mask is None else h * self.mask[n]
        wx = self.product(self.p["weight_ih"], x, every, "ln_ih", "bias_ih")
        if self.o.get("reset_after", True):
            wh = self.product(self.w_hh, heard, every, "ln_hh", "bias_hh")
        mode = self.module.mode
        if mode == "GRU":
            if self.o.get("reset_after", True):
                r = self.sigmoid(wx[:H] + wh[:H])
                z = self.sigmoid(wx[H : 2 * H] + wh[H : 2 * H])
                n_ = self.tanh(wx[2 * H :] + r * wh[2 * H :])
            else:
                wh = self.product(self.w_hh, heard, slice(2 * H), "ln_hh", "bias_hh")
                r, z = self.sigmoid(wx[:H] + wh[:H]), self.sigmoid(wx[H : 2 * H] + wh[H:])
                last = slice(2 * H, 3 * H)
                wh = self.product(self.w_hh, r * heard, last, "ln_hh", "bias_hh")
                n_ = self.tanh(wx[2 * H :] + wh)
            return (1 - z) * n_ + z * h, None, {"reset": r, "update": z, "candidate": n_}
        if mode != "LSTM":
            a = wx + wh
            new = torch.tanh(a) if mode == "RNN_TANH" else a.clamp(min=0)
            return new, None, {"hidden": new}
        a = [(wx + wh)[g * H : (g + 1) * H] for g in range(self.G)]
        a_i = a.pop(0) if self.G == 4 else None
        a_f, a_g, a_o = a
        peepholes = [0, 0, 0]
        if self.o.get("use_peepholes"):
            peepholes = list(self.p["peephole"].split(H))
            peepholes = peepholes if len(peepholes) == 3 else [0, *peepholes]
        f = self.sigmoid(a_f + peepholes[1] * c)
        i = 1 - f if self.o.get("input_forget") else self.sigmoid(a_i + peepholes[0] * c)
        g = self.tanh(a_g)
        c = f * c + i * g
        if self.o.get("cell_clip"):
            c = c.clamp(-self.o["cell_clip"], self.o["cell_clip"])
        o = self.sigmoid(a_o + peepholes[2] * c)
        shown = c
        if self.o.get("layer_norm"):
            shown = norm(c, self.p["ln_c"], self.p["ln_c_bias"], self.o.get("norm_eps", 1e-5))
        new = o * self.tanh(shown)
        if "weight_hr" in self.p:
            new = self.p["weight_hr"] @ new
        if self.o.get("proj_clip"):
            new = new.clamp(-self.o["proj_clip"], self.o["proj_clip"])
        return new, c, {"input": i, "forget": f, "candidate": g, "output": o}

    def zoned(self, old, new, which, t, n):
        p = self.o.get("zoneout", 0)
        p = p if isinstance(p, float) or not p else p[which]
        if not p or old is None:
            return new
        if self.seed is None:
            return p * old + (1 - p) * new
        return torch.where(keeps_old(self.seed, t, n, len(old), p, which), old, new)

    def run(self, x, h, c, n, length, resets, anew):
        """Scan one sequence x (T, I), of which ``length`` steps count; return lists over T."""
        hs, cs, gates = [None] * len(x), [None] * len(x), [None] * len(x)
        for t in reversed(range(length)) if self.reverse else range(length):
            border = t + 1 if self.reverse else t
            if border < length and resets[border]:
                h, c = anew
            new, new_c, gates[t] = self.step(x[t], h, c, n)
            h, c = self.zoned(h, new, 0, t, n), self.zoned(c, new_c, 1, t, n)
            hs[t], cs[t] = h, c
        return hs, cs, gates, h, c


def by_hand(module, options, x, lengths=None, resets=None):
    """Return y (T, N, D*R), h_n, c_n and gates of x (T, N, I), which begins with zeros."""
    steps, n, _ = x.shape
    lengths = [steps] * n if lengths is None else lengths.tolist()
    resets = torch.zeros(steps, n, dtype=torch.bool) if resets is None else resets
    d = 2 if module.bidirectional else 1
    masks, seeds = drawn(module, n, options, x.dtype)
    h_n, c_n, gates = [], [], []
    for layer in range(module.num_layers):
        sides = []
        for k in range(layer * d, layer * d + d):
            of = Direction(module, k, options, masks[k], seeds[k])
            h0 = x.new_zeros(of.R)
            c0 = x.new_zeros(of.H) if module.mode == "LSTM" else None
            rows = [
                of.run(x[:, i], h0, c0, i, lengths[i], resets[:, i], (h0, c0)) for i in range(n)
            ]
            sides.append(
                torch.stack([torch.stack([h0 if h is None else h for h in r[0]]) for r in rows], 1)
            )
            gates.append([r[2] for r in rows])
            h_n.append(torch.stack([r[3] for r in rows]))
            if c0 is not None:
                c_n.append(torch.stack([r[4] for r in rows]))
        x = torch.cat(sides, -1)
    return x, torch.stack(h_n), torch.stack(c_n) if c_n else None, gates
