"""The vocabulary of the compiler: scan nodes, linear recurrences, and the obstructions that explain a refusal."""
