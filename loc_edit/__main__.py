"""The program `python -m loc_edit`, which is `loc-edit` by another name."""

import sys

from loc_edit.cli.main import main

sys.exit(main())
