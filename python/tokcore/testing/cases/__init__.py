"""One module per op with its case table, ``TABLE``."""
