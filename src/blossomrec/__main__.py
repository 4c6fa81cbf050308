"""``python -m blossomrec`` is the command line."""

import sys

from blossomrec.cli import main

sys.exit(main())
