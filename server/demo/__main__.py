"""`python -m server.demo`, for a checkout that is not installed."""

import sys

from server.demo.run import run_demo

sys.exit(run_demo())
