"""``tokcore bench``: interleaved timing of an op beside its peers."""
