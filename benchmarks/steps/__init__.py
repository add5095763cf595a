"""What a request costs each processor: step, decoding and encoding alone, on one thread, without a broker."""
