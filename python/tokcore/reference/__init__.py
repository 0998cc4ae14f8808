"""What every op means, in plain PyTorch: the specification that kernels are tested against. One module per op."""
