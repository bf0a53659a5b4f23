"""The ``thinformer`` command: one file a command, with its arguments, help and handler."""
