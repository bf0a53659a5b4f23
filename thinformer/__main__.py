"""``python -m thinformer``."""

from thinformer.cli import main

raise SystemExit(main())
