"""A worker that never answers."""

import time

time.sleep(600)
