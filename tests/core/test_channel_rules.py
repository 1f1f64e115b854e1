"""Where channels go, an operator at a time; and that what is cut away leaves what the original with zeros computes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from cutting import half, network, same_as_masked, shown

from graphopt import channel_groups, compare


class Case(NamedTuple):
    """A network, and its groups: ``name: channels (of places side by side): members``."""

    text: str
    groups: list[str]
    opset: int = 21


CASES = {
    "conv 1d": Case(
        """(float[2,3,9] x) => (float[2,2,7] y)
        <float[6,3,3] w, float[6] b, float[2,6,1] v>
        {
            a = Conv (x, w, b)
            r = Relu (a)
            y = Conv (r, v)
        }""",
        ["a: 6: w[0], b[0], v[1]"],
    ),
    "conv 2d": Case(
        """(float[2,3,6,6] x) => (float[2,2,2,2] y)
        <float[6,3,3,3] w, float[6] b, float[2,6,3,3] v>
        {
            a = Conv (x, w, b)
            r = Sigmoid (a)
            y = Conv (r, v)
        }""",
        ["a: 6: w[0], b[0], v[1]"],
    ),
    "conv 3d": Case(
        """(float[1,3,4,4,4] x) => (float[1,2,3,3,3] y)
        <float[6,3,2,2,2] w, float[2,6,1,1,1] v>
        {
            a = Conv (x, w)
            r = Tanh (a)
            y = Conv (r, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "conv grouped": Case(
        """(float[2,3,6,6] x) => (float[2,2,4,4] y)
        <float[16,3,3,3] w, float[16] b, float[24,4,3,3] g, float[24] d, float[2,24,1,1] v>
        {
            a = Conv (x, w, b)
            r = Relu (a)
            c = Conv <group = 4, pads = [1, 1, 1, 1]> (r, g, d)
            y = Conv (c, v)
        }""",
        [
            "a: 4 of 4: w[0], b[0], g[0], d[0], v[1]",
            "a.size: 4: w[0], b[0], g[1]",
            "c.size: 6: g[0], d[0], v[1]",
        ],
    ),
    "conv depthwise": Case(
        """(float[2,3,6,6] x) => (float[2,2,4,4] y)
        <float[6,3,1,1] w, float[6,1,3,3] g, float[6] d, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            c = Conv <group = 6> (a, g, d)
            y = Conv (c, v)
        }""",
        ["a: 6: w[0], g[0], d[0], v[1]"],
    ),
    "conv multiplier": Case(
        """(float[2,3,6,6] x) => (float[2,2,4,4] y)
        <float[6,3,1,1] w, float[24,1,3,3] g, float[24] d, float[2,24,1,1] v>
        {
            a = Conv (x, w)
            c = Conv <group = 6> (a, g, d)
            y = Conv (c, v)
        }""",
        ["a: 6: w[0], g[0], d[0], v[1]", "c.size: 4: g[0], d[0], v[1]"],
    ),
    "conv transpose": Case(
        """(float[2,3,4,4] x) => (float[2,2,8,8] y)
        <float[6,3,1,1] w, float[6,4,2,2] u, float[4] b, float[2,4,1,1] v>
        {
            a = Conv (x, w)
            c = ConvTranspose <strides = [2, 2]> (a, u, b)
            y = Conv (c, v)
        }""",
        ["a: 6: w[0], u[0]", "c: 4: u[1], b[0], v[1]"],
    ),
    "conv transpose grouped": Case(
        """(float[2,3,4,4] x) => (float[2,2,8,8] y)
        <float[16,3,1,1] w, float[16,3,2,2] u, float[12] b, float[2,12,1,1] v>
        {
            a = Conv (x, w)
            c = ConvTranspose <strides = [2, 2], group = 4> (a, u, b)
            y = Conv (c, v)
        }""",
        ["a: 4 of 4: w[0], u[0], b[0], v[1]", "a.size: 4: w[0], u[0]", "c.size: 3: u[1], b[0], v[1]"],
    ),
    "gemm": Case(
        """(float[2,3] x) => (float[2,2] y)
        <float[3,6] w, float[6] b, float[2,6] v, float[2] c>
        {
            a = Gemm (x, w, b)
            r = Relu (a)
            y = Gemm <transB = 1> (r, v, c)
        }""",
        ["a: 6: w[1], b[0], v[1]"],
    ),
    "gemm transposed": Case(
        """(float[3,2] x) => (float[2,2] y)
        <float[6,3] w, float[1,6] b, float[6,2] v>
        {
            a = Gemm <transA = 1, transB = 1> (x, w, b)
            t = Transpose (a)
            y = Gemm <transA = 1> (t, v)
        }""",
        ["a: 6: w[0], b[1], v[0]"],
    ),
    "matmul constants": Case(
        """(float[4,3] x) => (float[2,5] y)
        <float[6,4] w, float[3,5] u, float[2,6] v>
        {
            a = MatMul (w, x)
            b = MatMul (a, u)
            y = MatMul (v, b)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "matmul vector": Case(
        """(float[3] x) => (float y)
        <float[3,6] w, float[6] v>
        {
            a = MatMul (x, w)
            r = Sigmoid (a)
            y = MatMul (r, v)
        }""",
        ["a: 6: w[1], v[0]"],
    ),
    "matmul activations": Case(
        """(float[2,4,3] x) => (float[2,4,4] y)
        <float[3,6] w, float[3,6] u>
        {
            q = MatMul (x, w)
            k = MatMul (x, u)
            t = Transpose <perm = [0, 2, 1]> (k)
            y = MatMul (q, t)
        }""",
        ["q: 6: w[1], u[1]"],
    ),
    "einsum": Case(
        """(float[2,4,3] x) => (float[2,4,2] y)
        <float[3,6] w, float[2,6] v>
        {
            a = Einsum <equation = "bti,io->bto"> (x, w)
            r = Relu (a)
            y = Einsum <equation = "bti,oi->bto"> (r, v)
        }""",
        ["a: 6: w[1], v[1]"],
    ),
    "einsum activations": Case(
        """(float[2,4,3] x) => (float[2,4,4] y)
        <float[3,6] w, float[3,6] u>
        {
            q = Einsum <equation = "bti,io->bto"> (x, w)
            k = MatMul (x, u)
            y = Einsum <equation = "btd,bsd->bts"> (q, k)
        }""",
        ["q: 6: w[1], u[1]"],
    ),
    "einsum implied": Case(
        """(float[2,4,3] x) => (float[2,4,2] y)
        <float[3,6] w, float[2,6] v>
        {
            a = MatMul (x, w)
            y = Einsum <equation = "...i,oi->...o"> (a, v)
        }""",
        [
            "Einsum y stays: its equation leaves something implied, or takes a diagonal",
            "MatMul a stays: Einsum y: its equation leaves something implied, or takes a diagonal",
        ],
    ),
    "batch norm": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, float[6] s, float[6] b, float[6] m, float[6] p = {1,2,3,1,2,3}, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            n = BatchNormalization (a, s, b, m, p)
            y = Conv (n, v)
        }""",
        ["a: 6: w[0], s[0], b[0], m[0], p[0], v[1]"],
    ),
    "instance norm": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, float[6] s, float[6] b, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            n = InstanceNormalization (a, s, b)
            y = Conv (n, v)
        }""",
        ["a: 6: w[0], s[0], b[0], v[1]"],
    ),
    "layer norm": Case(
        """(float[2,4,3] x) => (float[2,4,2] y)
        <float[3,6] w, float[6] s, float[6] b, float[6,2] v>
        {
            a = MatMul (x, w)
            n = LayerNormalization (a, s, b)
            y = MatMul (n, v)
        }""",
        ["a: 6: w[1], s[0], b[0], v[0]"],
    ),
    "layer norm two axes": Case(
        """(float[2,3,4,4] x) => (float[2,2,4,4] y)
        <float[6,3,1,1] w, float[4,6] s, float[4,6] b, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            t = Transpose <perm = [0, 2, 3, 1]> (a)
            n = LayerNormalization <axis = 2> (t, s, b)
            u = Transpose <perm = [0, 3, 1, 2]> (n)
            y = Conv (u, v)
        }""",
        ["a: 6: w[0], s[1], b[1], v[1]"],
    ),
    "group norm": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[16,3,1,1] w, float[16] s, float[16] b, float[2,16,1,1] v>
        {
            a = Conv (x, w)
            n = GroupNormalization <num_groups = 4> (a, s, b)
            y = Conv (n, v)
        }""",
        ["a: 4 of 4: w[0], s[0], b[0], v[1]", "a.size: 4: w[0], s[0], b[0], v[1]"],
    ),
    "rms norm": Case(
        """(float[2,4,3] x) => (float[2,4,2] y)
        <float[3,6] w, float[6] s, float[6,2] v>
        {
            a = MatMul (x, w)
            n = RMSNormalization (a, s)
            y = MatMul (n, v)
        }""",
        ["a: 6: w[1], s[0], v[0]"],
        opset=23,
    ),
    "lp norm": Case(
        """(float[2,4,3] x) => (float[2,4,2] y)
        <float[3,6] w, float[6,2] v>
        {
            a = MatMul (x, w)
            n = LpNormalization (a)
            y = MatMul (n, v)
        }""",
        ["a: 6: w[1], v[0]"],
    ),
    "mvn": Case(
        """(float[2,3,4,4] x) => (float[2,2,4,4] y)
        <float[6,3,1,1] w, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            n = MeanVarianceNormalization <axes = [1, 2, 3]> (a)
            y = Conv (n, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "lrn": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            n = LRN <size = 3> (a)
            y = Conv (n, v)
        }""",
        ["Conv a stays: LRN looks at the channels beside each"],
    ),
    "softmax off": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            s = Softmax (a)
            y = Conv (s, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "softmax on": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            s = Softmax <axis = 1> (a)
            y = Conv (s, v)
        }""",
        ["Conv a stays: Softmax s makes them sum to one"],
    ),
    "softmax 11": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, float[6,6,1,1] u, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            s = Softmax <axis = 2> (a)
            b = Conv (s, u)
            t = Softmax (b)
            y = Conv (t, v)
        }""",
        ["a: 6: w[0], u[1]", "Conv b stays: Softmax t makes them sum to one"],
        opset=11,
    ),
    "prelu": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, float[6,1,1] s, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            p = PRelu (a, s)
            y = Conv (p, v)
        }""",
        ["a: 6: w[0], s[0], v[1]"],
    ),
    "broadcasting": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, float[6,1,1] k, float[1,6,1,5] m, float[6,1,1] n = {1,2,3,1,2,3}, float[1] one,
         float[2,6,1,1] v>
        {
            a = Conv (x, w)
            b = Mul (a, k)
            c = Add (m, b)
            d = Div (c, n)
            e = Sub (d, one)
            y = Conv (e, v)
        }""",
        ["a: 6: w[0], k[0], m[1], n[0], v[1]"],
    ),
    "gate": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[8,3,1,1] w, float[4,8,1,1] d, float[4] e, float[8,4,1,1] u, float[2,8,1,1] v>
        {
            a = Conv (x, w)
            g = GlobalAveragePool (a)
            h = Conv (g, d, e)
            r = Relu (h)
            i = Conv (r, u)
            s = HardSigmoid (i)
            m = Mul (a, s)
            y = Conv (m, v)
        }""",
        ["a: 8: w[0], d[1], u[0], v[1]", "h: 4: d[0], e[0], u[1]"],
    ),
    "concat": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, float[4,3,1,1] u, float[2,13,1,1] v>
        {
            a = Conv (x, w)
            b = Conv (x, u)
            c = Concat <axis = 1> (a, x, b)
            y = Conv (c, v)
        }""",
        ["a: 6: w[0], v[1]", "b: 4: u[0], v[1]"],
    ),
    "concat other axis": Case(
        """(float[2,3,5,5] x) => (float[2,2,10,5] y)
        <float[6,3,1,1] w, float[6,3,1,1] u, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            b = Conv (x, u)
            c = Concat <axis = 2> (a, b)
            y = Conv (c, v)
        }""",
        ["a: 6: w[0], u[0], v[1]"],
    ),
    "split equal": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[12,3,1,1] w, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            b, c = Split <axis = 1, num_outputs = 2> (a)
            s = Sigmoid (c)
            m = Mul (b, s)
            y = Conv (m, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "split sizes": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[10,3,1,1] w, int64[2] sizes = {4,6}, float[2,10,1,1] v>
        {
            a = Conv (x, w)
            b, c = Split <axis = 1> (a, sizes)
            s = Relu (c)
            d = Concat <axis = 1> (s, b)
            y = Conv (d, v)
        }""",
        ["a: 10: w[0], v[1]"],
    ),
    "split attribute": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[10,3,1,1] w, float[2,10,1,1] v>
        {
            a = Conv (x, w)
            b, c = Split <axis = 1, split = [4, 6]> (a)
            d = Concat <axis = 1> (c, b)
            y = Conv (d, v)
        }""",
        ["a: 10: w[0], v[1]"],
        opset=11,
    ),
    "slice": Case(
        """(float[2,3,5,5] x) => (float[2,2,3,5] y)
        <float[10,3,1,1] w, int64[2] starts = {2,1}, int64[2] ends = {-3,4}, int64[2] axes = {1,2},
         int64[1] mid = {-5}, int64[1] far = {2147483648}, int64[1] axis = {1}, int64[1] from = {0},
         int64[1] to = {3}, int64[1] rows = {-2}, float[2,5,1,1] v>
        {
            a = Conv (x, w)
            b = Slice (a, starts, ends, axes)
            c = Slice (a, mid, far, axis)
            d = Slice (c, from, to, rows)
            e = Add (b, d)
            y = Conv (e, v)
        }""",
        ["a: 5: w[0], v[1]"],
    ),
    "slice steps": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[10,3,1,1] w, int64[1] starts = {0}, int64[1] ends = {10}, int64[1] axes = {1},
         int64[1] steps = {2}, float[2,5,1,1] v>
        {
            a = Conv (x, w)
            b = Slice (a, starts, ends, axes, steps)
            y = Conv (b, v)
        }""",
        ["Conv a stays: Slice takes every n-th"],
    ),
    "gather vector": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, int64[7] places = {-1,0,2,2,4,3,1}, float[2,7,1,1] v>
        {
            a = Conv (x, w)
            b = Gather <axis = 1> (a, places)
            y = Conv (b, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "gather scalar": Case(
        """(float[2,3,5,5] x) => (float[2,5,5] z, float[2,2,5,5] y)
        <float[6,3,1,1] w, int64 place = {-2}, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            z = Gather <axis = 1> (a, place)
            y = Conv (a, v)
        }""",
        ["a: 5: w[0], v[1]"],
    ),
    "gather negative axis": Case(
        """(float[2,4,3] x) => (float[2,4,2] y)
        <float[3,6] w, int64[4] places = {5,-2,1,0}, float[4,2] v>
        {
            a = MatMul (x, w)
            b = Gather <axis = -1> (a, places)
            y = MatMul (b, v)
        }""",
        ["a: 6: w[1], v[0]"],
    ),
    "gather matrix": Case(
        """(float[2,4,3] x) => (float[2,4,2,2] y)
        <float[3,6] w, int64[2,3] places = {0,1,2,3,4,5}, float[3,2] v>
        {
            a = MatMul (x, w)
            b = Gather <axis = 2> (a, places)
            y = MatMul (b, v)
        }""",
        ["a.size: 3: w[1], v[0]"],
    ),
    "flatten": Case(
        """(float[2,3,3,3] x) => (float[2,2] y)
        <float[6,3,1,1] w, float[54,2] v>
        {
            a = Conv (x, w)
            f = Flatten (a)
            y = Gemm (f, v)
        }""",
        ["a: 6: w[0], v[0]"],
    ),
    "reshape space": Case(
        """(float[2,3,3,3] x) => (float[2,2] y)
        <float[6,3,1,1] w, int64[2] shape = {2,54}, float[54,2] v>
        {
            a = Conv (x, w)
            r = Reshape (a, shape)
            y = MatMul (r, v)
        }""",
        ["a: 6: w[0], v[0]"],
    ),
    "reshape minus one": Case(
        """(float[2,3,3,3] x) => (float[2,9,2] y)
        <float[6,3,1,1] w, int64[3] shape = {0,-1,9}, float[6,2] v>
        {
            a = Conv (x, w)
            r = Reshape (a, shape)
            t = Transpose <perm = [0, 2, 1]> (r)
            y = MatMul (t, v)
        }""",
        ["a: 6: w[0], v[0]"],
    ),
    "reshape heads": Case(
        """(float[2,4,3] x) => (float[2,4,3,2] y)
        <float[3,12] w, int64[4] shape = {0,0,3,4}, float[4,2] v>
        {
            a = MatMul (x, w)
            r = Reshape (a, shape)
            y = MatMul (r, v)
        }""",
        ["a.size: 4: w[1], v[0]"],
    ),
    "reshape heads and back": Case(
        """(float[2,4,3] x) => (float[2,4,2] y)
        <float[3,12] w, int64[4] shape = {2,4,3,4}, float[3,1] k, int64[3] back = {2,4,12}, float[12,2] v>
        {
            a = MatMul (x, w)
            r = Reshape (a, shape)
            s = Relu (r)
            m = Mul (s, k)
            b = Reshape (m, back)
            y = MatMul (b, v)
        }""",
        ["a: 3 of 4: w[1], k[0], v[0]", "a.size: 4: w[1], v[0]"],
    ),
    "squeeze unsqueeze": Case(
        """(float[2,3,5] x) => (float[2,2] y)
        <float[6,3,1] w, int64[1] last = {2}, int64[1] first = {0}, float[6,2] v>
        {
            a = Conv (x, w)
            p = GlobalMaxPool (a)
            s = Squeeze (p, last)
            u = Unsqueeze (s, first)
            f = Squeeze (u, first)
            y = Gemm (f, v)
        }""",
        ["a: 6: w[0], v[0]"],
    ),
    "transpose": Case(
        """(float[2,5,5,3] x) => (float[2,5,5,2] y)
        <float[6,3,1,1] w, float[6] k, float[6,2] v>
        {
            c = Transpose <perm = [0, 3, 1, 2]> (x)
            a = Conv (c, w)
            t = Transpose <perm = [0, 2, 3, 1]> (a)
            b = Add (t, k)
            y = MatMul (b, v)
        }""",
        ["a: 6: w[0], k[0], v[0]"],
    ),
    "tile": Case(
        """(float[2,3,4,4] x) => (float[2,2,4,8] y)
        <float[6,3,1,1] w, int64[4] repeats = {1,2,1,2}, float[2,12,1,1] v>
        {
            a = Conv (x, w)
            b = Tile (a, repeats)
            y = Conv (b, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "tile ones": Case(
        """(float[2,1,4,4] x) => (float[2,2,4,4] y)
        <float[6,1,1,1] w, int64[4] repeats = {1,6,1,1}, float[2,6,1,1] v>
        {
            b = Tile (x, repeats)
            a = Conv (x, w)
            c = Add (a, b)
            y = Conv (c, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "expand": Case(
        """(float[2,1,4,4] x) => (float[2,2,4,4] y)
        <float[6,1,1,1] w, int64[3] shape = {6,1,1}, float[2,6,1,1] v>
        {
            b = Expand (x, shape)
            a = Conv (x, w)
            c = Mul (a, b)
            y = Conv (c, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "depth to space dcr": Case(
        """(float[2,3,4,4] x) => (float[2,2,8,8] y)
        <float[24,3,1,1] w, float[24] b, float[2,6,1,1] v>
        {
            a = Conv (x, w, b)
            d = DepthToSpace <blocksize = 2> (a)
            y = Conv (d, v)
        }""",
        ["a.size: 6: w[0], b[0], v[1]"],
    ),
    "depth to space crd": Case(
        """(float[2,3,4,4] x) => (float[2,2,8,8] y)
        <float[24,3,1,1] w, float[24] b, float[2,6,1,1] v>
        {
            a = Conv (x, w, b)
            d = DepthToSpace <blocksize = 2, mode = "CRD"> (a)
            y = Conv (d, v)
        }""",
        ["a: 6 of 4: w[0], b[0], v[1]"],
    ),
    "space to depth": Case(
        """(float[2,3,4,4] x) => (float[2,2,2,2] y)
        <float[6,3,1,1] w, float[2,24,1,1] v>
        {
            a = Conv (x, w)
            d = SpaceToDepth <blocksize = 2> (a)
            y = Conv (d, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "pad space": Case(
        """(float[2,3,4,4] x) => (float[2,2,7,6] y)
        <float[6,3,1,1] w, int64[8] pads = {0,0,1,1,0,0,2,1}, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            p = Pad (a, pads)
            y = Conv (p, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "pad channels": Case(
        """(float[2,3,4,4] x) => (float[2,2,4,4] y)
        <float[6,3,1,1] w, int64[2] pads = {2,1}, int64[1] axes = {1}, float[2,9,1,1] v>
        {
            a = Conv (x, w)
            p = Pad (a, pads, ,axes)
            y = Conv (p, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "pad reflect": Case(
        """(float[2,3,4,4] x) => (float[2,2,4,4] y)
        <float[6,3,1,1] w, int64[8] pads = {0,1,0,0,0,1,0,0}, float[2,8,1,1] v>
        {
            a = Conv (x, w)
            p = Pad <mode = "reflect"> (a, pads)
            y = Conv (p, v)
        }""",
        ["Conv a stays: Pad repeats or cuts what lies along it"],
    ),
    "resize scales": Case(
        """(float[2,3,4,4] x) => (float[2,2,8,8] y)
        <float[6,3,1,1] w, float[4] scales = {1,1,2,2}, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            r = Resize (a, , scales)
            y = Conv (r, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "resize sizes": Case(
        """(float[2,3,4,4] x) => (float[2,2,6,5] y)
        <float[6,3,1,1] w, int64[4] sizes = {2,6,6,5}, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            r = Resize <mode = "linear"> (a, , , sizes)
            y = Conv (r, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "pools": Case(
        """(float[2,3,8,8] x) => (float[2,2,1,1] y)
        <float[6,3,1,1] w, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            m = MaxPool <kernel_shape = [2, 2]> (a)
            n = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (m)
            l = LpPool <kernel_shape = [2, 2]> (n)
            g = GlobalAveragePool (l)
            y = Conv (g, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "mean of channels": Case(
        """(float[2,3,4,4] x) => (float[2,2,4,4] y)
        <float[6,3,1,1] w, int64[1] axes = {1}, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            m = ReduceMean (a, axes)
            d = Sub (a, m)
            y = Conv (d, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "max of channels": Case(
        """(float[2,3,4,4] x) => (float[2,2,4,4] y)
        <float[6,3,1,1] w, int64[1] axes = {-3}, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            m = ReduceMax (a, axes)
            d = Sub (a, m)
            y = Conv (d, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "mean of space": Case(
        """(float[2,3,4,4] x) => (float[2,2] y)
        <float[6,3,1,1] w, int64[2] axes = {2,3}, float[6,2] v>
        {
            a = Conv (x, w)
            m = ReduceMean <keepdims = 0> (a, axes)
            y = MatMul (m, v)
        }""",
        ["a: 6: w[0], v[0]"],
    ),
    "l2 norm of all": Case(
        """(float[2,3,4,4] x) => (float[1,1,1,1] z, float[2,2,4,4] y)
        <float[6,3,1,1] w, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            z = ReduceL2 (a)
            y = Conv (a, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "arg max of channels": Case(
        """(float[2,3,4,4] x) => (int64[2,1,4,4] z, float[2,2,4,4] y)
        <float[6,3,1,1] w, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            z = ArgMax <axis = 1> (a)
            y = Conv (a, v)
        }""",
        ["Conv a stays: ArgMax gives places along it"],
    ),
    "arg max of space": Case(
        """(float[2,3,4,4] x) => (float[2,2,4] y)
        <float[6,3,1,1] w, float[2,6,1] v>
        {
            a = Conv (x, w)
            i = ArgMax <axis = -1, keepdims = 0> (a)
            f = Cast <to = 1> (i)
            y = Conv (f, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "top k of space": Case(
        """(float[2,3,4,4] x) => (float[2,2,4,2] y)
        <float[6,3,1,1] w, int64[1] k = {2}, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            t, i = TopK (a, k)
            y = Conv (t, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "top k of channels": Case(
        """(float[2,3,4,4] x) => (float[2,2,4,4] y)
        <float[6,3,1,1] w, int64[1] k = {4}, float[2,4,1,1] v>
        {
            a = Conv (x, w)
            t, i = TopK <axis = 1> (a, k)
            y = Conv (t, v)
        }""",
        ["Conv a stays: TopK works along it"],
    ),
    "cum sum": Case(
        """(float[2,3,4,4] x) => (float[2,2,4,4] y)
        <float[6,3,1,1] w, int64 axis = {3}, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            t = CumSum (a, axis)
            y = Conv (t, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "where by a constant": Case(
        """(float[2,3,4,4] x) => (float[2,2,4,4] y)
        <float[4,3,1,1] w, bool[4,1,1] mask = {0,1,1,0}, float[4,1,1] u, float[2,4,1,1] v>
        {
            a = Conv (x, w)
            s = Where (mask, a, u)
            y = Conv (s, v)
        }""",
        ["a: 4: w[0], mask[0], u[0], v[1]"],
    ),
    "where": Case(
        """(float[2,3,4,4] x, bool[2,1,4,4] c) => (float[2,2,4,4] y)
        <float[6,3,1,1] w, float[6,3,1,1] u, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            b = Conv (x, u)
            s = Where (c, a, b)
            y = Conv (s, v)
        }""",
        ["a: 6: w[0], u[0], v[1]"],
    ),
    "attention written out": Case(
        """(float[2,5,3] x) => (float[2,5,2] y)
        <float[3,12] wq, float[3,12] wk, float[3,15] wv, float[12] bq, int64[4] heads = {2,5,3,4},
         int64[4] keys = {2,5,3,-1}, float root, int64[3] join = {2,5,15}, float[15,2] wo>
        {
            q = MatMul (x, wq)
            k = MatMul (x, wk)
            v = MatMul (x, wv)
            qb = Add (q, bq)
            qh = Reshape (qb, heads)
            kh = Reshape (k, keys)
            vh = Reshape (v, keys)
            qt = Transpose <perm = [0, 2, 1, 3]> (qh)
            kt = Transpose <perm = [0, 2, 3, 1]> (kh)
            vt = Transpose <perm = [0, 2, 1, 3]> (vh)
            s = MatMul (qt, kt)
            d = Div (s, root)
            p = Softmax (d)
            o = MatMul (p, vt)
            t = Transpose <perm = [0, 2, 1, 3]> (o)
            m = Reshape (t, join)
            y = MatMul (m, wo)
        }""",
        [
            "q: 3 of 4: wq[1], wk[1], wv[1], bq[0], wo[0]",
            "q.size: 4: wq[1], wk[1], bq[0]",
            "v.size: 5: wv[1], wo[0]",
        ],
    ),
    "attention written out grouped": Case(
        """(float[2,5,3] x) => (float[2,5,2] y)
        <float[3,48] wq, float[3,12] wk, float[3,12] wv, float[48] bq, int64[4] heads = {2,5,12,4},
         int64[4] keys = {2,5,3,4}, int64[1] two = {2}, int64[5] ks = {2,3,4,4,5},
         int64[4] kj = {2,12,4,5}, int64[5] vs = {2,3,4,5,4}, int64[4] vj = {2,12,5,4}, float root,
         int64[3] join = {2,5,48}, float[48,2] wo>
        {
            q = MatMul (x, wq)
            k = MatMul (x, wk)
            v = MatMul (x, wv)
            qb = Add (q, bq)
            qh = Reshape (qb, heads)
            kh = Reshape (k, keys)
            vh = Reshape (v, keys)
            qt = Transpose <perm = [0, 2, 1, 3]> (qh)
            kt = Transpose <perm = [0, 2, 3, 1]> (kh)
            vt = Transpose <perm = [0, 2, 1, 3]> (vh)
            ku = Unsqueeze (kt, two)
            ke = Expand (ku, ks)
            kr = Reshape (ke, kj)
            vu = Unsqueeze (vt, two)
            ve = Expand (vu, vs)
            vr = Reshape (ve, vj)
            s = MatMul (qt, kr)
            d = Div (s, root)
            p = Softmax (d)
            o = MatMul (p, vr)
            t = Transpose <perm = [0, 2, 1, 3]> (o)
            m = Reshape (t, join)
            y = MatMul (m, wo)
        }""",
        [
            "q: 3 of 16: wq[1], wk[1], wv[1], bq[0], wo[0]",
            "q.2: 4 of 4: wq[1], bq[0], wo[0]",
            "q.size: 4: wq[1], wk[1], bq[0]",
            "v.size: 4: wv[1], wo[0]",
        ],
    ),
    "attention 23": Case(
        """(float[2,5,3] x) => (float[2,5,2] y)
        <float[3,12] wq, float[3,12] wk, float[3,12] wv, float[12,2] wo>
        {
            q = MatMul (x, wq)
            k = MatMul (x, wk)
            v = MatMul (x, wv)
            a = Attention <q_num_heads = 3, kv_num_heads = 3> (q, k, v)
            y = MatMul (a, wo)
        }""",
        ["q: 3 of 4: wq[1], wk[1], wv[1], wo[0]", "q.size: 4: wq[1], wk[1]", "v.size: 4: wv[1], wo[0]"],
        opset=23,
    ),
    "attention 23 grouped": Case(
        """(float[2,5,3] x) => (float[2,5,2] y)
        <float[3,24] wq, float[3,12] wk, float[3,12] wv, float[24,2] wo>
        {
            q = MatMul (x, wq)
            k = MatMul (x, wk)
            v = MatMul (x, wv)
            a = Attention <q_num_heads = 6, kv_num_heads = 3, is_causal = 1> (q, k, v)
            y = MatMul (a, wo)
        }""",
        ["q: 3 of 8: wq[1], wk[1], wv[1], wo[0]", "q.size: 4: wq[1], wk[1]", "v.size: 4: wv[1], wo[0]"],
        opset=23,
    ),
    "attention 23 4d": Case(
        """(float[2,5,3] x) => (float[2,5,2] y)
        <float[3,12] wq, float[3,12] wk, float[3,12] wv, int64[4] heads = {2,5,3,4}, float[1,3,5,5] mask,
         int64[3] join = {2,5,-1}, float[12,2] wo>
        {
            q = MatMul (x, wq)
            k = MatMul (x, wk)
            v = MatMul (x, wv)
            qh = Reshape (q, heads)
            kh = Reshape (k, heads)
            vh = Reshape (v, heads)
            qt = Transpose <perm = [0, 2, 1, 3]> (qh)
            kt = Transpose <perm = [0, 2, 1, 3]> (kh)
            vt = Transpose <perm = [0, 2, 1, 3]> (vh)
            a = Attention (qt, kt, vt, mask)
            t = Transpose <perm = [0, 2, 1, 3]> (a)
            m = Reshape (t, join)
            y = MatMul (m, wo)
        }""",
        [
            "q: 3 of 4: wq[1], wk[1], wv[1], mask[1], wo[0]",
            "q.size: 4: wq[1], wk[1]",
            "v.size: 4: wv[1], wo[0]",
        ],
        opset=23,
    ),
    "multi head": Case(
        """(float[2,5,3] x) => (float[2,5,2] y)
        <float[3,12] wq, float[3,12] wk, float[3,12] wv, float[36] b, float[12,2] wo>
        {
            q = MatMul (x, wq)
            k = MatMul (x, wk)
            v = MatMul (x, wv)
            a = com.microsoft.MultiHeadAttention <num_heads = 3> (q, k, v, b)
            y = MatMul (a, wo)
        }""",
        [
            "q: 3 of 4: wq[1], wk[1], wv[1], b[0], wo[0]",
            "q.size: 4: wq[1], wk[1], b[0]",
            "v.size: 4: wv[1], b[0], wo[0]",
        ],
    ),
    "attention projected": Case(
        """(float[2,5,3] x) => (float[2,5,2] y)
        <float[3,90] w, float[90] b, float[30,2] wo>
        {
            a = com.microsoft.Attention <num_heads = 3> (x, w, b)
            y = MatMul (a, wo)
        }""",
        ["a: 3 of 10: w[1], b[0], wo[0]", "a.size: 20: w[1], b[0], wo[0]"],
    ),
    "grouped query": Case(
        """(float[2,5,3] x) => (float[2,5,2] y)
        <float[3,48] wq, float[3,24] wk, float[3,24] wv, int32[2] lens = {4,4}, int32 total = {5},
         float[48,2] wo>
        {
            q = MatMul (x, wq)
            k = MatMul (x, wk)
            v = MatMul (x, wv)
            a, kp, vp = com.microsoft.GroupQueryAttention <num_heads = 6, kv_num_heads = 3> (q, k, v, , , lens, total)
            y = MatMul (a, wo)
        }""",
        ["q: 3 of 16: wq[1], wk[1], wv[1], wo[0]"],
    ),
    "skip layer norm": Case(
        """(float[2,5,3] x) => (float[2,5,2] y)
        <float[3,6] w, float[3,6] u, float[6] k, float[6] c, float[6] d, float[6,2] v>
        {
            a = MatMul (x, w)
            b = MatMul (x, u)
            n, , , s = com.microsoft.SkipLayerNormalization (a, b, k, c, d)
            m = Add (n, s)
            y = MatMul (m, v)
        }""",
        ["a: 6: w[1], u[1], k[0], c[0], d[0], v[0]"],
    ),
    "skip rms norm": Case(
        """(float[2,5,3] x) => (float[2,5,2] y)
        <float[3,6] w, float[3,6] u, float[6] k, float[6] d, float[6,2] v>
        {
            a = MatMul (x, w)
            b = MatMul (x, u)
            n = com.microsoft.SkipSimplifiedLayerNormalization (a, b, k, d)
            y = MatMul (n, v)
        }""",
        ["a: 6: w[1], u[1], k[0], d[0], v[0]"],
    ),
    "bias gelu": Case(
        """(float[2,5,3] x) => (float[2,5,2] y)
        <float[3,6] w, float[6] k, float[6,2] v>
        {
            a = MatMul (x, w)
            b = com.microsoft.BiasGelu (a, k)
            y = MatMul (b, v)
        }""",
        ["a: 6: w[1], k[0], v[0]"],
    ),
    "embedding": Case(
        """(int64[2,5] x) => (float[2,5,2] y)
        <float[7,6] table, float[6,6] w, float[6,2] v>
        {
            a = Gather (table, x)
            b = MatMul (a, w)
            c = Add (a, b)
            y = MatMul (c, v)
        }""",
        ["a: 6: table[1], w[0], w[1], v[0]"],
    ),
    "lstm": Case(
        """(float[5,2,3] x) => (float[5,2,2] y)
        <float[2,16,3] w, float[2,16,4] r, float[2,32] b, float[2,2,4] h0, float[2,2,4] c0,
         int64[3] shape = {0,0,-1}, float[8,2] v>
        {
            a, h, c = LSTM <hidden_size = 4, direction = "bidirectional"> (x, w, r, b, , h0, c0)
            t = Transpose <perm = [0, 2, 1, 3]> (a)
            m = Reshape (t, shape)
            y = MatMul (m, v)
        }""",
        ["a: 4: w[1], r[1], r[2], b[1], h0[2], c0[2], v[0]"],
    ),
    "lstm peepholes": Case(
        """(float[5,2,3] x) => (float[1,2,2] y)
        <float[1,16,3] w, float[1,16,4] r, float[1,32] b, float[1,2,4] h0, float[1,2,4] c0, float[1,12] p,
         float[4,2] v>
        {
            a, h, c = LSTM <hidden_size = 4> (x, w, r, b, , h0, c0, p)
            s = Add (h, c)
            y = MatMul (s, v)
        }""",
        ["a: 4: w[1], r[1], r[2], b[1], h0[2], c0[2], p[1], v[0]"],
    ),
    "gru": Case(
        """(float[5,2,3] x) => (float[5,2,2] y)
        <float[3,6] u, float[1,12,6] w, float[1,12,4] r, float[1,24] b, int64[1] one = {1}, float[4,2] v>
        {
            e = MatMul (x, u)
            a, h = GRU <hidden_size = 4, linear_before_reset = 1> (e, w, r, b)
            s = Squeeze (a, one)
            y = MatMul (s, v)
        }""",
        ["e: 6: u[1], w[2]", "a: 4: w[1], r[1], r[2], b[1], v[0]"],
    ),
    "rnn": Case(
        """(float[5,2,3] x) => (float[1,2,2] y)
        <float[1,4,3] w, float[1,4,4] r, float[4,2] v>
        {
            a, h = RNN <hidden_size = 4, direction = "reverse"> (x, w, r)
            y = MatMul (h, v)
        }""",
        ["a: 4: w[1], r[1], r[2], v[0]"],
    ),
    "rnn batch first": Case(
        """(float[2,5,3] x) => (float[2,1,2] y)
        <float[1,4,3] w, float[1,4,4] r, float[4,2] v>
        {
            a, h = RNN <hidden_size = 4, layout = 1> (x, w, r)
            y = MatMul (h, v)
        }""",
        ["RNN a stays: its batch comes first"],
    ),
    "shared vector": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, float[6] b, float[6,6,1,1] u, float[2,6,1,1] v>
        {
            a = Conv (x, w, b)
            r = Relu (a)
            c = Conv (r, u, b)
            y = Conv (c, v)
        }""",
        ["a: 6: w[0], b[0], u[1]", "c: 6: u[0], b_of_c[0], v[1]"],
    ),
    "shared matrix": Case(
        """(float[2,4,3] x) => (float[2,4,2] y)
        <float[3,6] u, float[6,6] w, float[6,2] v>
        {
            a = MatMul (x, u)
            r = Relu (a)
            b = MatMul (r, w)
            s = Relu (b)
            c = MatMul (s, w)
            y = MatMul (c, v)
        }""",
        ["a: 6: u[1], w[0], w[1], v[0]"],
    ),
    "tied embedding": Case(
        """(int64[2,5] x) => (float[2,5,7] y)
        <float[7,6] table, float[6,6] w>
        {
            a = Gather (table, x)
            b = MatMul (a, w)
            r = Relu (b)
            t = Transpose <perm = [1, 0]> (table)
            y = MatMul (r, t)
        }""",
        ["a: 6: table[1], w[0], w[1]"],
    ),
    "captured": Case(
        """(float[2,3,5,5] x, bool c) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, float[6,6,1,1] u, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            b = Conv (a, u)
            d = If (c) <
                then_branch = g () => (float[2,6,5,5] p) { p = Identity (b) },
                else_branch = h () => (float[2,6,5,5] q) { q = Neg (b) }
            >
            y = Conv (d, v)
        }""",
        ["a: 6: w[0], u[1]", "Conv b stays: the graph in a node reads b"],
    ),
    "output": Case(
        """(float[2,3] x) => (float[2,6] z, float[2,2] y)
        <float[3,4] w, float[4,6] u, float[6,2] v>
        {
            a = MatMul (x, w)
            z = MatMul (a, u)
            y = MatMul (z, v)
        }""",
        ["a: 4: w[1], u[0]"],
    ),
    "no rule": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, float[6,6,1,1] u, float[6,6,1,1] t, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            b = Conv (a, u)
            d = Trilu (b)
            e = Conv (d, t)
            y = Conv (e, v)
        }""",
        [
            "a: 6: w[0], u[1]",
            "e: 6: t[0], v[1]",
            "Trilu d stays: no rule says what Trilu does to channels",
            "Conv b stays: Trilu d: no rule says what Trilu does to channels",
        ],
    ),
    "quantized per tensor": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <int8[6,3,1,1] w, int32[6] b, int8[2,6,1,1] v, float k = {0.1}, float l = {0.01}, float m = {0.001},
         int8 zero = {0}, uint8 middle = {128}>
        {
            wf = DequantizeLinear (w, l, zero)
            bf = DequantizeLinear (b, m)
            a = Conv (x, wf, bf)
            q = QuantizeLinear (a, k, middle)
            d = DequantizeLinear (q, k, middle)
            vf = DequantizeLinear (v, l, zero)
            y = Conv (d, vf)
        }""",
        ["a: 6: w[0], b[0], v[1]"],
    ),
    "quantized per channel": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <int8[6,3,1,1] w, int32[6] b, int8[2,6,1,1] v, float[6] l = {0.01,0.02,0.03,0.01,0.02,0.03},
         float[6] m = {0.001,0.002,0.003,0.001,0.002,0.003}, int8[6] zero = {0,1,2,0,-1,-2},
         float[2] r = {0.01,0.02}>
        {
            wf = DequantizeLinear <axis = 0> (w, l, zero)
            bf = DequantizeLinear <axis = 0> (b, m)
            a = Conv (x, wf, bf)
            vf = DequantizeLinear <axis = 0> (v, r)
            y = Conv (a, vf)
        }""",
        ["a: 6: w[0], l[0], zero[0], b[0], m[0], v[1]"],
    ),
    "quantized by channels that are read": Case(
        """(float[2,4,3] x) => (float[2,4,2] y)
        <float[3,6] w, float[6] k = {0.1,0.2,0.3,0.1,0.2,0.3}, int8[6] zero = {0,1,2,0,-1,-2}, float[6,2] v>
        {
            a = MatMul (x, w)
            q = QuantizeLinear <axis = 2> (a, k, zero)
            d = DequantizeLinear <axis = 2> (q, k, zero)
            y = MatMul (d, v)
        }""",
        ["a: 6: w[1], k[0], zero[0], k_of_d[0], zero_of_d[0], v[0]"],
    ),
    "quantized in blocks": Case(
        """(float[2,4,3] x) => (float[2,4,2] y)
        <float[3,6] w, int8[6,2] v, float[3,2] k>
        {
            a = MatMul (x, w)
            vf = DequantizeLinear <axis = 0, block_size = 2> (v, k)
            y = MatMul (a, vf)
        }""",
        [
            "DequantizeLinear vf stays: a scale serves a block of places",
            "MatMul a stays: DequantizeLinear vf: a scale serves a block of places",
        ],
    ),
    "fused conv": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, float[6] b, float[6,3,1,1] u, float[2,6,1,1] v, float[2,6,5,5] c>
        {
            a = Conv (x, w)
            c = com.microsoft.FusedConv <activation = "Relu"> (x, u, b, a)
            y = Conv (c, v)
        }""",
        ["a: 6: w[0], u[0], b[0], v[1]"],
    ),
    "fused matmul": Case(
        """(float[2,4,3] x) => (float[2,4,2] y)
        <float[3,6] w, float[2,6] v>
        {
            a = MatMul (x, w)
            y = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (a, v)
        }""",
        ["a: 6: w[1], v[1]"],
    ),
    "rotary embedding": Case(
        """(float[2,5,3] x) => (float[2,5,2] y)
        <float[3,24] wq, float[3,24] wk, float[3,24] wv, float[5,2] c, float[5,2] s, float[24,2] wo,
         int64[2,5] at = {0,1,2,3,4,0,1,2,3,4}>
        {
            q = MatMul (x, wq)
            k = MatMul (x, wk)
            v = MatMul (x, wv)
            qr = RotaryEmbedding <num_heads = 6> (q, c, s, at)
            kr = RotaryEmbedding <num_heads = 6> (k, c, s, at)
            a = Attention <q_num_heads = 6, kv_num_heads = 6> (qr, kr, v)
            y = MatMul (a, wo)
        }""",
        ["q: 6 of 4: wq[1], wk[1], wv[1], wo[0]", "v.size: 4: wv[1], wo[0]"],
        opset=23,
    ),
    "attention with a cache": Case(
        """(float[2,1,3] x) => (float[2,1,2] y)
        <float[3,12] wq, float[3,12] wk, float[3,12] wv, float[2,3,3,4] ck, float[2,3,3,4] cv, float[12,2] wo>
        {
            q = MatMul (x, wq)
            k = MatMul (x, wk)
            v = MatMul (x, wv)
            a, pk, pv = Attention <q_num_heads = 3, kv_num_heads = 3> (q, k, v, , ck, cv)
            y = MatMul (a, wo)
        }""",
        [
            "q: 3 of 4: wq[1], wk[1], wv[1], ck[1], cv[1], wo[0]",
            "q.size: 4: wq[1], wk[1], ck[3]",
            "v.size: 4: wv[1], cv[3], wo[0]",
        ],
        opset=23,
    ),
    "shape arithmetic": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, int64[1] two = {2}, int64[1] all = {-1}, float one = {1}, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            s = Shape (a)
            o = ConstantOfShape (s)
            b = Add (a, o)
            n = Shape <end = 2> (b)
            f = Concat <axis = 0> (n, all)
            r = Reshape (b, f)
            t = Expand (one, s)
            m = Add (a, t)
            c = Reshape (r, s)
            e = Mul (m, c)
            y = Conv (e, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "heads in a computed shape": Case(
        """(float[B,S,3] x) => (float[B,S,2] y)
        <float[3,12] w, int64[1] three = {3}, int64[1] four = {4}, int64[1] rest = {-1}, float[12,2] v>
        {
            a = MatMul (x, w)
            bs = Shape <end = 2> (a)
            shape = Concat <axis = 0> (bs, three, four)
            r = Reshape (a, shape)
            t = Tanh (r)
            back = Concat <axis = 0> (bs, rest)
            m = Reshape (t, back)
            y = MatMul (m, v)
        }""",
        ["a: 3 of 4: w[1], v[0]", "a.size: 4: w[1], v[0]"],
    ),
    "an expanded vector of a computed shape": Case(
        """(float[B,S,3] x) => (float[B,S,2] y)
        <float[3,6] w, int64[1] six = {6}, float[1] k, float[6,2] v>
        {
            a = MatMul (x, w)
            bs = Shape <end = 2> (x)
            shape = Concat <axis = 0> (bs, six)
            e = Expand (k, shape)
            m = Add (a, e)
            y = MatMul (m, v)
        }""",
        ["a: 6: w[1], v[0]"],
    ),
    "weights that the graph in a node reads": Case(
        """(float[2,3] x, bool c) => (float[2,3] y)
        <float[3,4] w, float[4,3] u>
        {
            a = MatMul (x, w)
            b = MatMul (a, u)
            d = If (c) <
                then_branch = g () => (float[2,4] p) { p = MatMul (x, w) },
                else_branch = h () => (float[2,4] q) { n = MatMul (x, w) q = Neg (n) }
            >
            e = MatMul (d, u)
            y = Add (b, e)
        }""",
        ["MatMul a stays: it is no axis of channels"],
    ),
    "a size that is read": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            s = Shape <start = 1, end = 2> (a)
            f = Cast <to = 1> (s)
            b = Div (a, f)
            y = Conv (b, v)
        }""",
        ["Conv a stays: Shape s reads how many there are; simplify goes before"],
    ),
    "upsample": Case(
        """(float[2,3,5,5] x) => (float[2,2,10,10] y)
        <float[6,3,1,1] w, float[4] scales = {1,1,2,2}, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            u = Upsample (a, scales)
            y = Conv (u, v)
        }""",
        ["a: 6: w[0], v[1]"],
        opset=9,
    ),
    "log softmax and hardmax": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            s = LogSoftmax (a)
            h = Hardmax <axis = 2> (s)
            y = Conv (h, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "clip dropout cast": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[6,3,1,1] w, float low = {-1}, float high = {1}, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            c = Clip (a, low, high)
            d, mask = Dropout (c)
            e = Cast <to = 11> (d)
            i = Identity (e)
            f = Cast <to = 1> (i)
            y = Conv (f, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "constant nodes": Case(
        """(float[2,4,3] x) => (float[2,4,2] y)
        <float[3,4] w>
        {
            a = MatMul (x, w)
            b = Constant <value = float[4] {1.0,2.0,3.0,4.0}> ()
            c = Add (a, b)
            v = Constant <value = float[4,2] {1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0}> ()
            y = MatMul (c, v)
        }""",
        ["a: 4: w[1], b[0], v[0]"],
    ),
    "min max pow": Case(
        """(float[2,4,3] x) => (float[2,4,2] y)
        <float[3,6] w, float[3,6] u, float[6] k, float[6] e = {1,2,3,1,2,3}, float[6,2] v>
        {
            a = MatMul (x, w)
            b = MatMul (x, u)
            m = Max (a, b, k)
            n = Sum (m, a)
            l = Abs (n)
            p = Pow (l, e)
            y = MatMul (p, v)
        }""",
        ["a: 6: w[1], u[1], k[0], e[0], v[0]"],
    ),
    "activations divided": Case(
        """(float[2,4,3] x) => (float[2,4,2] y)
        <float[3,6] w, float[3,6] u, float[6,2] v>
        {
            a = MatMul (x, w)
            b = MatMul (x, u)
            d = Div (a, b)
            y = MatMul (d, v)
        }""",
        ["a: 6: w[1], u[1], v[0]"],
    ),
    "logarithms": Case(
        """(float[2,4,3] x) => (float[2,4,2] y)
        <float[3,6] w, float[6,2] v>
        {
            a = MatMul (x, w)
            b = Abs (a)
            c = Log (b)
            d = Reciprocal (b)
            e = Add (c, d)
            y = MatMul (e, v)
        }""",
        ["a: 6: w[1], v[0]"],
    ),
    "split without sizes": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[12,3,1,1] w, float[2,12,1,1] v>
        {
            a = Conv (x, w)
            b, c = Split <axis = 1> (a)
            s = Sigmoid (c)
            d = Concat <axis = 1> (s, b)
            y = Conv (d, v)
        }""",
        ["a: 12: w[0], v[1]"],
        opset=13,
    ),
    "split into three": Case(
        """(float[2,4,3] x) => (float[2,4,4] y)
        <float[3,18] w, int64[1] last = {2}>
        {
            a = MatMul (x, w)
            q, k, v = Split <axis = -1, num_outputs = 3> (a)
            t = Transpose <perm = [0, 2, 1]> (k)
            s = MatMul (q, t)
            n = ReduceL2 <keepdims = 1> (v, last)
            y = Div (s, n)
        }""",
        ["a: 12: w[1]"],
    ),
    "weights by batch": Case(
        """(float[4,5,3] x) => (float[4,5,2] y)
        <float[4,3,6] w, float[4,1,6] b, float[4,6,2] v>
        {
            a = MatMul (x, w)
            c = Add (a, b)
            y = MatMul (c, v)
        }""",
        ["a: 6: w[2], b[2], v[1]"],
    ),
    "a token in front and places": Case(
        """(float[2,4,3] x) => (float[2,2] y)
        <float[3,6] w, float[2,1,6] token, float[1,5,6] places, int64 zero = {0}, float[6,2] v>
        {
            a = MatMul (x, w)
            t = Concat <axis = 1> (token, a)
            p = Add (t, places)
            f = Gather <axis = 1> (p, zero)
            y = MatMul (f, v)
        }""",
        ["a: 6: w[1], token[2], places[2], v[0]"],
    ),
    "attributes of opset 9": Case(
        """(float[2,3,4,4] x) => (float[2,2] y)
        <float[6,3,1,1] w, float[6] s, float[6] b, float[6] m, float[6] p = {1,2,1,2,1,2}, float[6,2] v,
         float[2] c>
        {
            a = Conv (x, w)
            n = BatchNormalization (a, s, b, m, p)
            q = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1]> (n)
            l = Clip <min = -1.0, max = 1.0> (q)
            r = ReduceMean <axes = [2], keepdims = 1> (l)
            t = ReduceSum <axes = [3], keepdims = 1> (r)
            z = Squeeze <axes = [2, 3]> (t)
            d = Dropout (z)
            y = Gemm (d, v, c)
        }""",
        ["a: 6: w[0], s[0], b[0], m[0], p[0], v[0]"],
        opset=9,
    ),
    "group norm with scales of groups": Case(
        """(float[2,3,5,5] x) => (float[2,2,5,5] y)
        <float[8,3,1,1] w, float[4] s, float[4] b, float[2,8,1,1] v, float[2,8,5,5] n>
        {
            a = Conv (x, w)
            n = GroupNormalization <num_groups = 4> (a, s, b)
            y = Conv (n, v)
        }""",
        [
            "GroupNormalization n stays: its scale is for groups",
            "Conv a stays: GroupNormalization n: its scale is for groups",
        ],
        opset=18,
    ),
    "half precision": Case(
        """(float16[2,3,5,5] x) => (float16[2,2,5,5] y)
        <float16[6,3,1,1] w, float16[6] b, float16[2,6,1,1] v, int64[1] axis = {1}>
        {
            a = Conv (x, w, b)
            m = ReduceMean (a, axis)
            s = Sub (a, m)
            y = Conv (s, v)
        }""",
        ["a: 6: w[0], b[0], v[1]"],
    ),
    "double precision": Case(
        """(double[2,4,3] x) => (double[2,4,2] y)
        <double[3,6] w, int64[1] last = {-1}, double[6,2] v>
        {
            a = MatMul (x, w)
            m = ReduceMean (a, last)
            s = Sub (a, m)
            d = Reciprocal (s)
            y = MatMul (d, v)
        }""",
        ["a: 6: w[1], v[0]"],
    ),
    "mean and deviation that are read": Case(
        """(float[2,4,3] x) => (float[2,4,2] y)
        <float[3,6] w, float[6] s, float[6] b, float[6,2] v>
        {
            a = MatMul (x, w)
            n, mean, deviation = LayerNormalization (a, s, b)
            d = Mul (n, deviation)
            e = Add (d, mean)
            y = MatMul (e, v)
        }""",
        ["a: 6: w[1], s[0], b[0], v[0]"],
    ),
    "resize of chosen axes": Case(
        """(float[2,3,4,4] x) => (float[2,2,8,6] y)
        <float[6,3,1,1] w, int64[2] sizes = {8,6}, float[2,6,1,1] v>
        {
            a = Conv (x, w)
            r = Resize <axes = [2, 3], mode = "cubic"> (a, , , sizes)
            y = Conv (r, v)
        }""",
        ["a: 6: w[0], v[1]"],
    ),
    "three operands in one einsum": Case(
        """(float[2,4,3] x) => (float[2,4,4] y)
        <float[3,6] w, float[3,5] u, float[6,5] m>
        {
            q = MatMul (x, w)
            k = MatMul (x, u)
            y = Einsum <equation = "btd,de,bse->bts"> (q, m, k)
        }""",
        ["q: 6: w[1], m[0]", "k: 5: u[1], m[1]"],
    ),
    "an einsum that sums one operand": Case(
        """(float[2,4,3] x) => (float[2,4] y)
        <float[3,6] w, float[6] b>
        {
            a = MatMul (x, w)
            c = Add (a, b)
            s = Sigmoid (c)
            y = Einsum <equation = "btd->bt"> (s)
        }""",
        ["a: 6: w[1], b[0]"],
    ),
    "operands that only the second has": Case(
        """(float[2,4,3] x, float[2,4] z) => (float[2,4] y)
        <float[3,6] w, float[6] b>
        {
            a = MatMul (x, w)
            c = Add (a, b)
            s = Sigmoid (c)
            y = Einsum <equation = "bt,btd->bt"> (z, s)
        }""",
        ["a: 6: w[1], b[0]"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_an_operator_does_to_channels(name: str) -> None:
    case = CASES[name]
    model = network(case.text, case.opset)
    groups = channel_groups(model)
    assert [line for line in shown(groups) if not line.endswith("is an output of the model")] == case.groups
    for seed in range(3 if groups.groups else 0):
        pruned = same_as_masked(model, groups, half(groups, np.random.default_rng(seed)))
        assert not compare(model, pruned).ok, "nothing of what was cut away mattered"
        left = [(group.channels + 1) // 2 for group in groups]
        assert [group.channels for group in channel_groups(pruned)] == left
