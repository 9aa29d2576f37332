"""`python -m amp_explore`."""

import sys

from amp_explore.cli import main

sys.exit(main())
