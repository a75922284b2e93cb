"""Random recurrent modules, written as Python source, against linrec."""
