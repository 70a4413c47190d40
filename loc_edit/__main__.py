"""`python -m loc_edit`."""

import sys

from loc_edit.cli import main

sys.exit(main())
