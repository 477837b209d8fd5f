#!/usr/bin/env python3
"""PyTorch on the CPU: steps of a DARTS search, of a training, and single layers, as `supernet bench` measures them.

    python pytorch.py search --channels 16 --layers 8 --batch 64 --variant lean --layout nhwc --steps 5
    python pytorch.py search --channels 8 --layers 5 --batch 32 --order second
    python pytorch.py train --layout nhwc
    python pytorch.py layers --layout nhwc
    python pytorch.py check

Variants of the search: `plain`, one module a primitive, as published (the model of tests/fixtures/make_fixtures.py);
`lean`, the same function with less work (ReLU, pools and their norms once a state, the edges that leave a state batched
into one wider operation, `none` left out; `check` compares both in float64); `compiled`, the lean one with its cells
under torch.compile. Each half-step asks for the gradients that it needs and no others. Prints one JSON row a measurement.
"""
import argparse, json, os, resource, statistics, sys, time

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "fixtures"))
import make_fixtures as darts  # noqa: E402  (the model that the parity tests are made with)

CONVOLUTIONS = (("sep_conv_3x3", 3, 1), ("sep_conv_5x5", 5, 1), ("dil_conv_3x3", 3, 2), ("dil_conv_5x5", 5, 2))
LAYERS = ("dil_conv_3x3", "dil_conv_5x5", "relu_pointwise_batch_norm", "max_pool_3x3", "batch_norm")
SHAPES = ((16, 32, 64), (64, 8, 64), (36, 32, 96))          # channels, side, images: as in src/bench/cases/layers.rs


class Half(nn.Module):
    """Depthwise, pointwise and norm of `edges` equal branches side by side."""

    def __init__(self, edges, c, kernel, stride, dilation):
        super().__init__()
        wide, padding = edges * c, dilation * (kernel - 1) // 2
        self.depthwise = darts.conv(wide, wide, kernel, stride, padding, dilation, groups=wide)
        self.pointwise = darts.conv(wide, wide, groups=edges)
        self.norm = nn.BatchNorm2d(wide, affine=False)

    def forward(self, x):
        return self.norm(self.pointwise(self.depthwise(x)))


class State(nn.Module):
    """All edges that leave one state of a cell."""

    def __init__(self, c, edges, stride):
        super().__init__()
        self.c, self.count, self.stride = c, len(edges), stride
        self.edges = edges
        self.first = nn.ModuleList(Half(len(edges), c, k, stride, d) for _, k, d in CONVOLUTIONS)
        self.second = nn.ModuleList(Half(len(edges), c, k, 1, 1) for _, k, _ in CONVOLUTIONS[:2])
        self.max_norm, self.average_norm = (nn.BatchNorm2d(c, affine=False) for _ in range(2))
        if stride == 2:
            self.skips = nn.ModuleList(darts.FactorizedReduce(c, c, affine=False) for _ in edges)

    def forward(self, x, weights):
        """`weights [14, 8]`; returns one map an edge."""
        own = weights[self.edges]
        active = F.relu(x).repeat(1, self.count, 1, 1)
        maps = [half(active) for half in self.first]
        maps[:2] = [half(F.relu(m)) for half, m in zip(self.second, maps)]
        wide = sum(m * own[:, 4 + k].repeat_interleave(self.c).view(1, -1, 1, 1) for k, m in enumerate(maps))
        pools = (self.max_norm(F.max_pool2d(x, 3, self.stride, 1)),
                 self.average_norm(F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)))
        out = []
        for e, part in enumerate(wide.chunk(self.count, 1)):
            skip = x if self.stride == 1 else self.skips[e](x)
            out.append(part + own[e, 1] * pools[0] + own[e, 2] * pools[1] + own[e, 3] * skip)
        return out


class LeanCell(nn.Module):
    def __init__(self, c_prev_prev, c_prev, c, reduction, reduction_prev):
        super().__init__()
        self.reduction = reduction
        self.preprocess0 = darts.preprocess(c_prev_prev, c, reduction_prev, affine=False)
        self.preprocess1 = darts.preprocess(c_prev, c, False, affine=False)
        start = [sum(2 + i for i in range(node)) for node in range(darts.NODES)]
        self.states = nn.ModuleList(
            State(c, [start[node] + source for node in range(max(0, source - 1), darts.NODES)],
                  2 if reduction and source < 2 else 1)
            for source in range(1 + darts.NODES))

    def forward(self, s0, s1, weights):
        states, nodes = [self.preprocess0(s0), self.preprocess1(s1)], [0.0] * darts.NODES
        for source, state in enumerate(self.states):
            first = max(0, source - 1)
            for e, part in enumerate(state(states[source], weights)):
                nodes[first + e] = nodes[first + e] + part
            if source >= 1:
                states.append(nodes[source - 1])
        return torch.cat(states[2:], dim=1)


