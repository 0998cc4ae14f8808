"""One module per op: the public wrapper, its fake and its autograd formula."""
