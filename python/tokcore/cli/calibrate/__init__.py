"""``tokcore calibrate``: from samples of attention to a plan, a table, pictures and CSV."""
