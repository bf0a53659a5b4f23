"""``python -m thinformer``."""

from thinformer.commands.main import main

raise SystemExit(main())
