"""What the command line does: load a model by name, time it, look at the installation."""
