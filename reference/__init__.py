"""The executable specification of thinformer: slow, short, in the papers' order and notation.

Read `README.md` in this folder first. Only `validate` imports `thinformer`: it compares the two.
"""
