"""A parallelised model is the model it was: what must hold around the compiler, whatever it finds."""
