"""`python -m robench` is `robench`."""

import sys

from robench.cli import main

sys.exit(main())
