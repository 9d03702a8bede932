"""`python -m benchmarks.speed`: diabolo beside the article's script, eager tensors and pythae, in interleaved rounds."""
