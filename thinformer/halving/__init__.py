"""The algorithm as data and as scalar steps, for every body; no loop over points is here.

- `schedule`: what will be halved, in which buckets: a pure function of (n, size, delta).
- `draws`: uniforms and coins, a pure function of (seed, head, round, position).
- `steps`: the swap threshold and the decision of one pair of points.
- `problem`: arrays of any layout as windows on their memory, one problem a head or point set.
- `plan`: which schedule a compression runs, and its draws as rows.
"""
