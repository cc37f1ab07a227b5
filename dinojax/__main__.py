"""`python -m dinojax` is `dinojax`."""

import sys

from dinojax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
