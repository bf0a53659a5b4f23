"""The executable specification of thinformer: slow, short, in the papers' order and notation.

Read `README.md` in this folder first. Nothing here imports `thinformer`, except `validate`,
which compares the two.
"""
