"""The demo's act on token trees: the trained model writes code, drafted and verified."""
