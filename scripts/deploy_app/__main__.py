"""`python scripts/deploy_app -i INPUT -o OUTPUT -m MODEL`, and what an application package starts."""

import sys

from app import main

if __name__ == "__main__":
    sys.exit(main())