class LeanSupernet(darts.Supernet):
    def __init__(self, c, layers, classes):
        super().__init__(c, layers, classes)
        plan = darts.layer_plan(c, layers)
        self.cells = nn.ModuleList(LeanCell(c0, c1, ch, red, prev) for ch, red, prev, c0, c1 in plan)


def copy_into_lean(plain, lean):
    """Gives a lean network the weights of a plain one."""
    with torch.no_grad():
        lean.stem.load_state_dict(plain.stem.state_dict())
        lean.classifier.load_state_dict(plain.classifier.state_dict())
        for theirs, ours in zip(plain.cells, lean.cells):
            ours.preprocess0.load_state_dict(theirs.preprocess0.state_dict())
            ours.preprocess1.load_state_dict(theirs.preprocess1.state_dict())
            for state in ours.states:
                edges = [theirs._ops[e]._ops for e in state.edges]
                for k in range(4):
                    ops = [edge[4 + k].op for edge in edges]
                    stages = [(state.first[k], 1)] + ([(state.second[k], 5)] if k < 2 else [])
                    for half, at in stages:
                        half.depthwise.weight.copy_(torch.cat([op[at].weight for op in ops]))
                        half.pointwise.weight.copy_(torch.cat([op[at + 1].weight for op in ops]))
                if state.stride == 2:
                    for skip, edge in zip(state.skips, edges):
                        skip.load_state_dict(edge[3].state_dict())


class Search:
    def __init__(self, args):
        torch.manual_seed(0)
        make = darts.Supernet if args.variant == "plain" else LeanSupernet
        self.net = make(args.channels, args.layers, 10)
        self.format = torch.channels_last if args.layout == "nhwc" else torch.contiguous_format
        self.net.to(memory_format=self.format)
        if args.variant == "compiled":
            for cell in self.net.cells:
                cell.compile(dynamic=False)
        self.alphas = [(1e-3 * torch.randn(darts.EDGES, 8)).requires_grad_() for _ in range(2)]
        self.weights = list(self.net.parameters())
        self.rate = 0.025
        self.sgd = torch.optim.SGD(self.weights, self.rate, momentum=0.9, weight_decay=3e-4, foreach=True)
        self.adam = torch.optim.Adam(self.alphas, 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
        self.train, self.valid = (self.batch(args.batch) for _ in range(2))

    def batch(self, n):
        return torch.randn(n, 3, 32, 32).contiguous(memory_format=self.format), torch.randint(0, 10, (n,))

    def loss(self, batch, weights, alphas):
        """The loss, with just these gradients recorded."""
        for p in self.weights:
            p.requires_grad_(weights)
        for a in self.alphas:
            a.requires_grad_(alphas)
        return F.cross_entropy(self.net(batch[0], self.alphas), batch[1])

    def weight_step(self):
        self.sgd.zero_grad()
        self.loss(self.train, True, False).backward()
        nn.utils.clip_grad_norm_(self.weights, 5.0, foreach=True)
        self.sgd.step()

    def first(self):
        self.adam.zero_grad()
        self.loss(self.valid, False, True).backward()
        self.adam.step()
        self.weight_step()

    def second(self):
        w, a = self.weights, self.alphas
        gradients = torch.autograd.grad(self.loss(self.train, True, False), w)
        with torch.no_grad():
            kept = [p.clone() for p in w]
            step = torch._foreach_add(gradients, w, alpha=3e-4)
            momenta = [self.sgd.state[p].get("momentum_buffer") for p in w]
            if momenta[0] is not None:
                torch._foreach_add_(step, momenta, alpha=0.9)
            torch._foreach_add_(w, step, alpha=-self.rate)
        both = torch.autograd.grad(self.loss(self.valid, True, True), a + w)
        direct, v = both[:2], both[2:]
        radius = 1e-2 / torch.linalg.vector_norm(torch.stack(torch._foreach_norm(v)))
        shift, sides = torch._foreach_mul(v, radius), []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                torch._foreach_copy_(w, kept)
                torch._foreach_add_(w, shift, alpha=sign)
            sides.append(torch.autograd.grad(self.loss(self.train, False, True), a))
        with torch.no_grad():
            torch._foreach_copy_(w, kept)
        for p, g, plus, minus in zip(a, direct, *sides):
            p.grad = g - self.rate * (plus - minus) / (2 * radius)
        self.adam.step()
        self.weight_step()


class Training:
    """A derived network of DARTS_V2 with auxiliary head, without drop path."""

    def __init__(self, args):
        torch.manual_seed(0)
        self.format = torch.channels_last if args.layout == "nhwc" else torch.contiguous_format
        self.net = darts.NetworkCIFAR(args.channels, args.layers, 10, darts.DARTS_V2, auxiliary=True)
        self.net.to(memory_format=self.format)
        if args.variant == "compiled":
            for cell in self.net.cells:
                cell.compile(dynamic=False)
        self.weights = list(self.net.parameters())
        self.sgd = torch.optim.SGD(self.weights, 0.025, momentum=0.9, weight_decay=3e-4, foreach=True)
        self.x = torch.randn(args.batch, 3, 32, 32).contiguous(memory_format=self.format)
        self.y = torch.randint(0, 10, (args.batch,))

    def step(self):
        self.sgd.zero_grad()
        logits, auxiliary = self.net(self.x)
        (F.cross_entropy(logits, self.y) + 0.4 * F.cross_entropy(auxiliary, self.y)).backward()
        nn.utils.clip_grad_norm_(self.weights, 5.0, foreach=True)
        self.sgd.step()


def layer(name, c):
    norm = nn.BatchNorm2d(c, affine=False)
    if name.startswith("dil_conv"):
        return nn.Sequential(*darts.depthwise_pointwise_bn(c, int(name[-1]), 1, 2, False))
    if name == "relu_pointwise_batch_norm":
        return nn.Sequential(nn.ReLU(), darts.conv(c, c), norm)
    return nn.Sequential(nn.MaxPool2d(3, 1, 1), norm) if name == "max_pool_3x3" else norm


def samples(run, steps, warmup=1):
    times = []
    for step in range(warmup + steps):
        start = time.perf_counter()
        run()
        if step >= warmup:
            times.append(round((time.perf_counter() - start) * 1e3, 3))
    return times


def row(args, case, milliseconds):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(dict(peer="pytorch", version=torch.__version__, variant=f"{args.variant} {args.layout}", case=case,
                          milliseconds=milliseconds, peak_rss_bytes=peak)), flush=True)


