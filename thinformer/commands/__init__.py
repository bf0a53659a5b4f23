"""The ``thinformer`` command: one file a command, with its arguments, its help and its handler.

`main` parses and calls; `options` has what several commands share. Nothing is computed here.
"""
