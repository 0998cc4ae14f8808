"""The act of block-sparse attention: a video whose attention is reordered, and a language model's prefill."""