def check():
    """The lean network is the plain one: logits, loss and the gradients of the alphas in float64."""
    torch.manual_seed(1)
    plain, lean = (make(4, 3, 10).double() for make in (darts.Supernet, LeanSupernet))
    copy_into_lean(plain, lean)
    x, y = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.randint(0, 10, (4,))
    alphas = [torch.randn(darts.EDGES, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    found = []
    for net in (plain, lean):
        loss = F.cross_entropy(net(x, alphas), y)
        stem = next(net.stem.parameters())
        found.append([loss, *torch.autograd.grad(loss, [*alphas, stem])])
    worst = max(((a - b).norm() / a.norm()).item() for a, b in zip(*found))
    if worst > 1e-9:
        sys.exit(f"the lean network differs from the plain one by {worst:.1e}")
    print(json.dumps({"check": "lean equals plain", "largest_relative_difference": worst}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("search", "train", "layers", "check"))
    parser.add_argument("--channels", type=int)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--order", choices=("first", "second"), default="first")
    parser.add_argument("--variant", choices=("plain", "lean", "compiled"), default="plain")
    parser.add_argument("--layout", choices=("nchw", "nhwc"), default="nchw")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--filter", default="", help="with layers: a part of the names of the cases")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # Every cell has shapes of its own, in two half-steps: the default of 8 would leave some of them uncompiled.
    torch._dynamo.config.recompile_limit = 64
    if args.what == "check":
        check()
    elif args.what == "layers":
        for c, side, batch in SHAPES:
            for name in LAYERS:
                case = f"layer/c{c}/{side}x{side}/b{batch}/{name}"
                if args.filter not in case:
                    continue
                format = torch.channels_last if args.layout == "nhwc" else torch.contiguous_format
                net = layer(name, c).to(memory_format=format)
                x, g = (torch.randn(batch, c, side, side).contiguous(memory_format=format) for _ in range(2))
                x.requires_grad_()
                inputs = [x, *net.parameters()]
                row(args, case, samples(lambda: torch.autograd.grad(net(x), inputs, g), max(args.steps, 20), 5))
    else:
        training = args.what == "train"
        defaults = (36, 20, 96) if training else (16, 8, 64)
        args.channels, args.layers, args.batch = (
            given or default for given, default in zip((args.channels, args.layers, args.batch), defaults))
        run = Training(args).step if training else getattr(Search(args), args.order)
        what = "train" if training else f"search/{args.order}"
        case = f"{what}/c{args.channels}/l{args.layers}/b{args.batch}"
        times = samples(run, args.steps)
        row(args, case, times)
        print(f"median {statistics.median(times):.0f} ms", file=sys.stderr)


if __name__ == "__main__":
    main()
