"""``python -m mtlstunnel``: the same as the console command."""

import sys

from mtlstunnel.commands.console import main

sys.exit(main())
