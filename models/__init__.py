"""Recurrent models written as plain loops over time, each as its paper writes it: the case studies of the compiler.

Nothing here knows of the compiler. `models.registry.SAMPLES` lists every model with a small instance and inputs for it.
"""
