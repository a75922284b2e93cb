"""What writes parts of the documentation: catalogues from the code, and the output of the examples on the pages."""
