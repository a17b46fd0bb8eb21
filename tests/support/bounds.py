"""Bounds in seconds that say "did not hang", never how fast: far above what the work takes alone,
so that a busy machine keeps them.
"""

NO_WAIT_S = 5.0  # what waits for nothing but the processor: milliseconds on an idle core
STORE_GIVES_UP_S = 7.0  # what waits for tiers that hang, each up to its own timeout of a second or less
STREAMS_END_S = 20.0  # what waits for Serve to stop an application's processes
MOVES_S = 30.0  # what waits for a silent replica to be taken for gone, and for another one to go on
